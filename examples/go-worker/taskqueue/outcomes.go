package taskqueue

import (
	"context"
	"errors"
	"log/slog"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// outgoing is a message that is published until the broker has confirmed it; confirmed is called
// then, on no particular goroutine.
type outgoing struct {
	exchange   string
	key        string
	publishing amqp.Publishing
	confirmed  func()
}

// unansweredLimit is how many messages may wait for their confirm. The library's
// notification channels hold twice as many, so that its reader never waits for us while we wait for it.
const unansweredLimit = 1000

// outcomePublisher publishes outcomes and dead letters on its own connection (11): under an alarm the
// broker stops reading a connection that publishes, and acknowledgements must not be stuck behind
// that. What is returned, refused or unanswered is published again (6). The broker closes the channel
// over an exchange that does not exist; then the channel is opened again, and the connection stays, for
// the heartbeats on it.
type outcomePublisher struct {
	broker Broker
	name   string
	log    *slog.Logger
	inbox  *unboundedQueue[outgoing]
	// onConnected is called with each new connection: heartbeats share it.
	onConnected func(ctx context.Context, conn *connection)

	// Owned by the goroutine in run: what is still to be published, and why nothing could be when that
	// was last logged.
	waiting    []outgoing
	lostReason string
}

func newOutcomePublisher(broker Broker, name string, log *slog.Logger) *outcomePublisher {
	return &outcomePublisher{broker: broker, name: name, log: log, inbox: newUnboundedQueue[outgoing]()}
}

func (o *outcomePublisher) report(message outgoing) { o.inbox.put(message) }

// run publishes until the context ends.
func (o *outcomePublisher) run(ctx context.Context) {
	_ = o.repeat(ctx, func() (bool, error) { return true, o.publishOnConnection(ctx) })
}

// repeat does it again and again, with pauses, until it says that it cannot go on, or the context ends.
func (o *outcomePublisher) repeat(ctx context.Context, do func() (bool, error)) error {
	var pauses backoff
	for {
		began := time.Now()
		goOn, err := do()
		if ctx.Err() != nil || !goOn {
			return err
		}
		if time.Since(began) >= stableAfter {
			pauses.reset()
			o.lostReason = ""
		}
		if reason := err.Error(); reason != o.lostReason {
			o.lostReason = reason
			o.log.Warn("publisher.lost", "reason", reason)
		}
		pause(ctx, pauses.next())
	}
}

// publishOnConnection publishes on one connection until that ends, and returns why.
func (o *outcomePublisher) publishOnConnection(ctx context.Context) error {
	conn, err := o.broker.dial(o.name)
	if err != nil {
		return err
	}
	defer conn.closeSoon()
	living, ended := context.WithCancel(ctx)
	defer ended()
	go o.onConnected(living, conn)
	return o.repeat(ctx, func() (bool, error) {
		err := o.publishOnChannel(ctx, conn)
		return !conn.IsClosed(), err
	})
}

// publishOnChannel publishes on one channel until that ends, and returns why. It begins when the
// exchanges exist: a publish to one that does not would take with it what is not confirmed yet.
func (o *outcomePublisher) publishOnChannel(ctx context.Context, conn *connection) error {
	for _, exchange := range []string{outcomesExchange, deadExchange} {
		if err := checkExchange(conn, exchange); err != nil {
			return err
		}
	}
	channel, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := channel.Confirm(false); err != nil {
		return err
	}
	s := &sender{
		outcomePublisher: o,
		channel:          channel,
		confirms:         channel.NotifyPublish(make(chan amqp.Confirmation, 2*unansweredLimit)),
		returns:          channel.NotifyReturn(make(chan amqp.Return, 2*unansweredLimit)),
		unanswered:       map[uint64]outgoing{},
		returned:         map[string]string{},
	}
	defer s.requeueUnanswered()
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	return s.run(ctx, closed)
}

// sender publishes on one channel.
type sender struct {
	*outcomePublisher
	channel  *amqp.Channel
	confirms chan amqp.Confirmation
	returns  chan amqp.Return
	// unanswered has the messages by delivery tag.
	unanswered map[uint64]outgoing
	// returned has the reasons by message id: a return carries no tag, and comes before the confirm.
	returned   map[string]string
	pauses     backoff
	retryTimer <-chan time.Time
	lastReason string
}

func (s *sender) run(ctx context.Context, closed chan *amqp.Error) error {
	for {
		if s.retryTimer == nil {
			if err := s.publishWaiting(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case reason := <-closed:
			if reason != nil {
				return reason
			}
			return errors.New("the channel was closed")
		case <-s.inbox.more:
			s.waiting = append(s.waiting, s.inbox.drain()...)
		case confirmation, open := <-s.confirms:
			if !open {
				s.confirms = nil
				continue
			}
			s.onConfirm(confirmation)
		case <-s.retryTimer:
			s.retryTimer = nil
		}
	}
}

func (s *sender) publishWaiting(ctx context.Context) error {
	for len(s.waiting) > 0 && len(s.unanswered) < unansweredLimit {
		message := s.waiting[0]
		publishing := message.publishing
		publishing.MessageId = newID() // another for every publish: returns are matched by it
		publishing.DeliveryMode = amqp.Persistent
		publishing.AppId = appID
		publishing.Timestamp = time.Now()
		tag := s.channel.GetNextPublishSeqNo()
		err := s.channel.PublishWithContext(ctx, message.exchange, message.key, true, false, publishing)
		if err != nil {
			return err
		}
		s.waiting = s.waiting[1:]
		message.publishing.MessageId = publishing.MessageId
		s.unanswered[tag] = message
	}
	return nil
}

func (s *sender) onConfirm(confirmation amqp.Confirmation) {
	// A return comes before its confirm, so it is here already.
	for len(s.returns) > 0 {
		back := <-s.returns
		s.returned[back.MessageId] = back.ReplyText
	}
	message, known := s.unanswered[confirmation.DeliveryTag]
	if !known {
		return
	}
	delete(s.unanswered, confirmation.DeliveryTag)
	reason, back := s.returned[message.publishing.MessageId]
	delete(s.returned, message.publishing.MessageId)
	if confirmation.Ack && !back {
		s.pauses.reset()
		s.lastReason = ""
		if message.confirmed != nil {
			message.confirmed()
		}
		return
	}
	if !back {
		reason = "the broker refused it"
	}
	if reason != s.lastReason {
		s.lastReason = reason
		s.log.Warn("outcome.refused", "exchange", message.exchange, "key", message.key, "reason", reason,
			"hint", "it is published again until a queue accepts it; NO_ROUTE: start the operator")
	}
	s.waiting = append(s.waiting, message)
	if s.retryTimer == nil {
		s.retryTimer = time.After(s.pauses.next())
	}
}

// checkExchange returns an error if an exchange does not exist; only the operator declares it.
func checkExchange(conn *connection, name string) error {
	channel, err := conn.Channel()
	if err != nil {
		return err
	}
	defer channel.Close()
	return channel.ExchangeDeclarePassive(name, amqp.ExchangeTopic, true, false, false, false, nil)
}

// requeueUnanswered keeps what was not answered for the next channel.
func (s *sender) requeueUnanswered() {
	for len(s.confirms) > 0 { // confirmed in the last moment
		s.onConfirm(<-s.confirms)
	}
	for _, message := range s.unanswered {
		s.waiting = append(s.waiting, message)
	}
}
