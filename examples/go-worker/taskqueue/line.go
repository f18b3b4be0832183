package taskqueue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// line is the connection work and orders come in by. A closed connection, a closed channel and a
// consumer the broker cancelled are one case: what was delivered is worthless for acknowledging, and
// the consumer is registered anew after a pause (9).
type line struct {
	settings Settings
	desk     *desk
	log      *slog.Logger
	control  *control
	// stop is closed when no more work is to be taken; the connection is kept.
	stop     chan struct{}
	stopOnce sync.Once
	// registered: there is a consumer with the broker.
	registered atomic.Bool
	told       string
}

func newLine(settings Settings, desk *desk, log *slog.Logger) *line {
	return &line{
		settings: settings,
		desk:     desk,
		log:      log,
		control:  newControl(desk, log),
		stop:     make(chan struct{}),
	}
}

// stopConsuming takes no more work. Deliveries on their way are still handed on.
func (l *line) stopConsuming() { l.stopOnce.Do(func() { close(l.stop) }) }

func (l *line) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// run consumes until the context ends.
func (l *line) run(ctx context.Context) {
	var pauses backoff
	for ctx.Err() == nil {
		began := time.Now()
		err := l.connected(ctx)
		if ctx.Err() != nil {
			return
		}
		l.tell(err)
		if time.Since(began) >= held {
			pauses.reset()
		}
		pause(ctx, pauses.next())
	}
}

// connected uses one connection until it ends, and returns why.
func (l *line) connected(ctx context.Context) error {
	conn, err := l.settings.Broker.dial("worker " + l.settings.Pod)
	if err != nil {
		return err
	}
	defer conn.leave()
	l.desk.post(func() { l.desk.silence, l.desk.silent = conn.silence, 0 })
	defer l.desk.post(func() { l.desk.silence = nil })

	living, ended := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer ended(nil)
	caughtUp := make(chan struct{})
	parts.Add(1)
	go func() {
		defer parts.Done()
		l.control.follow(living, conn, caughtUp)
	}()
	go func() {
		select {
		case reason := <-conn.closed:
			if reason == nil {
				ended(errors.New("the connection was closed"))
			} else {
				ended(reason)
			}
		case <-living.Done():
		}
	}()
	l.consumeOn(living, conn, caughtUp)
	return context.Cause(living)
}

// consumeOn registers on one channel after the other while the connection lives.
func (l *line) consumeOn(ctx context.Context, conn *connection, caughtUp chan struct{}) {
	var pauses backoff
	for ctx.Err() == nil && !l.stopped() {
		began := time.Now()
		err := l.consume(ctx, conn, caughtUp)
		if ctx.Err() != nil || l.stopped() {
			break
		}
		l.tell(err)
		if time.Since(began) >= held {
			pauses.reset()
		}
		l.pause(ctx, pauses.next())
	}
	<-ctx.Done() // orders are obeyed until the end
}

// consume takes work on one channel until that ends, and returns why.
func (l *line) consume(ctx context.Context, conn *connection, caughtUp chan struct{}) error {
	channel, err := conn.Channel()
	if err != nil {
		return err
	}
	queue := workQueue(l.settings.Namespace, l.settings.Queue)
	if _, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil); err != nil {
		return fmt.Errorf("queue %s: %w", queue, err) // and the channel is closed
	}
	defer channel.Close()
	select {
	case <-caughtUp: // all orders of the past are known
	case <-ctx.Done():
		return ctx.Err()
	case <-l.stop:
		return nil
	}
	if err := channel.Qos(l.settings.Slots, 0, false); err != nil {
		return err
	}
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	deliveries, err := channel.Consume(queue, "work", false, false, false, false, nil)
	if err != nil {
		return err
	}
	l.registered.Store(true)
	l.desk.post(func() {
		l.desk.consuming, l.desk.registered = true, true
		l.desk.changed()
	})
	defer l.desk.post(func() {
		l.desk.lost()
		l.desk.consuming = false
	})
	l.log.Info("consumer.ready", "queue", queue, "prefetch", l.settings.Slots)
	l.told = ""

	if lost := l.handOn(channel, deliveries); lost {
		l.registered.Store(false)
		select {
		case reason := <-closed:
			if reason != nil {
				return reason
			}
		case <-time.After(100 * time.Millisecond): // the channel is open: only the consumer is gone
		}
		return errors.New("the broker cancelled the consumer")
	}
	l.registered.Store(false)
	l.desk.post(func() { l.desk.consuming = false })
	// The channel stays: what is in hand is acknowledged on it.
	select {
	case <-closed:
	case <-ctx.Done():
	}
	return nil
}

// handOn gives deliveries to the desk until the consumer ends; it returns whether the consumer was
// lost, not stopped.
func (l *line) handOn(channel *amqp.Channel, deliveries <-chan amqp.Delivery) (lost bool) {
	stop := l.stop
	for {
		select {
		case delivery, open := <-deliveries:
			if !open {
				return stop != nil
			}
			l.desk.post(func() { l.desk.delivered(&delivery) })
		case <-stop:
			stop = nil
			// Once it is cancelled, the channel of deliveries is closed behind the last one.
			go func() { _ = channel.Cancel("work", false) }()
		}
	}
}

// tell logs why there is no consumer, once for each reason in a row.
func (l *line) tell(err error) {
	if err == nil || l.stopped() {
		return
	}
	if reason := err.Error(); reason != l.told {
		l.told = reason
		l.log.Warn("consumer.waiting", "reason", reason)
	}
}

func (l *line) pause(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-l.stop:
	}
}
