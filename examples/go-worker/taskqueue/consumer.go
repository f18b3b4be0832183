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

// consumer owns the connection for work and commands. A closed connection, a closed channel and a
// cancelled consumer are one case: earlier deliveries cannot be acknowledged any more, and the
// consumer is registered again after a pause (9).
type consumer struct {
	settings   Settings
	dispatcher *dispatcher
	log        *slog.Logger
	commands   *commandConsumer
	// stop is closed to consume no more work; the connection stays open.
	stop     chan struct{}
	stopOnce sync.Once
	// registered: there is a consumer with the broker.
	registered atomic.Bool
	lastReason string
}

func newConsumer(settings Settings, dispatcher *dispatcher, log *slog.Logger) *consumer {
	return &consumer{
		settings:   settings,
		dispatcher: dispatcher,
		log:        log,
		commands:   newCommandConsumer(dispatcher, log),
		stop:       make(chan struct{}),
	}
}

// stopConsuming cancels the consumer. Deliveries in flight are still forwarded.
func (c *consumer) stopConsuming() { c.stopOnce.Do(func() { close(c.stop) }) }

func (c *consumer) stopped() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// run consumes until the context ends.
func (c *consumer) run(ctx context.Context) {
	var pauses backoff
	for ctx.Err() == nil {
		began := time.Now()
		err := c.useConnection(ctx)
		if ctx.Err() != nil {
			return
		}
		c.logOnce(err)
		if time.Since(began) >= stableAfter {
			pauses.reset()
		}
		pause(ctx, pauses.next())
	}
}

// useConnection consumes on one connection until it ends, and returns why.
func (c *consumer) useConnection(ctx context.Context) error {
	conn, err := c.settings.Broker.dial("worker " + c.settings.Pod)
	if err != nil {
		return err
	}
	defer conn.closeSoon()
	c.dispatcher.post(func() { c.dispatcher.silence, c.dispatcher.silent = conn.silence, 0 })
	defer c.dispatcher.post(func() { c.dispatcher.silence = nil })

	live, end := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer end(nil)
	caughtUp := make(chan struct{})
	parts.Add(1)
	go func() {
		defer parts.Done()
		c.commands.follow(live, conn, caughtUp)
	}()
	go func() {
		select {
		case reason := <-conn.closed:
			if reason == nil {
				end(errors.New("the connection was closed"))
			} else {
				end(reason)
			}
		case <-live.Done():
		}
	}()
	c.keepConsuming(live, conn, caughtUp)
	return context.Cause(live)
}

// keepConsuming registers on one channel after another while the connection lives.
func (c *consumer) keepConsuming(ctx context.Context, conn *connection, caughtUp chan struct{}) {
	var pauses backoff
	for ctx.Err() == nil && !c.stopped() {
		began := time.Now()
		err := c.consume(ctx, conn, caughtUp)
		if ctx.Err() != nil || c.stopped() {
			break
		}
		c.logOnce(err)
		if time.Since(began) >= stableAfter {
			pauses.reset()
		}
		c.pause(ctx, pauses.next())
	}
	<-ctx.Done() // commands are obeyed until the end
}

// consume consumes work on one channel until that ends, and returns why.
func (c *consumer) consume(ctx context.Context, conn *connection, caughtUp chan struct{}) error {
	channel, err := conn.Channel()
	if err != nil {
		return err
	}
	queue := workQueue(c.settings.Namespace, c.settings.Queue)
	if _, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil); err != nil {
		return fmt.Errorf("queue %s: %w", queue, err) // and the channel is closed
	}
	defer channel.Close()
	select {
	case <-caughtUp: // all old commands are known
	case <-ctx.Done():
		return ctx.Err()
	case <-c.stop:
		return nil
	}
	if err := channel.Qos(c.settings.Slots, 0, false); err != nil {
		return err
	}
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	deliveries, err := channel.Consume(queue, "work", false, false, false, false, nil)
	if err != nil {
		return err
	}
	c.registered.Store(true)
	c.dispatcher.post(func() {
		c.dispatcher.consuming, c.dispatcher.registered = true, true
		c.dispatcher.onStateChanged()
	})
	defer c.dispatcher.post(func() {
		c.dispatcher.onConsumerLost()
		c.dispatcher.consuming = false
	})
	c.log.Info("consumer.registered", "queue", queue, "prefetch", c.settings.Slots)
	c.lastReason = ""

	if lost := c.forwardDeliveries(channel, deliveries); lost {
		c.registered.Store(false)
		select {
		case reason := <-closed:
			if reason != nil {
				return reason
			}
		case <-time.After(100 * time.Millisecond): // the channel is open: only the consumer ended
		}
		return errors.New("the broker cancelled the consumer")
	}
	c.registered.Store(false)
	c.dispatcher.post(func() { c.dispatcher.consuming = false })
	// The channel stays open: running work is acknowledged on it.
	select {
	case <-closed:
	case <-ctx.Done():
	}
	return nil
}

// forwardDeliveries posts deliveries to the dispatcher until the consumer ends; it returns whether the consumer was
// lost, not stopped.
func (c *consumer) forwardDeliveries(channel *amqp.Channel, deliveries <-chan amqp.Delivery) (lost bool) {
	stop := c.stop
	for {
		select {
		case delivery, open := <-deliveries:
			if !open {
				return stop != nil
			}
			c.dispatcher.post(func() { c.dispatcher.onDelivery(&delivery) })
		case <-stop:
			stop = nil
			// Once it is cancelled, the channel of deliveries is closed behind the last one.
			go func() { _ = channel.Cancel("work", false) }()
		}
	}
}

// logOnce logs why there is no consumer, once for each reason in a row.
func (c *consumer) logOnce(err error) {
	if err == nil || c.stopped() {
		return
	}
	if reason := err.Error(); reason != c.lastReason {
		c.lastReason = reason
		c.log.Warn("consumer.lost", "reason", reason)
	}
}

func (c *consumer) pause(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-c.stop:
	}
}
