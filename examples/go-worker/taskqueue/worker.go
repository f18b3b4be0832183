package taskqueue

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"
)

// confirmGrace is how long confirms may take after the grace period before the worker exits without.
const confirmGrace = 4 * time.Second

// Worker runs work of one TaskQueue.
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

// Run works until the context ends or a command to drain comes, and then until running work has ended:
// after the context's end within the grace period. A worker that has drained on command then waits for
// the context's end: its pod is about to be removed, and would restart it if it ended now.
func (w *Worker) Run(ctx context.Context) error {
	connected, disconnect := context.WithCancel(context.Background())
	outcomes := newOutcomePublisher(w.settings.Broker, "worker "+w.settings.Pod+" outcomes", w.log)
	dispatcher := newDispatcher(w.settings, &w.handlers, outcomes, w.log)
	dispatcher.abort = func() { os.Exit(ExitCode) }
	heartbeats := newHeartbeatSender(dispatcher)
	dispatcher.onStateChanged, dispatcher.onBusyChanged, outcomes.onConnected = heartbeats.sendNow, heartbeats.onBusyChanged, heartbeats.run
	consumer := newConsumer(w.settings, dispatcher, w.log)

	draining := make(chan struct{})
	dispatcher.onDrain = sync.OnceFunc(func() { close(draining) })
	stopHealth, err := serveHealth(w.settings.HealthPort, dispatcher, consumer)
	if err != nil {
		disconnect()
		return err
	}
	defer stopHealth()

	var parts sync.WaitGroup
	for _, part := range []func(context.Context){dispatcher.work, outcomes.run, consumer.run} {
		parts.Add(1)
		go func() {
			defer parts.Done()
			part(connected)
		}()
	}
	w.log.Info("worker.started", "namespace", w.settings.Namespace, "queue", w.settings.Queue,
		"pod", w.settings.Pod, "slots", w.settings.Slots, "handlers", w.handlers.names())

	select {
	case <-ctx.Done():
	case <-draining:
	}
	dispatcher.post(dispatcher.stop)
	consumer.stopConsuming()
	select {
	case <-dispatcher.done: // a command to drain has no time limit
	case <-ctx.Done():
		w.finish(dispatcher)
	}
	w.checkKeyedEnded(dispatcher)
	dispatcher.post(func() { dispatcher.drained = true })
	heartbeats.stop()
	w.waitForRemoval(ctx)
	disconnect()
	parts.Wait()
	w.log.Info("worker.stopped")
	return nil
}

// waitForRemoval waits for the context's end, for a while. The heartbeats go on.
func (w *Worker) waitForRemoval(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	w.log.Info("worker.drained", "waits", w.settings.Drained.String())
	select {
	case <-ctx.Done():
	case <-time.After(w.settings.Drained):
		w.log.Warn("worker.not_removed", "hint", "it drained on command and no signal came: it exits "+
			"by itself, and works again if its container is restarted")
	}
}

// finish gives running work the grace period, and its reports a little more.
func (w *Worker) finish(dispatcher *dispatcher) {
	w.log.Info("worker.stop_started", "grace", w.settings.Grace.String())
	select {
	case <-dispatcher.done:
		return
	case <-time.After(w.settings.Grace):
	}
	dispatcher.post(dispatcher.releaseRunning)
	select {
	case <-dispatcher.done:
	case <-time.After(confirmGrace):
		w.log.Warn("outcome.not_confirmed", "hint", "the operator publishes again what has no outcome")
	}
}

// checkKeyedEnded ends the process if a keyed handler runs on: closing the connections makes the
// broker deliver its message again.
func (w *Worker) checkKeyedEnded(dispatcher *dispatcher) {
	checked := make(chan struct{})
	dispatcher.post(func() {
		defer close(checked)
		for r := range dispatcher.running {
			if r.keyed() {
				dispatcher.abort()
			}
		}
	})
	<-checked
}
