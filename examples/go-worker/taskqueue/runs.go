package taskqueue

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// startedAfter is how long an attempt runs before it reports task.started.
const startedAfter = 500 * time.Millisecond

// run is one attempt: waiting for a slot, running, or ended and not confirmed.
// Only the dispatcher's goroutine touches it.
type run struct {
	*message
	dispatcher *dispatcher
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

	// saving: a checkpoint is not confirmed yet, and the latest after it waits.
	saving            bool
	waitingCheckpoint json.RawMessage

	// directTimeout and directLimit are those of a direct message, as they were when it came.
	directTimeout time.Duration
	directLimit   int64

	// settled: its end is decided, whatever comes later does not count.
	settled bool
	// disowned: the broker may deliver it to another worker, so nothing is reported.
	disowned bool
	// onReturned is called when the execution of a settled run has ended.
	onReturned func()
	// next is the same attempt, delivered again while this execution is ending.
	next *run
	// expiry ends the process if the execution of a keyed run has not ended by then.
	expiry *expiry
}

func (r *run) keyed() bool { return r.fence != nil }

func (r *run) timeout() time.Duration {
	if r.direct() {
		return r.directTimeout
	}
	return time.Duration(r.timeoutSeconds) * time.Second
}

func (r *run) limit() int64 {
	if r.direct() {
		return r.directLimit
	}
	return r.maxDeliveries
}

func (r *run) info() Attempt {
	if r.direct() {
		s := r.dispatcher.settings
		return Attempt{
			Task:        s.Namespace + "/" + s.Queue,
			UID:         r.correlationID,
			Number:      min(r.deliveries+1, r.directLimit),
			MaxAttempts: r.directLimit,
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

// start runs the handler in its own goroutine (5). A goroutine cannot be stopped from outside:
// one that ignores its context keeps its slot until it returns.
func (r *run) start() {
	r.startedAt = time.Now()
	r.progress = &progress{}
	ctx := context.WithValue(context.Background(), attemptKey{}, r.info())
	ctx = context.WithValue(ctx, checkpointsKey{}, r.checkpoints())
	ctx, stop := context.WithCancel(context.WithValue(ctx, progressKey{}, r.progress))
	r.stop = stop
	if r.timeout() > startedAfter {
		r.after(startedAfter, func() { r.report(started, nil) })
	}
	r.after(r.timeout(), r.timedOut)
	handler, name := r.dispatcher.handlers.find(r.handler)
	payload := append(json.RawMessage(nil), r.payload...)
	go func() {
		defer stop()
		// Also of a handler that ends its goroutine (runtime.Goexit).
		end := ending{error: newError("Panic", "the handler ended its goroutine", true)}
		defer func() { r.dispatcher.post(func() { r.dispatcher.onHandlerReturned(r, end) }) }()
		if handler == nil {
			text := "no handler " + name + " here; known: " + strings.Join(r.dispatcher.handlers.names(), ", ")
			end = ending{error: newError("UnknownHandler", text, true)}
		} else {
			end = call(ctx, handler, payload)
		}
		if store := r.dispatcher.store; store != nil && !r.direct() {
			end = store.keep(ctx, r.message, end, r.timeout())
		}
		if end.unstored != nil {
			end = withoutStore(end)
		}
	}()
}

// checkpoints are those of its handler.
func (r *run) checkpoints() *checkpoints {
	c := &checkpoints{last: r.checkpoint, known: true}
	if !r.direct() && r.checkpointed != nil {
		c.known = r.deliveries == 0
		c.save = func(checkpoint json.RawMessage) {
			r.dispatcher.post(func() { r.saveCheckpoint(checkpoint) })
		}
	}
	return c
}

// after calls an act on the dispatcher's goroutine unless the run is settled by then.
func (r *run) after(duration time.Duration, act func()) {
	r.timers = append(r.timers, time.AfterFunc(duration, func() {
		r.dispatcher.post(func() {
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
	r.dispatcher.log.Warn("task.failed", r.fields("type", "Timeout")...)
	r.dispatcher.requestEnd(r, func() { r.reportEnd(end) }, timedOutGrace)
}

// report publishes an event about an attempt of a Task; nothing follows its confirm.
func (r *run) report(kind eventKind, end *ending) {
	if !r.direct() {
		r.dispatcher.report(taskEvent(r.message, kind, r.dispatcher.settings.Pod, end), nil)
	}
}

// reportEnd reports a result: for a Task by an event; for a direct message by an event and by what
// happens to the message.
func (r *run) reportEnd(end ending) {
	if end.snooze != nil && r.direct() {
		text := "a direct message cannot be snoozed, because no Task keeps it: create a Task instead"
		end = ending{error: newError("NotSnoozed", text, false), took: end.took}
	} else if end.snooze != nil && r.checkpointed == nil {
		text := "the operator is older than this worker and knows no snooze: update it"
		end = ending{error: newError("Snooze", text, true), retryAfter: *end.snooze, took: end.took}
	}
	sent := end
	sent.error = end.error.onWire(r.dispatcher.prefixed)
	switch {
	case !r.direct():
		r.publishOutcome(taskEvent(r.message, end.kind(), r.dispatcher.settings.Pod, &sent))
	case end.error != nil && end.error.Retryable && r.deliveries+1 < r.limit():
		for _, lease := range r.leases {
			_ = lease.Reject(true)
		}
	default:
		event := directEvent(&r.dispatcher.settings, r.leases[0], r.deliveries+1, sent)
		r.dispatcher.report(event, func() {
			if end.error == nil {
				r.acknowledge()
				return
			}
			reason := end.error.Type + ": " + end.error.Message
			r.dispatcher.report(deadLetter(r.leases[0], r.dispatcher.key(), reason), r.acknowledge)
		})
	}
}

// reportStopped answers a command.
func (r *run) reportStopped(kind eventKind) {
	if kind == released {
		r.reportReleased()
		return
	}
	end := ending{}
	if !r.startedAt.IsZero() {
		end.took = time.Since(r.startedAt)
	}
	r.publishOutcome(taskEvent(r.message, kind, r.dispatcher.settings.Pod, &end))
}

// reportReleased reports it unfinished. The token is free at once: the operator may publish the
// attempt again before our confirm is here, and that delivery must not be confused with this one.
func (r *run) reportReleased() {
	r.releaseToken()
	if r.direct() {
		r.requeue()
		return
	}
	r.flushCheckpoint()
	took := time.Duration(0)
	if !r.startedAt.IsZero() {
		took = time.Since(r.startedAt)
	}
	r.dispatcher.report(releasedEvent(r.message, r.dispatcher.settings.Pod, took, r.deliveries), r.acknowledge)
}

// publishOutcome publishes the outcome of the token, and then acknowledges (6).
func (r *run) publishOutcome(outcome outgoing) {
	r.flushCheckpoint()
	r.dispatcher.finished.add(r.token, outcome)
	r.dispatcher.report(outcome, func() {
		r.releaseToken()
		r.acknowledge()
	})
}

func (r *run) acknowledge() {
	for _, lease := range r.leases {
		_ = lease.Ack(false)
	}
	r.leases = nil
}

// requeue makes the broker deliver it again, and count that.
func (r *run) requeue() {
	for _, lease := range r.leases {
		_ = lease.Nack(false, true)
	}
	r.leases = nil
}

// releaseToken frees the token: another delivery of it is a new run.
func (r *run) releaseToken() {
	if r.dispatcher.byToken[r.token] == r {
		delete(r.dispatcher.byToken, r.token)
	}
}
