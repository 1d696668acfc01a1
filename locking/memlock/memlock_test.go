package memlock

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

// Waiters get in in the order in which they came, whatever the others do.
func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Locker{}
		held, err := l.Acquire(t.Context(), "item/a", domain.GrantID{})
		require.NoError(t, err)
		var mu sync.Mutex
		var order []int
		for i := range 10 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				lease, err := l.Acquire(ctx, "item/a", domain.GrantID{})
				if err != nil {
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				_ = lease.Release(ctx)
			}()
			synctest.Wait() // it stands in the queue
			if i%3 == 1 {
				cancel()
				synctest.Wait() // it has left
			}
			defer cancel()
		}
		require.NoError(t, held.Release(t.Context()))
		synctest.Wait()
		require.Equal(t, []int{0, 2, 3, 5, 6, 8, 9}, order)
		require.Empty(t, l.queues, "a key that nobody wants takes no memory")
	})
}

func TestKeysAreIndependent(t *testing.T) {
	l := &Locker{}
	a, err := l.Acquire(t.Context(), "item/a", domain.GrantID{})
	require.NoError(t, err)
	b, err := l.Acquire(t.Context(), "item/b", domain.GrantID{})
	require.NoError(t, err)
	require.NoError(t, a.Release(t.Context()))
	require.NoError(t, a.Release(t.Context()), "a second release is harmless")
	require.NoError(t, b.Release(t.Context()))
	require.Empty(t, l.queues)
}

// Waits that are cancelled at any moment leave nothing, and never two are inside.
func TestCancelledWaits(t *testing.T) {
	l := &Locker{}
	inside, wg := make(chan struct{}, 1), sync.WaitGroup{}
	for range 10_000 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), rand.N(2*time.Millisecond))
			defer cancel()
			lease, err := l.Acquire(ctx, "item/a", domain.GrantID{})
			if err != nil {
				return
			}
			select {
			case inside <- struct{}{}:
				<-inside
			default:
				t.Error("two holders were inside at once")
			}
			_ = lease.Release(ctx)
		})
	}
	wg.Wait()
	require.Empty(t, l.queues)
}
