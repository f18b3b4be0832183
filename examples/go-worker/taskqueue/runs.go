package taskqueue

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// startedAfter is how long an attempt runs before task.started tells of it.
const startedAfter = 500 * time.Millisecond

// run is one attempt in the worker's hands: waiting for a slot, running, or ended and not confirmed.
// Only the desk's goroutine touches it.
type run struct {
	*message
	desk *desk
	// deliveries is how often the broker had delivered it before.
	deliveries int64
	// leases are the deliveries that are acknowledged with it. Each belongs to its own channel: the
	// library refuses to acknowledge one of a closed channel, which is all there is to do (9).
	leases []*amqp.Delivery

	// Once it has a slot.
	startedAt time.Time
	progress  *progress
	stop      context.CancelFunc
	timers    []*time.Timer

	// settled: its end is decided, whatever comes later does not count.
	settled bool
	// cut: the broker may deliver it to another worker, so nothing is told of it.
	cut bool
	// farewell is called when the execution of a settled run has ended.
	farewell func()
	// successor is the same attempt, delivered again while this execution is ending.
	successor *run
	// expiry ends the process if the execution of a keyed run has not ended by then.
	expiry *expiry
}

func (r *run) keyed() bool { return r.fence != nil }

func (r *run) timeout() time.Duration {
	if r.direct() {
		return r.desk.settings.DirectTimeout
	}
	return time.Duration(r.timeoutSeconds) * time.Second
}

func (r *run) limit() int64 {
	if r.direct() {
		return r.desk.settings.DirectMaxDeliveries
	}
	return r.maxDeliveries
}

func (r *run) info() Attempt {
	if r.direct() {
		s := r.desk.settings
		return Attempt{
			Task:        s.Namespace + "/" + s.Queue,
			UID:         r.correlationID,
			Number:      min(r.deliveries+1, s.DirectMaxDeliveries),
			MaxAttempts: s.DirectMaxDeliveries,
		}
	}
	return Attempt{
		Task:        r.namespace + "/" + r.task,
		UID:         r.correlationID,
		Number:      r.attempt,
		MaxAttempts: r.maxAttempts,
		Fence:       r.fence,
	}
}

// fields are what log lines about it say.
func (r *run) fields(more ...any) []any {
	info := r.info()
	return append([]any{"task", info.Task, "uid", info.UID, "attempt", info.Number, "handler", r.handler}, more...)
}

// start runs the handler in a goroutine of its own (5). A goroutine cannot be stopped from outside:
// one that does not heed its context keeps its slot until it returns.
func (r *run) start() {
	r.startedAt = time.Now()
	r.progress = &progress{}
	ctx := context.WithValue(context.Background(), attemptKey{}, r.info())
	ctx, stop := context.WithCancel(context.WithValue(ctx, progressKey{}, r.progress))
	r.stop = stop
	if r.timeout() > startedAfter {
		r.after(startedAfter, func() { r.tell(started, nil) })
	}
	r.after(r.timeout(), r.timedOut)
	handler, name := r.desk.handlers.find(r.handler)
	payload := append(json.RawMessage(nil), r.payload...)
	go func() {
		defer stop()
		var end ending
		if handler == nil {
			text := "no handler " + name + " here; known: " + strings.Join(r.desk.handlers.names(), ", ")
			end = ending{error: newError("UnknownHandler", text, true)}
		} else {
			end = call(ctx, handler, payload)
		}
		r.desk.post(func() { r.desk.ended(r, end) })
	}()
}

// after calls an act on the desk's goroutine unless the run is settled by then.
func (r *run) after(duration time.Duration, act func()) {
	r.timers = append(r.timers, time.AfterFunc(duration, func() {
		r.desk.post(func() {
			if !r.settled {
				act()
			}
		})
	}))
}

func (r *run) stopTimers() {
	for _, timer := range r.timers {
		timer.Stop()
	}
	r.timers = nil
}

func (r *run) timedOut() {
	text := "no end after " + r.timeout().String()
	end := ending{error: newError("Timeout", text, true), took: time.Since(r.startedAt)}
	r.desk.log.Warn("task.failed", r.fields("type", "Timeout")...)
	r.desk.askToEnd(r, func() { r.tellEnd(end) }, timedOutGrace)
}

// tell publishes an event about an attempt of a Task, once it is confirmed nothing follows.
func (r *run) tell(kind eventKind, end *ending) {
	if !r.direct() {
		r.desk.report(taskEvent(r.message, kind, r.desk.settings.Pod, end), nil)
	}
}

// tellEnd tells a result: of a Task by an event; of a direct message by an event and by what becomes
// of the message.
func (r *run) tellEnd(end ending) {
	switch {
	case !r.direct():
		r.conclude(taskEvent(r.message, end.kind(), r.desk.settings.Pod, &end))
	case end.error != nil && end.error.Retryable && r.deliveries+1 < r.limit():
		for _, lease := range r.leases {
			_ = lease.Reject(true)
		}
	default:
		event := directEvent(&r.desk.settings, r.leases[0], r.deliveries+1, end)
		r.desk.report(event, func() {
			if end.error == nil {
				r.acknowledge()
				return
			}
			reason := end.error.Type + ": " + end.error.Message
			r.desk.report(deadLetter(r.leases[0], r.desk.key(), reason), r.acknowledge)
		})
	}
}

// tellStopped answers an order.
func (r *run) tellStopped(kind eventKind) {
	if kind == released {
		r.tellReleased()
		return
	}
	end := ending{}
	if !r.startedAt.IsZero() {
		end.took = time.Since(r.startedAt)
	}
	r.conclude(taskEvent(r.message, kind, r.desk.settings.Pod, &end))
}

// tellReleased gives it back unfinished. The token is free at once: the operator may publish the
// attempt again before our confirm is here, and that delivery must not be taken for this one.
func (r *run) tellReleased() {
	r.forget()
	if r.direct() {
		r.giveBack()
		return
	}
	end := ending{}
	if !r.startedAt.IsZero() {
		end.took = time.Since(r.startedAt)
	}
	r.desk.report(taskEvent(r.message, released, r.desk.settings.Pod, &end), r.acknowledge)
}

// conclude publishes the outcome of the token, and then acknowledges (6).
func (r *run) conclude(outcome outgoing) {
	r.desk.finished.add(r.token, outcome)
	r.desk.report(outcome, func() {
		r.forget()
		r.acknowledge()
	})
}

func (r *run) acknowledge() {
	for _, lease := range r.leases {
		_ = lease.Ack(false)
	}
	r.leases = nil
}

// giveBack has the broker deliver it again; the broker counts that.
func (r *run) giveBack() {
	for _, lease := range r.leases {
		_ = lease.Nack(false, true)
	}
	r.leases = nil
}

// forget frees the token: another delivery of it is a new run.
func (r *run) forget() {
	if r.desk.byToken[r.token] == r {
		delete(r.desk.byToken, r.token)
	}
}
