// Package taskqueue is a worker for TaskQueues, written from docs/reference/message-contract.md
// alone; the numbers in comments are those of its section "Worker behaviour".
//
//	worker := taskqueue.New(settings, logger)
//	worker.Handle("echo", func(ctx context.Context, payload json.RawMessage) (any, error) {
//		return payload, nil
//	})
//	err := worker.Run(ctx)
//
// The parts, each in a file of its own:
//
//   - contract.go, event.go, command.go: messages in and out, without any I/O.
//   - dispatcher.go, runs.go, keyed.go: the attempts of the worker. One goroutine owns their
//     state; others post functions to it.
//   - consumer.go, command_consumer.go: the connection for work and commands.
//   - outcomes.go, heartbeat.go: the connection for outcomes and heartbeats.
//   - worker.go: start and graceful shutdown.
package taskqueue
