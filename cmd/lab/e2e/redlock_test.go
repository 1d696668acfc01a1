package e2e_test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// redlockClients are clients of the five masters, redis-1 first.
func redlockClients(t *testing.T) (clients []*redis.Client) {
	t.Helper()
	for url := range strings.SplitSeq(variable(t, "FENCEPOST_REDLOCK_URLS"), ",") {
		o, err := redis.ParseURL(url)
		require.NoError(t, err)
		c := redis.NewClient(o)
		t.Cleanup(func() { _ = c.Close() })
		clients = append(clients, c)
	}
	require.Len(t, clients, 5)
	return clients
}

func kill(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		require.NoError(t, lab.Server(name).Kill())
		t.Cleanup(func() { // when the test has failed in between
			if c := context.WithoutCancel(t.Context()); t.Failed() {
				_ = lab.Server(name).Start(c)
			}
		})
	}
}

func restart(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		require.NoError(t, lab.Server(name).Start(t.Context()))
	}
}

// Two of the five masters are killed: redlock goes on. Three: requests are answered with a 503 within the wait for a lock,
// nothing is written, and no lock stays behind. They come back: it goes on.
func TestRedlockMastersAreKilled(t *testing.T) {
	const lockWait = 2 * time.Second
	running := start(t, 2, "redlock", "FENCEPOST_LOCK_WAIT="+lockWait.String())
	item := createItem(t, running[0].URL)
	clients := redlockClients(t)
	crowd := startBuyers(t, urls(running), item)
	goesOn := func(when string) {
		t.Helper()
		before, began := crowd.Count(), time.Now()
		crowd.until(t, "reservations are made "+when, func(b *buyers) bool { return len(b.Acknowledged) >= before+50 })
		t.Logf("50 reservations %s took %s", when, time.Since(began))
	}
	goesOn("with five")
	kill(t, "redis-4", "redis-5")
	goesOn("with three")

	kill(t, "redis-3")
	crowd.until(t, "a 503", func(b *buyers) bool {
		return strings.HasPrefix(b.LastProblem["backend_unavailable"], "Redlock is not available. Nothing was written.")
	})
	acknowledged := crowd.stop()
	for _, instance := range running {
		require.Equal(t, http.StatusServiceUnavailable, statusOf(t, instance.URL+"/readyz"))
		began := time.Now()
		require.Equal(t, http.StatusServiceUnavailable, exchange(t.Context(), http.MethodPost,
			instance.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, nil))
		took := time.Since(began)
		t.Logf("with two, the 503 came after %s", took)
		require.Less(t, took, lockWait+time.Second)
	}
	// A request whose section had begun may have been written without having been answered; those above have not begun.
	require.Subset(t, reservations(t, item), acknowledged)
	requireLedgerAgrees(t, "item/"+item)
	for _, c := range clients[:2] {
		require.Eventually(t, func() bool {
			locks, err := c.Keys(t.Context(), "fencepost:redlock:*:lock").Result()
			return err == nil && len(locks) == 0
		}, patience, 10*time.Millisecond, "a lock stayed behind")
	}

	restart(t, "redis-3", "redis-4", "redis-5")
	crowd = startBuyers(t, urls(running), item)
	goesOn("with five again")
	acknowledged = append(acknowledged, crowd.stop()...)
	requireAllReady(t, urls(running))
	require.Subset(t, reservations(t, item), acknowledged)
	requireLedgerAgrees(t, "item/"+item)
}

// One master is paused, with its connections open: nobody waits for it for longer than the time-out of a node.
func TestRedlockMasterIsPaused(t *testing.T) {
	const nodeTimeout = 500 * time.Millisecond // with a term of ten seconds
	instance := start(t, 1, "redlock", "FENCEPOST_LEASE_TTL=10s")[0]
	item := createItem(t, instance.URL)
	slowest := func() (longest time.Duration) {
		t.Helper()
		for range 50 {
			began := time.Now()
			require.Equal(t, http.StatusCreated, exchange(t.Context(), http.MethodPost,
				instance.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, nil))
			longest = max(longest, time.Since(began))
		}
		return longest
	}
	slowest() // connections are made
	usual := slowest()
	require.NoError(t, lab.Server("redis-2").Pause())
	t.Cleanup(func() { require.NoError(t, lab.Server("redis-2").Resume()) })
	paused := slowest()
	t.Logf("the slowest of 50 reservations: %s; with a master paused: %s", usual, paused)
	require.Less(t, paused, usual+nodeTimeout+50*time.Millisecond)
	require.NoError(t, lab.Server("redis-2").Resume())
	c := redlockClients(t)[1]
	require.Eventually(t, func() bool {
		locks, err := c.Keys(t.Context(), "fencepost:redlock:*:lock").Result()
		return err == nil && len(locks) == 0
	}, patience/4, 10*time.Millisecond, "what the paused master was asked for is given back, not left for its term")
}

// What cannot be a node of Redlock, or cannot keep a lock at all, is refused at the start, with the fix.
func TestUnfitRedisIsRefused(t *testing.T) {
	clients := redlockClients(t)
	last := clients[4]
	host, port, _ := strings.Cut(clients[3].Options().Addr, ":")
	for name, test := range map[string]struct {
		strategy string
		unfit    []any
		mend     []any
		says     string
	}{
		"a replica": {
			"redlock",
			[]any{"REPLICAOF", host, port},
			[]any{"REPLICAOF", "NO", "ONE"},
			last.Options().Addr + ": it is a replica: name independent masters",
		},
		"a node that evicts": {
			"redlock",
			[]any{"CONFIG", "SET", "maxmemory-policy", "allkeys-lru"},
			[]any{"CONFIG", "SET", "maxmemory-policy", "noeviction"},
			last.Options().Addr + ": it may evict locks: set its maxmemory-policy to noeviction",
		},
		"a single Redis that is a replica": {
			"redis",
			[]any{"REPLICAOF", host, port},
			[]any{"REPLICAOF", "NO", "ONE"},
			"it is a replica: name its master, or the Sentinels that know which one that is",
		},
		"a single Redis that evicts": {
			"redis",
			[]any{"CONFIG", "SET", "maxmemory-policy", "allkeys-lru"},
			[]any{"CONFIG", "SET", "maxmemory-policy", "noeviction"},
			"it may evict locks: set its maxmemory-policy to noeviction",
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, last.Do(t.Context(), test.unfit...).Err())
			t.Cleanup(func() { require.NoError(t, last.Do(context.WithoutCancel(t.Context()), test.mend...).Err()) })
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, binary, "serve")
			cmd.Env = append(append(os.Environ(), lab.Env()...), "FENCEPOST_LISTEN=127.0.0.1:0",
				"FENCEPOST_INVENTORY_LOCK="+test.strategy, "FENCEPOST_REDIS_URL=redis://"+last.Options().Addr)
			output, err := cmd.CombinedOutput()
			require.Error(t, err, "%s", output)
			require.NoError(t, ctx.Err(), "it must not run")
			require.Contains(t, string(output), test.says)
		})
	}
}
