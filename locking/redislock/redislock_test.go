package redislock_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/locking"
	"fencepost/locking/redislock"
)

const term = 30 * time.Second

func open(t *testing.T, url string, ttl time.Duration) *locking.Backend {
	t.Helper()
	backend, err := redislock.Open(url, ttl, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, backend.Close()) })
	return backend
}

func client(t *testing.T) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(os.Getenv("FENCEPOST_REDIS_URL"))
	require.NoError(t, err)
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func newKey() domain.Key { return domain.ItemKey(uuid.NewString()) }

func newID() domain.GrantID { return domain.GrantID(uuid.New()) }

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// A lock that already carries the grant's id was taken by a call whose reply was lost: it is ours, with the token it had.
func TestOwnLockIsSuccess(t *testing.T) {
	t.Parallel()
	l, key, id := open(t, os.Getenv("FENCEPOST_REDIS_URL"), term).Locker, newKey(), newID()
	first, err := l.Acquire(within(t, 5*time.Second), key, id)
	require.NoError(t, err)
	again, err := l.Acquire(within(t, 5*time.Second), key, id)
	require.NoError(t, err)
	require.Equal(t, first.Token, again.Token)
	require.NoError(t, again.Release(t.Context()))
}

// Tokens are exact beyond 2^53, where the numbers of Lua are not.
func TestLargeTokens(t *testing.T) {
	t.Parallel()
	l, key := open(t, os.Getenv("FENCEPOST_REDIS_URL"), term).Locker, newKey()
	const large = 1<<53 + 2
	require.NoError(t, client(t).Set(t.Context(), "fencepost:{"+string(key)+"}:token", large, 0).Err())
	lease, err := l.Acquire(within(t, 5*time.Second), key, newID())
	require.NoError(t, err)
	require.EqualValues(t, large+1, lease.Token)
	require.NoError(t, lease.Release(t.Context()))
}

// A counter that cannot go on starts again, and does not stop the lock.
func TestLastToken(t *testing.T) {
	t.Parallel()
	l, key := open(t, os.Getenv("FENCEPOST_REDIS_URL"), term).Locker, newKey()
	require.NoError(t, client(t).Set(t.Context(), "fencepost:{"+string(key)+"}:token", int64(math.MaxInt64), 0).Err())
	lease, err := l.Acquire(within(t, 5*time.Second), key, newID())
	require.NoError(t, err)
	require.EqualValues(t, 1, lease.Token)
	require.NoError(t, lease.Release(t.Context()))
}

// The counter outlives the lock; the lock does not outlive its term.
func TestTermsOfTheKeys(t *testing.T) {
	t.Parallel()
	l, key := open(t, os.Getenv("FENCEPOST_REDIS_URL"), term).Locker, newKey()
	lease, err := l.Acquire(within(t, 5*time.Second), key, newID())
	require.NoError(t, err)
	c := client(t)
	require.EqualValues(t, -1, c.TTL(t.Context(), "fencepost:{"+string(key)+"}:token").Val(), "the counter must have no term")
	ttl := c.PTTL(t.Context(), "fencepost:{"+string(key)+"}:lock").Val()
	require.Positive(t, ttl)
	require.LessOrEqual(t, ttl, term)
	require.NoError(t, lease.Release(t.Context()))
	require.EqualValues(t, 1, c.Exists(t.Context(), "fencepost:{"+string(key)+"}:token").Val())
	require.EqualValues(t, 0, c.Exists(t.Context(), "fencepost:{"+string(key)+"}:lock").Val())
}

// A server that was restarted does not know the scripts any more.
func TestScriptsAreSentAgain(t *testing.T) {
	t.Parallel()
	l := open(t, os.Getenv("FENCEPOST_REDIS_URL"), term).Locker
	c := client(t)
	for range 3 {
		lease, err := l.Acquire(within(t, 5*time.Second), newKey(), newID())
		require.NoError(t, err)
		require.NoError(t, c.ScriptFlush(t.Context()).Err())
		_, err = lease.Extend(t.Context())
		require.NoError(t, err)
		require.NoError(t, c.ScriptFlush(t.Context()).Err())
		require.NoError(t, lease.Release(t.Context()))
	}
}

// Waiters share a connection, and when the last has left, nothing is subscribed.
func TestWaitersLeaveNothing(t *testing.T) {
	t.Parallel()
	l, key := open(t, os.Getenv("FENCEPOST_REDIS_URL"), term).Locker, newKey()
	channel := "fencepost:{" + string(key) + "}:released"
	c := client(t)
	subscribers := func() int64 { return c.PubSubNumSub(t.Context(), channel).Val()[channel] }

	lease, err := l.Acquire(within(t, 5*time.Second), key, newID())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := l.Acquire(ctx, key, newID()); err == nil {
				t.Error("a waiter got in beside the holder")
			}
		})
	}
	require.Eventually(t, func() bool { return subscribers() == 1 }, 5*time.Second, time.Millisecond, "all waiters on one connection")
	cancel()
	wg.Wait()
	require.Eventually(t, func() bool { return subscribers() == 0 }, 5*time.Second, time.Millisecond)
	require.NoError(t, lease.Release(t.Context()))
}

// A server that takes the connection and never answers must not hold a caller longer than its context, nor longer than a
// part of the term.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
	}()
	const ttl = 800 * time.Millisecond
	l := open(t, "redis://"+listener.Addr().String(), ttl).Locker
	began := time.Now()
	_, err = l.Acquire(within(t, time.Minute), newKey(), newID())
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.Less(t, time.Since(began), 10*time.Second)

	// The caller's deadline reaches the socket. Which of the two notices first is a matter of luck.
	began = time.Now()
	_, err = l.Acquire(within(t, 50*time.Millisecond), newKey(), newID())
	require.True(t, errors.Is(err, domain.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded), "%v", err)
	require.Less(t, time.Since(began), ttl/4, "the context's deadline came before the read time-out")
}

func TestMissingServer(t *testing.T) {
	t.Parallel()
	backend := open(t, "redis://:secret@127.0.0.1:1/0", term)
	_, err := backend.Locker.Acquire(within(t, 10*time.Second), newKey(), newID())
	var unavailable *domain.UnavailableError
	require.ErrorAs(t, err, &unavailable)
	require.Equal(t, "Redis", unavailable.Server)
	require.NotContains(t, err.Error(), "secret")
	require.NotContains(t, backend.Server, "secret")
}

// The identity is the same for everybody who reaches the server, and lasts as long as its data.
func TestIdentity(t *testing.T) {
	t.Parallel()
	a, err := open(t, os.Getenv("FENCEPOST_REDIS_URL"), term).Identify(t.Context())
	require.NoError(t, err)
	b, err := open(t, os.Getenv("FENCEPOST_REDIS_URL"), 2*term).Identify(t.Context())
	require.NoError(t, err)
	require.Equal(t, a, b)
}
