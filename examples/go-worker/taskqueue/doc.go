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
//   - contract.go, event.go, order.go: messages in and out, without any I/O.
//   - desk.go, runs.go, keyed.go: what the worker has in hand. One goroutine owns all of it; whatever
//     happens elsewhere is handed to it as a function by its mailbox.
//   - line.go, control.go: the connection work and orders come in by.
//   - outcomes.go, heart.go: the connection outcomes and heartbeats leave by.
//   - worker.go: from the start to the orderly end.
package taskqueue
