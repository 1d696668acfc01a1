// Package memlock is the strategy local: a mutex for each key, in this process. It is the plausible mistake: correct as
// long as there is one instance, and of no use at all with two.
//
// It promises that waiters get in first come, first served, that a waiter whose context ends leaves the queue, and that a
// key which nobody holds or waits for takes no memory. It issues no tokens: a number that another process cannot order is
// none.
package memlock

import (
	"context"
	"slices"
	"sync"

	"fencepost/domain"
	"fencepost/locking"
)

// Name and summary of the strategy.
const (
	Name    = "local"
	Summary = "a mutex in each process; excludes nobody in another one"
)

// Open makes the backend.
func Open() *locking.Backend {
	return &locking.Backend{Name: Name, Summary: Summary, Locker: &Locker{}}
}

// Locker is a set of mutexes, one for each key. The zero value is ready.
type Locker struct {
	mu     sync.Mutex
	queues map[domain.Key][]chan struct{} // the holder's first, then those who wait, in order of arrival
}

var _ locking.Locker = (*Locker)(nil)

// Acquire implements locking.Locker. The lease has no term: it ends with its release, or with the process.
func (l *Locker) Acquire(ctx context.Context, key domain.Key, _ domain.GrantID) (*locking.Lease, error) {
	turn := make(chan struct{})
	l.mu.Lock()
	if l.queues == nil {
		l.queues = map[domain.Key][]chan struct{}{}
	}
	l.queues[key] = append(l.queues[key], turn)
	if len(l.queues[key]) == 1 {
		close(turn)
	}
	l.mu.Unlock()

	select {
	case <-turn:
		// The turn may have come together with the end of the context; then either answer is right.
	case <-ctx.Done():
		l.leave(key, turn)
		return nil, context.Cause(ctx)
	}
	var once sync.Once
	return &locking.Lease{Release: func(context.Context) error {
		once.Do(func() { l.leave(key, turn) })
		return nil
	}}, nil
}

// leave takes turn out of the queue, wherever it stands, and lets the next in if it stood first.
func (l *Locker) leave(key domain.Key, turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue := l.queues[key]
	at := slices.Index(queue, turn)
	queue = slices.Delete(queue, at, at+1)
	if len(queue) == 0 {
		delete(l.queues, key)
		return
	}
	l.queues[key] = queue
	if at == 0 {
		close(queue[0])
	}
}
