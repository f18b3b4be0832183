package taskqueue

import (
	"context"
	"log/slog"
	"sort"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// handlers are what a worker can run.
type handlers struct {
	byName   map[string]Handler
	fallback string
}

// find returns the handler of a name, nil when there is none, and the name that was looked for.
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

// desk is what the worker has in hand. One goroutine owns it: `work`. Everybody else hands it
// functions by `post`.
//
// A token runs at most once at a time here, and never again while its outcome is remembered; another
// delivery of it joins the first. A slot is taken until the handler has returned, even where the end
// was told before.
type desk struct {
	settings Settings
	handlers *handlers
	outcomes *outcomes
	log      *slog.Logger
	inbox    *mailbox[func()]

	orders   *orderBook
	finished *finishedTokens
	byToken  map[string]*run
	waiting  []*run
	running  map[*run]bool
	// untold is how many reports are not confirmed.
	untold int
	// silence tells how long the broker has not been heard on the consume connection; nil: there is
	// no connection.
	silence func() time.Duration
	// silent counts the looks in a row at which the broker was silent for too long.
	silent int

	stopping bool
	// left: it has stopped, and has nothing in hand.
	left bool
	// consuming: deliveries may still come.
	consuming bool
	// registered: there has been a consumer.
	registered bool
	// changed is called when the operator should hear of this worker before its time.
	changed func()
	// turned is called when the worker may have become busy or idle.
	turned func()
	// leaving is called when drain is ordered.
	leaving func()
	// abort ends the process at once.
	abort func()
	// finishedAll is closed when a stopping worker has nothing more in hand.
	finishedAll chan struct{}
}

func newDesk(settings Settings, handlers *handlers, outcomes *outcomes, log *slog.Logger) *desk {
	return &desk{
		settings:    settings,
		handlers:    handlers,
		outcomes:    outcomes,
		log:         log,
		inbox:       newMailbox[func()](),
		orders:      newOrderBook(),
		finished:    newFinishedTokens(),
		byToken:     map[string]*run{},
		running:     map[*run]bool{},
		finishedAll: make(chan struct{}),
	}
}

// post has a function called on the desk's goroutine, after all posted before.
func (d *desk) post(act func()) { d.inbox.put(act) }

// work calls what is posted until the context ends.
func (d *desk) work(ctx context.Context) {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			d.listen()
		case <-d.inbox.more:
			for _, act := range d.inbox.take() {
				act()
			}
		}
		d.fill()
		d.noteIdle()
	}
}

func (d *desk) key() string { return RoutingKey(d.settings.Namespace, d.settings.Queue) }

// report publishes until confirmed; confirmed is then called on the desk's goroutine.
func (d *desk) report(message outgoing, confirmed func()) {
	d.untold++
	message.confirmed = func() {
		d.post(func() {
			d.untold--
			if confirmed != nil {
				confirmed()
			}
		})
	}
	d.outcomes.report(message)
}

