package taskqueue

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// eventKind is what a worker can report about an attempt.
type eventKind string

const (
	started   eventKind = "task.started"
	succeeded eventKind = "task.succeeded"
	failed    eventKind = "task.failed"
	cancelled eventKind = "task.cancelled"
	released  eventKind = "task.released"
	saved     eventKind = "task.checkpoint"
	snoozed   eventKind = "task.snoozed"
)

// resultLimit is the longest accepted result, in bytes of JSON.
const resultLimit = 16 * 1024

// messageLimit is the longest reported error message, in bytes.
const messageLimit = 2000

// typeLimit is the longest type of an error, in bytes.
const typeLimit = 253

// reservedPrefix begins the types of errors that the worker itself has found, on the wire.
const reservedPrefix = "taskqueue."

// reservedTypes is what an operator announces that knows reservedPrefix.
const reservedTypes = "reserved-types"

// eventError is why an attempt failed. Application: the handler's code has chosen the type.
type eventError struct {
	Type        string `json:"type"`
	Message     string `json:"message"`
	Retryable   bool   `json:"retryable"`
	Application bool   `json:"application,omitempty"`
}

// onWire is the error as the operator reads it: an older one knows the bare types only.
func (e *eventError) onWire(prefixed bool) *eventError {
	if e == nil || e.Application || !prefixed {
		return e
	}
	sent := *e
	sent.Type = reservedPrefix + e.Type
	return &sent
}

type eventData struct {
	UID               string          `json:"uid"`
	Token             string          `json:"token"`
	Attempt           int64           `json:"attempt"`
	Epoch             int64           `json:"epoch"`
	CorrelationID     *string         `json:"correlationId,omitempty"`
	Exchange          string          `json:"exchange,omitempty"`
	Worker            string          `json:"worker"`
	Seconds           *float64        `json:"seconds,omitempty"`
	Result            json.RawMessage `json:"result,omitempty"`
	ResultRef         *resultRef      `json:"resultRef,omitempty"`
	Error             *eventError     `json:"error,omitempty"`
	RetryAfterSeconds *float64        `json:"retryAfterSeconds,omitempty"`
	Checkpoint        json.RawMessage `json:"checkpoint,omitempty"`
	Deliveries        int64           `json:"deliveries,omitempty"`
}

type cloudEvent struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Type            string    `json:"type"`
	Source          string    `json:"source"`
	Subject         string    `json:"subject"`
	TaskQueue       string    `json:"taskqueue"`
	DataContentType string    `json:"datacontenttype"`
	Data            eventData `json:"data"`
}

// ending is how an attempt ended: error is nil for success. It did not end if it is released, because
// its message has not its last checkpoint, or if it is to be called again after a snooze.
type ending struct {
	result json.RawMessage
	// unstored is a result that no status takes, reference one that is in the store.
	unstored   *storedResult
	reference  *resultRef
	error      *eventError
	retryAfter time.Duration
	snooze     *time.Duration
	released   bool
	took       time.Duration
}

func (e ending) kind() eventKind {
	switch {
	case e.error != nil:
		return failed
	case e.snooze != nil:
		return snoozed
	}
	return succeeded
}

func (e ending) fill(data *eventData) {
	seconds := e.took.Seconds()
	if e.snooze != nil {
		seconds = e.snooze.Seconds()
	}
	data.Seconds, data.Result, data.ResultRef, data.Error = &seconds, e.result, e.reference, e.error
	if e.retryAfter > 0 {
		after := e.retryAfter.Seconds()
		data.RetryAfterSeconds = &after
	}
}

// taskEvent is an event about an attempt of a Task; end is nil unless it ended.
func taskEvent(m *message, kind eventKind, worker string, end *ending) outgoing {
	data := eventData{UID: m.correlationID, Token: m.token, Attempt: m.attempt, Epoch: m.epoch}
	if end != nil {
		end.fill(&data)
	}
	return encode(kind, m.namespace, m.queue, m.task, newID(), worker, data)
}

// checkpointEvent is an event about what the handler of an attempt saved.
func checkpointEvent(m *message, worker string, checkpoint json.RawMessage) outgoing {
	data := eventData{UID: m.correlationID, Token: m.token, Attempt: m.attempt, Epoch: m.epoch}
	data.Checkpoint = checkpoint
	return encode(saved, m.namespace, m.queue, m.task, newID(), worker, data)
}

// releasedEvent is an event about an attempt that is given back; deliveries of it came before.
func releasedEvent(m *message, worker string, took time.Duration, deliveries int64) outgoing {
	seconds := took.Seconds()
	data := eventData{UID: m.correlationID, Token: m.token, Attempt: m.attempt, Epoch: m.epoch}
	data.Seconds, data.Deliveries = &seconds, deliveries
	return encode(released, m.namespace, m.queue, m.task, newID(), worker, data)
}

// directEvent is the end of a direct message. Its id is the message's own, so that a
// subscriber recognises an end that is reported twice.
func directEvent(s *Settings, d *amqp.Delivery, deliveries int64, end ending) outgoing {
	data := eventData{Attempt: deliveries, CorrelationID: &d.CorrelationId, Exchange: d.Exchange}
	end.fill(&data)
	id := d.MessageId
	if id == "" {
		id = newID()
	}
	return encode(end.kind(), s.Namespace, s.Queue, s.Queue, id, s.Pod, data)
}

func encode(kind eventKind, namespace, queue, name, id, worker string, data eventData) outgoing {
	data.Worker = worker
	body, err := json.Marshal(cloudEvent{
		SpecVersion:     "1.0",
		ID:              id,
		Type:            "dev.taskqueue." + string(kind) + ".v1",
		Source:          "/workers/" + worker,
		Subject:         namespace + "/" + name,
		TaskQueue:       queue,
		DataContentType: "application/json",
		Data:            data,
	})
	if err != nil {
		panic(err) // results are checked before
	}
	return outgoing{
		exchange:   outcomesExchange,
		key:        RoutingKey(namespace, queue) + "." + string(kind),
		publishing: amqp.Publishing{ContentType: "application/cloudevents+json", Body: body},
	}
}

// newID returns a random, unique id.
func newID() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails on the systems Go runs on
	return hex.EncodeToString(random[:])
}
