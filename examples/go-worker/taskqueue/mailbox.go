package taskqueue

import "sync"

// mailbox takes any number of things without ever making the sender wait, so that nothing that
// serves a connection can be held up by what it serves.
type mailbox[T any] struct {
	mutex sync.Mutex
	items []T
	// more has a value whenever there is something to take.
	more chan struct{}
}

func newMailbox[T any]() *mailbox[T] { return &mailbox[T]{more: make(chan struct{}, 1)} }

func (m *mailbox[T]) put(items ...T) {
	m.mutex.Lock()
	m.items = append(m.items, items...)
	m.mutex.Unlock()
	select {
	case m.more <- struct{}{}:
	default:
	}
}

// take returns everything that is in it, oldest first.
func (m *mailbox[T]) take() []T {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	items := m.items
	m.items = nil
	return items
}
