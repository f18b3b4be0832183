package taskqueue

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"
)

// farewell is how long confirms may take after the grace period before the worker leaves without.
const farewell = 4 * time.Second

// Worker takes work from one TaskQueue.
type Worker struct {
	settings Settings
	log      *slog.Logger
	handlers handlers
}

// New makes a worker; add handlers to it, then Run it.
func New(settings Settings, log *slog.Logger) *Worker {
	return &Worker{settings: settings, log: log, handlers: handlers{byName: map[string]Handler{}}}
}

// Handle names a handler: a Task asks for it in spec.handler.
func (w *Worker) Handle(name string, handler Handler) { w.handlers.byName[name] = handler }

// HandleDefault says which handler runs messages that name none.
func (w *Worker) HandleDefault(name string) { w.handlers.fallback = name }

// Run works until the context ends or drain is ordered, and then until what is in hand is done with:
// after the context's end within the grace period. A worker that has drained on order then waits for
// the context's end: its pod is about to be removed, and would start it again if it ended now.
func (w *Worker) Run(ctx context.Context) error {
	lines, cut := context.WithCancel(context.Background())
	outcomes := newOutcomes(w.settings.Broker, "worker "+w.settings.Pod+" outcomes", w.log)
	desk := newDesk(w.settings, &w.handlers, outcomes, w.log)
	desk.abort = func() { os.Exit(ExitCode) }
	heart := newHeart(desk)
	desk.changed, desk.turned, outcomes.beat = heart.beatNow, heart.turned, heart.beat
	line := newLine(w.settings, desk, w.log)

	draining := make(chan struct{})
	desk.leaving = sync.OnceFunc(func() { close(draining) })
	stopHealth, err := serveHealth(w.settings.HealthPort, desk, line)
	if err != nil {
		cut()
		return err
	}
	defer stopHealth()

	var parts sync.WaitGroup
	for _, part := range []func(context.Context){desk.work, outcomes.run, line.run} {
		parts.Add(1)
		go func() {
			defer parts.Done()
			part(lines)
		}()
	}
	w.log.Info("worker.starting", "namespace", w.settings.Namespace, "queue", w.settings.Queue,
		"pod", w.settings.Pod, "slots", w.settings.Slots, "handlers", w.handlers.names())

	select {
	case <-ctx.Done():
	case <-draining:
	}
	desk.post(desk.stop)
	line.stopConsuming()
	select {
	case <-desk.finishedAll: // an order to drain has no limit
	case <-ctx.Done():
		w.finish(desk)
	}
	w.checkKeyedEnded(desk)
	desk.post(func() { desk.left = true })
	heart.stop()
	w.linger(ctx)
	cut()
	parts.Wait()
	w.log.Info("worker.stopped")
	return nil
}

// linger waits for the context's end, for a while. The heartbeats go on.
func (w *Worker) linger(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	w.log.Info("worker.drained", "waits", w.settings.Drained.String())
	select {
	case <-ctx.Done():
	case <-time.After(w.settings.Drained):
		w.log.Warn("worker.not_removed", "todo", "it was ordered to drain and no signal came: it ends "+
			"by itself, and takes work again if its container is started again")
	}
}

// finish gives what runs the grace period, and what there is to tell a little more.
func (w *Worker) finish(desk *desk) {
	w.log.Info("worker.stopping", "grace", w.settings.Grace.String())
	select {
	case <-desk.finishedAll:
		return
	case <-time.After(w.settings.Grace):
	}
	desk.post(desk.releaseRunning)
	select {
	case <-desk.finishedAll:
	case <-time.After(farewell):
		w.log.Warn("outcomes.unconfirmed", "todo", "the operator publishes again what it misses")
	}
}

// checkKeyedEnded ends the process if a keyed handler runs on: closing the connections has the broker
// deliver its message again.
func (w *Worker) checkKeyedEnded(desk *desk) {
	checked := make(chan struct{})
	desk.post(func() {
		defer close(checked)
		for r := range desk.running {
			if r.keyed() {
				desk.abort()
			}
		}
	})
	<-checked
}
