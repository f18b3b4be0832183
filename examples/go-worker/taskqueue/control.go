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

// controlPrefetch is how many orders may be on their way: a stream is read in chunks, and much less
// takes a round trip for each few.
const controlPrefetch = 500

// control reads the operator's orders, over all connections of a worker (7).
type control struct {
	desk *desk
	log  *slog.Logger
	// seen is the offset of the last order; -1: none.
	seen int64
	// live: it has caught up once. An order to drain from before that was for another process of the
	// same pod name, and does not count when the stream is read again either.
	live bool
	past map[string]bool
	told string
}

func newControl(desk *desk, log *slog.Logger) *control {
	return &control{desk: desk, log: log, seen: -1, past: map[string]bool{}}
}

// follow takes orders until the context ends; caughtUp is closed when all of the past are known.
func (c *control) follow(ctx context.Context, conn *connection, caughtUp chan struct{}) {
	var pauses backoff
	var once sync.Once
	known := func() { once.Do(func() { close(caughtUp) }) }
	for ctx.Err() == nil {
		began := time.Now()
		err := c.read(ctx, conn, known)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= held {
			pauses.reset()
		}
		if reason := err.Error(); reason != c.told {
			c.told = reason
			c.log.Warn("control.waiting", "stream", controlStream, "reason", reason,
				"todo", "no work is taken before its orders are known; the operator declares the stream, "+
					"and the broker user needs to read it")
		}
		pause(ctx, pauses.next())
	}
}

// read follows the stream on one channel until that ends, and returns why.
func (c *control) read(ctx context.Context, conn *connection, known func()) error {
	channel, err := conn.Channel()
	if err != nil {
		return err
	}
	defer channel.Close()
	end, err := c.end(channel)
	if err != nil {
		return err
	}
	if end < c.seen {
		c.seen = -1 // the stream was made anew
	}
	reached := c.seen >= end
	if reached {
		c.ready(known)
	}
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	orders, err := c.from(channel, c.next())
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case delivery, open := <-orders:
			if !open {
				return c.why(closed)
			}
			c.take(&delivery)
			_ = delivery.Ack(false)
			if !reached && c.seen >= end {
				reached = true
				c.ready(known)
			}
		}
	}
}

func (c *control) why(closed chan *amqp.Error) error {
	select {
	case reason := <-closed:
		if reason != nil {
			return reason
		}
	default:
		c.seen = -1 // only the consumer is gone: the stream was deleted
	}
	return errors.New("the broker ended the reading of orders")
}

// end returns the offset of the last order, -1 for none. "last" begins with the last chunk, which
// may hold more than the prefetch: it is read on from there until nothing more comes.
func (c *control) end(channel *amqp.Channel) (int64, error) {
	if err := channel.Qos(controlPrefetch, 0, false); err != nil {
		return 0, err
	}
	var begin any = "last"
	last := int64(-1)
	for {
		orders, err := c.from(channel, begin)
		if err != nil {
			return 0, err
		}
		// What the broker sends, it sends within two round trips.
		for range 2 {
			if _, err := channel.QueueDeclarePassive(controlStream, true, false, false, false, nil); err != nil {
				return 0, fmt.Errorf("stream %s: %w", controlStream, err)
			}
		}
		// The library hands over all it has been sent before the cancel, then closes.
		if err := channel.Cancel("orders", false); err != nil {
			return 0, err
		}
		before := last
		var newest *amqp.Delivery
		for delivery := range orders {
			last, newest = offset(&delivery), &delivery
		}
		if newest != nil {
			_ = newest.Ack(true)
		}
		if last == before {
			return last, nil
		}
		begin = last + 1
	}
}

func (c *control) from(channel *amqp.Channel, begin any) (<-chan amqp.Delivery, error) {
	arguments := amqp.Table{"x-stream-offset": begin}
	return channel.Consume(controlStream, "orders", false, false, false, false, arguments)
}

func (c *control) next() any {
	if c.seen < 0 {
		return "first"
	}
	return c.seen + 1
}

// ready is told behind the orders, by the same way: no work overtakes them.
func (c *control) ready(known func()) {
	c.told = ""
	c.live = true
	c.desk.post(known)
}

func (c *control) take(delivery *amqp.Delivery) {
	at := offset(delivery)
	if at <= c.seen {
		return
	}
	c.seen = at
	o, err := parseOrder(delivery.Body)
	if err != nil {
		c.log.Warn("order.malformed", "offset", at, "reason", err.Error())
		return
	}
	if o.Kind != orderDrain || c.counts(delivery, o) {
		c.desk.post(func() { c.desk.ordered(o) })
	}
}

// counts tells whether an order to drain is for this process.
func (c *control) counts(delivery *amqp.Delivery, o order) bool {
	if s := &c.desk.settings; o.Pod != s.Pod || o.Namespace != s.Namespace {
		return false
	}
	name := delivery.MessageId
	if name == "" {
		name = fmt.Sprint(offset(delivery))
	}
	if !c.live {
		c.past[name] = true
	}
	return !c.past[name]
}

func offset(delivery *amqp.Delivery) int64 {
	at, _ := asInteger(delivery.Headers["x-stream-offset"])
	return at
}
