package taskqueue

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Names of the contract.
const (
	workExchange     = "taskqueue.work"
	directExchange   = "taskqueue.direct"
	deadExchange     = "taskqueue.dead"
	outcomesExchange = "taskqueue.outcomes"
	controlStream    = "taskqueue.control"

	contractVersion = 1
	appID           = "taskqueue"
)

// reasonLimit is the longest reason in a header, in bytes: all headers must fit into one frame.
const reasonLimit = 2000

// RoutingKey is the key of a TaskQueue on the exchanges for work and for dead letters.
func RoutingKey(namespace, queue string) string { return namespace + "." + queue }

func workQueue(namespace, queue string) string { return "taskqueue." + RoutingKey(namespace, queue) }

// message is the content of a delivery: an attempt of a Task, or a direct message, which has no token.
type message struct {
	handler       string
	payload       json.RawMessage
	correlationID string

	// Of a Task's attempt only.
	namespace      string
	queue          string
	task           string
	token          string
	attempt        int64
	maxAttempts    int64
	epoch          int64
	maxDeliveries  int64
	timeoutSeconds int64
	fence          *int64
	// checkpointed says whether the operator had a checkpoint; nil: it is an older one, which keeps
	// none and knows no snooze.
	checkpointed *bool
	checkpoint   json.RawMessage
}

func (m *message) direct() bool { return m.token == "" }

// DirectExchange returns the exchange for direct messages. Older operators declare none of its own for
// them, and take them by the exchange for work.
func DirectExchange(connection *amqp.Connection) (string, error) {
	channel, err := connection.Channel()
	if err != nil {
		return "", err
	}
	err = channel.ExchangeDeclarePassive(directExchange, amqp.ExchangeTopic, true, false, false, false, nil)
	if refusal, ok := err.(*amqp.Error); ok && refusal.Code == amqp.NotFound {
		return workExchange, nil // the broker has closed the channel
	}
	if err != nil {
		return "", err
	}
	return directExchange, channel.Close()
}

// parse reads a delivery of the work queue. An error says what in it breaks the contract; of a
// message without a token only its JSON can. What comes by the exchange for direct messages is one, whatever its
// headers say.
func parse(d *amqp.Delivery) (*message, error) {
	if _, marked := d.Headers[unreadableHeader]; marked {
		d.Headers = nil
		return nil, errors.New("its headers cannot be read: they are nested too deep, too many, or of a " +
			"type that nobody knows")
	}
	m := &message{handler: d.Type, correlationID: d.CorrelationId}
	if d.Headers["tq-token"] == nil || d.Exchange == directExchange {
		payload, err := directPayload(d.Body)
		m.payload = payload
		return m, err
	}
	h := headers{table: d.Headers}
	if version := h.integer("tq-version"); h.err == nil && version != contractVersion {
		return nil, fmt.Errorf("header tq-version is %d, this worker speaks %d: run a worker of the "+
			"operator's version", version, contractVersion)
	}
	m.namespace, m.queue, m.task = h.text("tq-namespace"), h.text("tq-queue"), h.text("tq-task")
	m.attempt, m.maxAttempts = h.integer("tq-attempt"), h.integer("tq-max-attempts")
	m.epoch, m.token = h.integer("tq-epoch"), h.text("tq-token")
	m.maxDeliveries, m.timeoutSeconds = h.integer("tq-max-deliveries"), h.integer("tq-timeout-seconds")
	if _, keyed := d.Headers["tq-fence"]; keyed {
		fence := h.integer("tq-fence")
		m.fence = &fence
	}
	if known, there := d.Headers["tq-checkpointed"].(bool); there {
		m.checkpointed = &known
	}
	if _, saved := d.Headers["tq-checkpoint"]; saved {
		m.checkpoint = json.RawMessage(h.text("tq-checkpoint"))
		if h.err == nil && !isObject(m.checkpoint) {
			h.refuse("tq-checkpoint", "a JSON object")
		}
		if err := checkExact(m.checkpoint, "tq-checkpoint"); h.err == nil && err != nil {
			return nil, err
		}
	}
	switch {
	case h.err != nil:
		return nil, h.err
	case m.correlationID == "":
		return nil, fmt.Errorf("property correlation_id (the Task's uid) is missing")
	}
	if !isObject(d.Body) {
		return nil, fmt.Errorf("the body of a Task's message must be a JSON object")
	}
	m.payload = d.Body
	return m, checkExact(d.Body, "payload")
}

// deliveriesSoFar is how often the broker had delivered the message before (3). On a first delivery
// the header is the publisher's own.
func deliveriesSoFar(d *amqp.Delivery) int64 {
	if !d.Redelivered {
		return 0
	}
	count, _ := asInteger(d.Headers["x-delivery-count"])
	return count
}

// directPayload is the body itself where it is a JSON object, else {"text": …}. JSON that cannot be
// read exactly is an error.
func directPayload(body []byte) (json.RawMessage, error) {
	if isNested(body) || json.Valid(body) {
		if err := checkExact(body, "payload"); err != nil {
			return nil, err
		}
	}
	if isObject(body) {
		return body, nil
	}
	text := strings.ToValidUTF8(string(body), string(utf8.RuneError))
	wrapped, err := json.Marshal(map[string]string{"text": text})
	if err != nil {
		panic(err) // a string always encodes
	}
	return wrapped, nil
}

// isNested: deeper than the library reads at all.
func isNested(body []byte) bool {
	err := json.Unmarshal(body, &struct{}{})
	return err != nil && strings.Contains(err.Error(), "exceeded max depth")
}

func isObject(body []byte) bool {
	var object map[string]json.RawMessage
	return json.Unmarshal(body, &object) == nil && object != nil
}

// headers reads the headers of a work message; err is the first error found.
type headers struct {
	table amqp.Table
	err   error
}

func (h *headers) integer(name string) int64 {
	value, ok := asInteger(h.table[name])
	if !ok {
		h.refuse(name, "an integer")
	}
	return value
}

func (h *headers) text(name string) string {
	value, ok := h.table[name].(string)
	if !ok || value == "" {
		h.refuse(name, "a non-empty string")
	}
	return value
}

func (h *headers) refuse(name, kind string) {
	if h.err != nil {
		return
	}
	if found, there := h.table[name]; there {
		h.err = fmt.Errorf("header %s must be %s, it is %#v", name, kind, found)
	} else {
		h.err = fmt.Errorf("header %s is missing: it must be %s", name, kind)
	}
}

// asInteger converts an integer of any width: clients choose different ones.
func asInteger(value any) (int64, bool) {
	switch n := value.(type) {
	case int8:
		return int64(n), true
	case uint8:
		return int64(n), true
	case int16:
		return int64(n), true
	case uint16:
		return int64(n), true
	case int32:
		return int64(n), true
	case uint32:
		return int64(n), true
	case int64:
		return n, true
	case uint64:
		return int64(n), n <= math.MaxInt64
	default:
		return 0, false
	}
}

// deadLetter returns the delivery as it goes to the dead-letter queue, without the broker's own
// headers, and with the exchange it came by.
func deadLetter(d *amqp.Delivery, key, reason string) outgoing {
	table := republished(d.Headers)
	table["tq-error"] = cutText(strings.ToValidUTF8(reason, string(utf8.RuneError)), reasonLimit)
	table["tq-exchange"] = d.Exchange
	return outgoing{
		exchange: deadExchange,
		key:      key,
		publishing: amqp.Publishing{
			Headers:       table,
			ContentType:   d.ContentType,
			Type:          d.Type,
			CorrelationId: d.CorrelationId,
			Body:          d.Body,
		},
	}
}
