package taskqueue

import "sync"

// unboundedQueue never makes the sender wait, so that a goroutine that serves a connection is never
// blocked by what it serves.
type unboundedQueue[T any] struct {
	mutex sync.Mutex
	items []T
	// more has a value whenever there are items.
	more chan struct{}
}

func newUnboundedQueue[T any]() *unboundedQueue[T] {
	return &unboundedQueue[T]{more: make(chan struct{}, 1)}
}

func (m *unboundedQueue[T]) put(items ...T) {
	m.mutex.Lock()
	m.items = append(m.items, items...)
	m.mutex.Unlock()
	select {
	case m.more <- struct{}{}:
	default:
	}
}

// drain removes and returns all items, oldest first.
func (m *unboundedQueue[T]) drain() []T {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	items := m.items
	m.items = nil
	return items
}
