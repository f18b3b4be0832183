package taskqueue

import (
	"context"
	"crypto/tls"
	"math/rand"
	"net"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// heartbeat is the interval the contract asks for (11).
const heartbeat = 5 * time.Second

// stableAfter is how long a connection must live before the next pause is short again, so that we
// do not hammer a broker that accepts and closes at once.
const stableAfter = 5 * time.Second

// connection is a connection to the broker that knows when it last read from the broker.
type connection struct {
	*amqp.Connection
	closed   chan *amqp.Error
	lastRead *atomic.Int64
}

// silence returns how long ago it last read from the broker.
func (c *connection) silence() time.Duration {
	return time.Duration(time.Now().UnixNano() - c.lastRead.Load())
}

// closeSoon closes the connection, without waiting long for a broker that does not answer.
func (c *connection) closeSoon() { _ = c.CloseDeadline(time.Now().Add(2 * time.Second)) }

// Dial connects to the broker.
func (b Broker) Dial(name string) (*amqp.Connection, error) {
	conn, err := b.dial(name)
	if err != nil {
		return nil, err
	}
	return conn.Connection, nil
}

func (b Broker) dial(name string) (*connection, error) {
	b, err := b.now()
	if err != nil {
		return nil, err
	}
	lastRead := &atomic.Int64{}
	lastRead.Store(time.Now().UnixNano())
	uri, err := amqp.ParseURI(b.URI)
	if err != nil {
		return nil, err
	}
	secured := uri.Scheme == "amqps"
	uri.Scheme = "amqp" // TLS is below what reads frames, so the library must not do it
	conn, err := amqp.DialConfig(uri.String(), amqp.Config{
		Heartbeat:  heartbeat,
		Properties: amqp.Table{"connection_name": name, "product": "taskqueue-go-worker"},
		Dial: func(network, address string) (net.Conn, error) {
			socket, err := amqp.DefaultDial(10*time.Second)(network, address)
			if err != nil {
				return nil, err
			}
			if secured {
				if socket, err = b.secure(socket, uri.Host); err != nil {
					return nil, err
				}
			}
			return &readTimingConn{Conn: &readableConn{Conn: socket}, lastRead: lastRead}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	return &connection{Connection: conn, closed: closed, lastRead: lastRead}, nil
}

// secure returns the connection with TLS.
func (b Broker) secure(socket net.Conn, host string) (net.Conn, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if b.TLS != nil {
		config = b.TLS.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = host
	}
	secured := tls.Client(socket, config)
	if err := secured.Handshake(); err != nil {
		_ = socket.Close()
		return nil, err
	}
	return secured, nil
}

// readTimingConn records when it last read something.
type readTimingConn struct {
	net.Conn
	lastRead *atomic.Int64
}

func (l *readTimingConn) Read(buffer []byte) (int, error) {
	n, err := l.Conn.Read(buffer)
	if n > 0 {
		l.lastRead.Store(time.Now().UnixNano())
	}
	return n, err
}

// backoff returns growing pauses with jitter, so that the clients of a restarted broker do not all
// reconnect at once.
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
