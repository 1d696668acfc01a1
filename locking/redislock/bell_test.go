package redislock

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

// A waiter that was rung and is gone before it could try hands its turn on.
func TestARingIsNotLost(t *testing.T) {
	t.Parallel()
	options, err := parseURL("redis://127.0.0.1:1/0") // nobody is there: the only rings are those below
	require.NoError(t, err)
	b := newBell(slog.New(slog.DiscardHandler), newServer(options, time.Second))
	t.Cleanup(b.close)
	require.False(t, b.awaited("channel"))
	first, behind, leaveFirst := b.listen("channel")
	require.False(t, behind)
	require.True(t, b.awaited("channel"))
	second, behind, leaveSecond := b.listen("channel")
	require.True(t, behind)
	ring := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.queues["channel"].ring()
	}
	ring()
	<-first
	require.Empty(t, second, "one ring wakes one waiter")
	leaveFirst()
	select {
	case <-second:
	case <-time.After(5 * time.Second):
		t.Fatal("the second waiter sleeps beside a free lock")
	}
	leaveSecond()
	require.Empty(t, b.queues)
}

// A waiter that a release's first copy has woken can try before the release has reached a majority of the servers, in vain. It
// is woken again when it has.
func TestARingIsHeardAgainFromAMajority(t *testing.T) {
	t.Parallel()
	var servers []server
	for range 5 {
		options, err := parseURL("redis://127.0.0.1:1/0") // nobody is there: the only rings are those below
		require.NoError(t, err)
		servers = append(servers, newServer(options, time.Second))
	}
	b := newBell(slog.New(slog.DiscardHandler), servers...)
	t.Cleanup(b.close)
	rung, _, leave := b.listen("channel")
	t.Cleanup(leave)
	copyOf := func(ring string, rings int) {
		t.Helper()
		b.take(nil, &redis.Message{Channel: "channel", Payload: ring})
		require.Len(t, rung, rings, "a copy of %s", ring)
		if rings > 0 {
			<-rung
		}
	}
	for _, ring := range []string{"one", "another"} {
		for _, rings := range []int{1, 0, 1, 0, 0} {
			copyOf(ring, rings)
		}
	}
	// Two releases at once, or one of them late.
	copyOf("early", 1)
	copyOf("late", 1)
	copyOf("late", 0)
	copyOf("early", 0)
	copyOf("late", 1)
	copyOf("early", 1)
	for range 3 * maxRings {
		copyOf(uuid.NewString(), 1)
	}
	require.LessOrEqual(t, len(b.queues["channel"].copies), maxRings)
}

// Who comes while others of its process wait lines up behind them, also beside a lock that is free already: they have only not
// been woken yet.
func TestNobodyPushesIn(t *testing.T) {
	t.Parallel()
	backend, err := Open(os.Getenv("FENCEPOST_REDIS_URL"), time.Minute, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { _ = backend.Close() })
	l, key := backend.Locker.(*Locker), domain.ItemKey(uuid.NewString())
	channel := namesOf(prefix, key).released
	waiters := func() (n int) {
		l.bell.mu.Lock()
		defer l.bell.mu.Unlock()
		if q := l.bell.queues[channel]; len(q.subscribed) == 1 { // else a ring for everybody is still to come
			n = len(q.waiters)
		}
		return n
	}
	_, _, leave := l.bell.listen(channel)
	require.Eventually(t, func() bool { return waiters() == 1 }, 20*time.Second, time.Millisecond)
	acquired := make(chan error, 1)
	go func() {
		lease, err := l.Acquire(t.Context(), key, domain.GrantID(uuid.New()))
		if err == nil {
			err = lease.Release(t.Context())
		}
		acquired <- err
	}()
	require.Eventually(t, func() bool { return waiters() == 2 }, 20*time.Second, time.Millisecond, "it lines up")
	require.Empty(t, acquired)
	leave()
	require.NoError(t, <-acquired)
}
