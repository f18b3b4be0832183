package taskqueue

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// handlers are what a worker can run.
type handlers struct {
	byName   map[string]Handler
	fallback string
}

// find returns the handler of a name, nil if there is none, and the name it searched for.
func (h *handlers) find(name string) (Handler, string) {
	if name == "" {
		name = h.fallback
	}
	if name == "" {
		return nil, "for messages without a type"
	}
	return h.byName[name], name
}

func (h *handlers) names() []string {
	names := make([]string, 0, len(h.byName))
	for name := range h.byName {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// dispatcher runs deliveries on the worker's slots and owns their state. Only the goroutine in `work`
// touches it; everybody else passes functions to `post`.
//
// A token runs at most once at a time here, and never again while its outcome is kept; another delivery
// of it joins the first. A slot is occupied until the handler has returned, even if the end was
// reported before.
type dispatcher struct {
	settings Settings
	handlers *handlers
	outcomes *outcomePublisher
	log      *slog.Logger
	inbox    *unboundedQueue[func()]
	// store keeps results that no status takes; nil: there is none.
	store *resultStore

	// prefixed: the operator of this installation that has connected last knows reservedPrefix.
	prefixed bool
	commands *commandLog
	finished *outcomeCache
	byToken  map[string]*run
	waiting  []*run
	running  map[*run]bool
	// unconfirmed counts the reports that are not confirmed.
	unconfirmed int
	// silence returns how long ago the consume connection last read something; nil: there is no
	// connection.
	silence func() time.Duration
	// silent counts the consecutive checks that found the broker silent for too long.
	silent int

	stopping bool
	// drained: it has stopped, and nothing is left to run or report.
	drained bool
	// consuming: deliveries may still come.
	consuming bool
	// registered: there has been a consumer.
	registered bool
	// onStateChanged is called when a heartbeat is due early.
	onStateChanged func()
	// onBusyChanged is called when the worker may have become busy or idle.
	onBusyChanged func()
	// onDrain is called on a command to drain.
	onDrain func()
	// abort ends the process at once.
	abort func()
	// done is closed when a stopping worker has nothing left to run or report.
	done chan struct{}
}

func newDispatcher(settings Settings, handlers *handlers, outcomes *outcomePublisher, log *slog.Logger) *dispatcher {
	return &dispatcher{
		settings: settings,
		handlers: handlers,
		outcomes: outcomes,
		log:      log,
		inbox:    newUnboundedQueue[func()](),
		store:    newResultStore(settings.Results),
		commands: newCommandLog(),
		finished: newOutcomeCache(),
		byToken:  map[string]*run{},
		running:  map[*run]bool{},
		done:     make(chan struct{}),
	}
}

// post has a function called on the dispatcher's goroutine, after all posted before.
func (d *dispatcher) post(act func()) { d.inbox.put(act) }

// work calls what is posted until the context ends.
func (d *dispatcher) work(ctx context.Context) {
	ticker := time.NewTicker(silenceCheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			d.checkSilence()
		case <-d.inbox.more:
			for _, act := range d.inbox.drain() {
				act()
			}
		}
		d.fill()
		d.closeIfDone()
	}
}

func (d *dispatcher) key() string { return RoutingKey(d.settings.Namespace, d.settings.Queue) }

// report publishes until confirmed; confirmed is then called on the dispatcher's goroutine.
func (d *dispatcher) report(message outgoing, confirmed func()) {
	d.unconfirmed++
	message.confirmed = func() {
		d.post(func() {
			d.unconfirmed--
			if confirmed != nil {
				confirmed()
			}
		})
	}
	d.outcomes.report(message)
}

// checkQueue refuses what somebody has moved here from another TaskQueue's queue. The broker lets a
// worker report for its own TaskQueue only, and closes the channel over anything else, without end.
func (d *dispatcher) checkQueue(m *message) error {
	if key := RoutingKey(m.namespace, m.queue); key != d.key() {
		return fmt.Errorf("headers tq-namespace and tq-queue name TaskQueue %s, this worker is of %s: move "+
			"it to the queue it is for", key, d.key())
	}
	return nil
}

// onDelivery runs a delivery, joins it to a run of its token, or answers it without a run (3, 4).
func (d *dispatcher) onDelivery(delivery *amqp.Delivery) {
	m, err := parse(delivery)
	if err == nil && !m.direct() {
		err = d.checkQueue(m)
	}
	acknowledge := func() { _ = delivery.Ack(false) }
	if err != nil {
		d.log.Warn("message.dead_lettered", "reason", err.Error())
		d.report(deadLetter(delivery, d.key(), err.Error()), acknowledge)
		return
	}
	r := &run{
		message:    m,
		dispatcher: d,
		deliveries: deliveriesSoFar(delivery),
		leases:     []*amqp.Delivery{delivery},
	}
	if m.direct() {
		r.directTimeout, r.directLimit = d.settings.directLimits()
		d.admit(r)
		return
	}
	if m.checkpointed == nil {
		d.prefixed = false // an older operator reads the inbox by now, and announces nothing
	}
	if known := d.byToken[m.token]; known != nil {
		known.leases = append(known.leases, delivery)
		return
	}
	if outcome, known := d.finished.get(m.token); known {
		d.log.Info("outcome.repeated", r.fields()...)
		d.report(outcome, acknowledge)
		return
	}
	if kind, commanded := d.commands.get(m.token); commanded {
		d.log.Info(string(kind.answer()), r.fields("reason", "commanded before it came")...)
		d.report(taskEvent(m, kind.answer(), d.settings.Pod, &ending{}), acknowledge)
		return
	}
	d.byToken[m.token] = r
	d.admit(r)
}

func (d *dispatcher) admit(r *run) {
	if former := d.ending(r); former != nil {
		former.next = r
		return
	}
	switch {
	case d.stopping:
		r.settled = true
		r.reportReleased()
	case r.deliveries > 0 && r.checkpointed != nil && (*r.checkpointed || !r.keyed()):
		d.log.Info("task.released", r.fields("reason", "delivered again: the worker that had it may run it still")...)
		r.settled = true
		r.reportReleased()
	case r.deliveries >= r.limit():
		text := "delivered the maximum number of times, and no worker reported its end"
		r.settled = true
		r.reportEnd(ending{error: newError("WorkerLost", text, true)})
	default:
		d.waiting = append(d.waiting, r)
	}
}

// ending returns the earlier run of this attempt whose handler has not returned yet.
func (d *dispatcher) ending(r *run) *run {
	if r.direct() {
		return nil
	}
	for each := range d.running {
		if each.token == r.token {
			return each
		}
	}
	return nil
}

func (d *dispatcher) fill() {
	for len(d.waiting) > 0 && len(d.running) < d.settings.Slots {
		r := d.waiting[0]
		d.waiting = d.waiting[1:]
		d.running[r] = true
		if len(d.running) == 1 {
			d.onBusyChanged()
		}
		r.start()
	}
}

// onHandlerReturned frees the slot, and reports the end unless it was decided before.
func (d *dispatcher) onHandlerReturned(r *run, end ending) {
	delete(d.running, r)
	if len(d.running) == 0 {
		d.onBusyChanged()
	}
	r.stopTimers()
	r.expiry.cancel()
	if !r.settled {
		r.settled = true
		if end.error != nil {
			d.log.Warn("task.failed", r.fields("type", end.error.Type, "message", end.error.Message)...)
		}
		if end.released {
			r.reportReleased()
		} else {
			r.reportEnd(end)
		}
	} else if r.onReturned != nil {
		r.onReturned()
	}
	if next := r.next; next != nil {
		if kind, commanded := d.commands.get(next.token); commanded {
			next.settled = true
			next.reportStopped(kind.answer())
		} else {
			d.admit(next)
		}
	}
}

// requestEnd settles a run whose handler has not returned. An attempt without a key is
// reported at once; a keyed one when the handler has returned, within the grace after its time-out.
func (d *dispatcher) requestEnd(r *run, report func(), grace time.Duration) {
	r.settled = true
	r.stop()
	if !r.keyed() {
		report()
		return
	}
	r.onReturned = report
	by := r.startedAt.Add(r.timeout() + grace)
	if soon := time.Now().Add(lostGrace); soon.After(by) {
		by = soon
	}
	d.setExpiry(r, by, false)
}

// onCommand obeys a command, or keeps it until its message comes (7).
func (d *dispatcher) onCommand(o command) {
	if o.Kind == commandDrain {
		d.onDrain()
		return
	}
	if o.Token == noToken {
		if o.Installation == d.settings.Installation {
			d.prefixed = slices.Contains(o.Understands, reservedTypes)
		}
		return
	}
	d.commands.add(o, time.Now())
	r := d.byToken[o.Token]
	if r == nil || r.settled {
		return
	}
	kind := o.Kind.answer()
	if d.running[r] {
		d.log.Info(string(kind), r.fields("reason", "commanded")...)
		d.requestEnd(r, func() { r.reportStopped(kind) }, 0)
	} else if d.removeWaiting(func(each *run) bool { return each == r }) != nil {
		d.log.Info(string(kind), r.fields("reason", "commanded")...)
		r.settled = true
		r.reportStopped(kind)
	}
	// Else it is the next run of a token, and is answered in its turn.
}

// removeWaiting removes and returns the waiting runs of which the condition holds.
func (d *dispatcher) removeWaiting(condition func(*run) bool) []*run {
	var removed, kept []*run
	for _, r := range d.waiting {
		if condition(r) {
			removed = append(removed, r)
		} else {
			kept = append(kept, r)
		}
	}
	d.waiting = kept
	return removed
}

// onConsumerLost drops the deliveries of a closed channel, consumer or connection (9). What runs goes
// on and is reported when it ends, unless it is keyed.
func (d *dispatcher) onConsumerLost() {
	for _, r := range d.removeWaiting(func(*run) bool { return true }) {
		r.releaseToken()
	}
	d.cutOff("the connection to the broker was lost", time.Now().Add(lostGrace), false)
}

// stop accepts no more work and releases what has not begun (8).
func (d *dispatcher) stop() {
	d.stopping = true
	d.onStateChanged()
	for _, r := range d.removeWaiting(func(*run) bool { return true }) {
		r.settled = true
		r.reportReleased()
	}
}

// releaseRunning releases what still runs at the end of the grace period.
func (d *dispatcher) releaseRunning() {
	for r := range d.running {
		if !r.settled {
			d.log.Info("task.released", r.fields()...)
			d.requestEnd(r, r.reportReleased, 0)
		}
	}
}

// closeIfDone closes done once everything is reported and no keyed handler runs on.
func (d *dispatcher) closeIfDone() {
	if !d.stopping || d.consuming || d.unconfirmed > 0 {
		return
	}
	for r := range d.running {
		if !r.settled || r.keyed() {
			return
		}
	}
	select {
	case <-d.done:
	default:
		close(d.done)
	}
}