// delivered takes a delivery: it is run, joins a run of its token, or is answered without (3, 4).
func (d *desk) delivered(delivery *amqp.Delivery) {
	m, err := parse(delivery)
	acknowledge := func() { _ = delivery.Ack(false) }
	if err != nil {
		d.log.Warn("message.malformed", "reason", err.Error())
		d.report(deadLetter(delivery, d.key(), err.Error()), acknowledge)
		return
	}
	r := &run{
		message:    m,
		desk:       d,
		deliveries: deliveriesSoFar(delivery),
		leases:     []*amqp.Delivery{delivery},
	}
	if m.direct() {
		d.admit(r)
		return
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
	if kind, ordered := d.orders.get(m.token); ordered {
		d.log.Info(string(kind.answer()), r.fields("reason", "ordered before it came")...)
		d.report(taskEvent(m, kind.answer(), d.settings.Pod, &ending{}), acknowledge)
		return
	}
	d.byToken[m.token] = r
	d.admit(r)
}

func (d *desk) admit(r *run) {
	if former := d.ending(r); former != nil {
		former.successor = r
		return
	}
	switch {
	case d.stopping:
		r.settled = true
		r.tellReleased()
	case r.deliveries >= r.limit():
		text := "it was delivered as often as is allowed, and no worker told its end"
		r.settled = true
		r.tellEnd(ending{error: newError("WorkerLost", text, true)})
	default:
		d.waiting = append(d.waiting, r)
	}
}

// ending returns the earlier run of this attempt whose handler has not returned yet.
func (d *desk) ending(r *run) *run {
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

func (d *desk) fill() {
	for len(d.waiting) > 0 && len(d.running) < d.settings.Slots {
		r := d.waiting[0]
		d.waiting = d.waiting[1:]
		d.running[r] = true
		if len(d.running) == 1 {
			d.turned()
		}
		r.start()
	}
}

// ended takes note that a handler has returned.
func (d *desk) ended(r *run, end ending) {
	delete(d.running, r)
	if len(d.running) == 0 {
		d.turned()
	}
	r.stopTimers()
	r.expiry.cancel()
	if !r.settled {
		r.settled = true
		if end.error != nil {
			d.log.Warn("task.failed", r.fields("type", end.error.Type, "message", end.error.Message)...)
		}
		r.tellEnd(end)
	} else if r.farewell != nil {
		r.farewell()
	}
	if next := r.successor; next != nil {
		if kind, ordered := d.orders.get(next.token); ordered {
			next.settled = true
			next.tellStopped(kind.answer())
		} else {
			d.admit(next)
		}
	}
}

// askToEnd settles a run whose handler has not returned. What has no key is told at once; what has
// one is told when the handler has returned, within the grace after its time-out.
func (d *desk) askToEnd(r *run, tell func(), grace time.Duration) {
	r.settled = true
	r.stop()
	if !r.keyed() {
		tell()
		return
	}
	r.farewell = tell
	by := r.startedAt.Add(r.timeout() + grace)
	if soon := time.Now().Add(lostGrace); soon.After(by) {
		by = soon
	}
	d.expect(r, by, false)
}

// ordered obeys an order, or keeps it for when its message comes (7).
func (d *desk) ordered(o order) {
	if o.Kind == orderDrain {
		d.leaving()
		return
	}
	d.orders.add(o, time.Now())
	r := d.byToken[o.Token]
	if r == nil || r.settled {
		return
	}
	kind := o.Kind.answer()
	if d.running[r] {
		d.log.Info(string(kind), r.fields("reason", "ordered")...)
		d.askToEnd(r, func() { r.tellStopped(kind) }, 0)
	} else if d.takeWaiting(func(each *run) bool { return each == r }) != nil {
		d.log.Info(string(kind), r.fields("reason", "ordered")...)
		r.settled = true
		r.tellStopped(kind)
	}
	// Else it is a successor and is answered in its turn.
}

// takeWaiting removes and returns the waiting runs of which the condition holds.
func (d *desk) takeWaiting(condition func(*run) bool) []*run {
	var taken, left []*run
	for _, r := range d.waiting {
		if condition(r) {
			taken = append(taken, r)
		} else {
			left = append(left, r)
		}
	}
	d.waiting = left
	return taken
}

// lost forgets the deliveries of a channel, consumer or connection that is gone (9). What runs goes
// on and is told when it ends, unless it is keyed.
func (d *desk) lost() {
	for _, r := range d.takeWaiting(func(*run) bool { return true }) {
		r.forget()
	}
	d.cutOff("the connection to the broker was lost", time.Now().Add(lostGrace), false)
}

// stop takes no more work and gives back what has not begun (8).
func (d *desk) stop() {
	d.stopping = true
	d.changed()
	for _, r := range d.takeWaiting(func(*run) bool { return true }) {
		r.settled = true
		r.tellReleased()
	}
}

// releaseRunning gives back what runs on at the end of the grace period.
func (d *desk) releaseRunning() {
	for r := range d.running {
		if !r.settled {
			d.log.Info("task.released", r.fields()...)
			d.askToEnd(r, r.tellReleased, 0)
		}
	}
}

// noteIdle tells when a stopping worker has told everything and no keyed handler runs on.
func (d *desk) noteIdle() {
	if !d.stopping || d.consuming || d.untold > 0 {
		return
	}
	for r := range d.running {
		if !r.settled || r.keyed() {
			return
		}
	}
	select {
	case <-d.finishedAll:
	default:
		close(d.finishedAll)
	}
}
