package taskqueue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// commandPrefetch is how many commands may be in flight: the broker sends a stream in chunks, and a
// low prefetch costs a round trip for each few commands.
const commandPrefetch = 500

// emptyAfter is how long a stream without a command sends nothing; restAfter likewise, for what may
// follow after a full prefetch.
const (
	emptyAfter = 5 * time.Second
	restAfter  = time.Second
)

// commandConsumer reads the operator's commands, over all connections of a worker (7).
type commandConsumer struct {
	dispatcher *dispatcher
	log        *slog.Logger
	// seenOffset is the offset of the last command; -1: none.
	seenOffset int64
	// caughtUp: it has caught up once. A command to drain from before that was for an earlier process
	// of the same pod name; it does not apply when the stream is read again either.
	caughtUp   bool
	oldDrains  map[string]bool
	lastReason string
}

func newCommandConsumer(dispatcher *dispatcher, log *slog.Logger) *commandConsumer {
	return &commandConsumer{dispatcher: dispatcher, log: log, seenOffset: -1, oldDrains: map[string]bool{}}
}

// follow reads commands until the context ends; caughtUp is closed once all old ones are known.
func (c *commandConsumer) follow(ctx context.Context, conn *connection, caughtUp chan struct{}) {
	var pauses backoff
	var once sync.Once
	onCaughtUp := func() { once.Do(func() { close(caughtUp) }) }
	for ctx.Err() == nil {
		began := time.Now()
		err := c.consume(ctx, conn, onCaughtUp)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= stableAfter {
			pauses.reset()
		}
		if reason := err.Error(); reason != c.lastReason {
			c.lastReason = reason
			c.log.Warn("command_consumer.lost", "stream", controlStream, "reason", reason,
				"hint", "the worker consumes no work before it knows the commands; the operator declares the "+
					"stream, and the broker user needs permission to read it")
		}
		pause(ctx, pauses.next())
	}
}

// consume reads the stream on one channel until that ends, and returns why.
func (c *commandConsumer) consume(ctx context.Context, conn *connection, onCaughtUp func()) error {
	channel, err := conn.Channel()
	if err != nil {
		return err
	}
	defer channel.Close()
	end, err := c.lastOffset(channel)
	if err != nil {
		return err
	}
	if end < c.seenOffset {
		c.seenOffset = -1 // the stream was created again
	}
	reached := c.seenOffset >= end
	if reached {
		c.onCaughtUp(onCaughtUp)
	}
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	deliveries, err := c.subscribe(channel, c.nextOffset())
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case delivery, open := <-deliveries:
			if !open {
				return c.closeReason(closed)
			}
			c.onDelivery(&delivery)
			_ = delivery.Ack(false)
			if !reached && c.seenOffset >= end {
				reached = true
				c.onCaughtUp(onCaughtUp)
			}
		}
	}
}

func (c *commandConsumer) closeReason(closed chan *amqp.Error) error {
	select {
	case reason := <-closed:
		if reason != nil {
			return reason
		}
	default:
		c.seenOffset = -1 // only the consumer ended: the stream was deleted
	}
	return errors.New("the broker cancelled the consumer of commands")
}

// lastOffset returns the offset of the last command, -1 for none. "last" begins with the last chunk,
// which may have more than the prefetch, so it reads on from there until nothing more comes. The
// operator leaves no stream empty, so that a silence means one only when it is long: of a chunk that
// the broker has not committed yet it sends nothing.
func (c *commandConsumer) lastOffset(channel *amqp.Channel) (int64, error) {
	if err := channel.Qos(commandPrefetch, 0, false); err != nil {
		return 0, err
	}
	last, count, err := c.read(channel, "last", emptyAfter)
	for err == nil && count >= commandPrefetch {
		var next int64
		if next, count, err = c.read(channel, last+1, restAfter); count > 0 {
			last = next
		}
	}
	return last, err
}

// read returns the highest offset of what the broker sends from an offset on, -1 for nothing, and how
// many messages that are. It waits for the first of them at most as long as the patience.
func (c *commandConsumer) read(channel *amqp.Channel, begin any, patience time.Duration) (int64, int, error) {
	deliveries, err := c.subscribe(channel, begin)
	if err != nil {
		return 0, 0, err
	}
	last, count := int64(-1), 0
	var newest *amqp.Delivery
	take := func(delivery *amqp.Delivery) {
		last, newest = offset(delivery), delivery
		count++
	}
	select {
	case delivery, open := <-deliveries:
		if open {
			take(&delivery)
		}
	case <-time.After(patience):
	}
	// The broker sends what it has within two round trips after the first.
	for range 2 {
		if _, err := channel.QueueDeclarePassive(controlStream, true, false, false, false, nil); err != nil {
			return 0, 0, fmt.Errorf("stream %s: %w", controlStream, err)
		}
	}
	// The library delivers all that came before the cancel, then closes.
	if err := channel.Cancel("commands", false); err != nil {
		return 0, 0, err
	}
	for delivery := range deliveries {
		take(&delivery)
	}
	if newest != nil {
		_ = newest.Ack(true)
	}
	return last, count, nil
}

func (c *commandConsumer) subscribe(channel *amqp.Channel, begin any) (<-chan amqp.Delivery, error) {
	arguments := amqp.Table{"x-stream-offset": begin}
	return channel.Consume(controlStream, "commands", false, false, false, false, arguments)
}

func (c *commandConsumer) nextOffset() any {
	if c.seenOffset < 0 {
		return "first"
	}
	return c.seenOffset + 1
}

// onCaughtUp posts behind the commands, so that no work overtakes them.
func (c *commandConsumer) onCaughtUp(onCaughtUp func()) {
	c.lastReason = ""
	c.caughtUp = true
	c.dispatcher.post(onCaughtUp)
}

func (c *commandConsumer) onDelivery(delivery *amqp.Delivery) {
	at := offset(delivery)
	if at <= c.seenOffset {
		return
	}
	c.seenOffset = at
	o, err := parseCommand(delivery.Body)
	if err != nil {
		c.log.Warn("command.malformed", "offset", at, "reason", err.Error())
		return
	}
	if o.Kind != commandDrain || c.isForThisProcess(delivery, o) {
		c.dispatcher.post(func() { c.dispatcher.onCommand(o) })
	}
}

// isForThisProcess returns whether a command to drain is for this process.
func (c *commandConsumer) isForThisProcess(delivery *amqp.Delivery, o command) bool {
	if s := &c.dispatcher.settings; o.Pod != s.Pod || o.Namespace != s.Namespace {
		return false
	}
	name := delivery.MessageId
	if name == "" {
		name = fmt.Sprint(offset(delivery))
	}
	if !c.caughtUp {
		c.oldDrains[name] = true
	}
	return !c.oldDrains[name]
}

func offset(delivery *amqp.Delivery) int64 {
	at, _ := asInteger(delivery.Headers["x-stream-offset"])
	return at
}
