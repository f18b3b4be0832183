package taskqueue

import (
	"context"
	"math/rand"
	"net"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// heartbeat is the interval the contract asks for (11).
const heartbeat = 5 * time.Second

// held is how long a connection must have lived to count as one that works: the next pause is short
// again only then, so that a broker that accepts and closes at once is not hammered.
const held = 5 * time.Second

// connection is one to the broker that knows when the broker was last heard.
type connection struct {
	*amqp.Connection
	closed chan *amqp.Error
	heard  *atomic.Int64
}

// silence is how long ago the broker was last heard.
func (c *connection) silence() time.Duration {
	return time.Duration(time.Now().UnixNano() - c.heard.Load())
}

// leave closes the connection, and does not wait long for a broker that does not answer.
func (c *connection) leave() { _ = c.CloseDeadline(time.Now().Add(2 * time.Second)) }

// Dial connects to the broker.
func (b Broker) Dial(name string) (*amqp.Connection, error) {
	conn, err := b.dial(name)
	if err != nil {
		return nil, err
	}
	return conn.Connection, nil
}

func (b Broker) dial(name string) (*connection, error) {
	heard := &atomic.Int64{}
	heard.Store(time.Now().UnixNano())
	conn, err := amqp.DialConfig(b.URI, amqp.Config{
		Heartbeat:       heartbeat,
		TLSClientConfig: b.TLS,
		Properties:      amqp.Table{"connection_name": name, "product": "taskqueue-go-worker"},
		Dial: func(network, address string) (net.Conn, error) {
			socket, err := amqp.DefaultDial(10*time.Second)(network, address)
			if err != nil {
				return nil, err
			}
			return &listening{Conn: socket, heard: heard}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	return &connection{Connection: conn, closed: closed, heard: heard}, nil
}

// listening notes whenever something is read.
type listening struct {
	net.Conn
	heard *atomic.Int64
}

func (l *listening) Read(buffer []byte) (int, error) {
	n, err := l.Conn.Read(buffer)
	if n > 0 {
		l.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// backoff gives pauses that grow, with chance in them, so that the clients of a restarted broker do
// not come back all at once.
type backoff struct{ bound time.Duration }

func (b *backoff) reset() { b.bound = 0 }

func (b *backoff) next() time.Duration {
	b.bound = min(max(2*b.bound, 200*time.Millisecond), 10*time.Second)
	return b.bound/2 + time.Duration(rand.Int63n(int64(b.bound/2)))
}

// pause sleeps until the context ends at the latest.
func pause(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
