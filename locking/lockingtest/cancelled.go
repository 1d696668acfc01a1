package lockingtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres/postgrestest"
	"fencepost/locking/strategies"
)

// CancelledWaits has n callers want one key and give up at any moment: in the queue behind a holder, in the acquire of a lock
// that is free, between the two, in the section. Each returns at once, and together they leave nothing, here or at the
// servers. It must not run beside other tests, because it counts the goroutines of the process.
func CancelledWaits(t *testing.T, row strategies.Strategy, config strategies.Config, instance Instance, n int) {
	config.RedisURL = ownDatabase(t, config.RedisURL)
	config.RedlockURLs = slices.Clone(config.RedlockURLs)
	for i, u := range config.RedlockURLs {
		config.RedlockURLs[i] = ownDatabase(t, u)
	}
	db := postgrestest.New(t) // where only its own sessions are
	w := newWorldIn(t, db, postgrestest.Connect(t, db.OwnerURL), row, config, instance)
	holder, other := w.pair()
	key := w.item(holder, w.fencing())
	look, known := leftovers[row.Name]
	require.True(t, known, "say in leftovers what a wait could leave at the servers of %s", row.Name)

	const atOnce = 50
	var entered atomic.Int64
	wants := func(patience time.Duration) {
		var wg sync.WaitGroup
		for range atOnce {
			ctx, cancel := context.WithCancel(t.Context())
			wg.Go(func() {
				_, err := other.addTo(ctx, key)
				if err == nil {
					entered.Add(1)
				} else if !errors.Is(err, context.Canceled) {
					t.Errorf("a cancelled waiter must say so, not: %v", err)
				}
			})
			time.AfterFunc(rand.N(patience), cancel) // any moment will do
		}
		wg.Wait()
	}
	behindHolder := func(n int) {
		for range n / atOnce { // a section each: PostgreSQL ends a transaction that is idle for long
			_, err := holder.do(t.Context(), []domain.Key{key}, func(context.Context, domain.Tx) error {
				before := entered.Load()
				wants(40 * time.Millisecond)
				require.Equal(t, before, entered.Load(), "nobody gets in beside the holder")
				return nil
			})
			require.NoError(t, err)
		}
	}
	withoutHolder := func(n int) {
		for range n / atOnce {
			var wg sync.WaitGroup
			wg.Go(func() { wants(100 * time.Millisecond) })
			_, err := other.addTo(t.Context(), key) // one that stays, and gets in
			require.NoError(t, err)
			entered.Add(1)
			wg.Wait()
		}
	}

	// What is made at the first use, and at the first wait, is not left behind.
	for _, pair := range [][2]*node{{holder, other}, {other, holder}} {
		_, err := pair[0].do(t.Context(), []domain.Key{key}, func(context.Context, domain.Tx) error {
			w.waitsInVain(pair[1], key)
			return nil
		})
		require.NoError(t, err)
	}
	behindHolder(atOnce)
	withoutHolder(atOnce)
	goroutines := runtime.NumGoroutine()
	behindHolder(n / 2)
	withoutHolder(n / 2)
	t.Logf("%d got in of those who met no holder", entered.Load())
	w.settles("goroutines beyond those of the pools", func() []string {
		if now := runtime.NumGoroutine(); now > goroutines {
			var stacks strings.Builder
			_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			return []string{fmt.Sprintf("%d, where %d were before: %s", now, goroutines, stacks.String())}
		}
		return nil
	})
	w.settles("sessions in PostgreSQL", sessions(w))
	w.settles("something in the lock's servers", look(w, key))
	w.canEnter(holder, key)
	require.Equal(t, entered.Load()+1, w.stock(key), "those who were told yes have written, and nobody else")
}

// redisDatabase is used by nobody else, so that connections can be told by it.
const redisDatabase = 14

func ownDatabase(t *testing.T, raw string) string {
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.Path = fmt.Sprint("/", redisDatabase)
	return u.String()
}

// settles waits until what has no business to be there is gone.
func (w *world) settles(what string, left func() []string) {
	w.t.Helper()
	var last []string
	for began := time.Now(); time.Since(began) < deadline; {
		if last = left(); len(last) == 0 {
			return
		}
		time.Sleep(time.Millisecond) // between two looks
	}
	w.t.Fatalf("%s are left behind: %s", what, strings.Join(last, "; "))
}

// The instances of CancelledWaits.
const nodes = 2

// sessions lists what is beyond the pools, or at work.
func sessions(w *world) func() []string {
	service := postgresConnection(w.t, w)
	return func() (left []string) {
		var all, busy int32
		require.NoError(w.t, service.QueryRow(w.t.Context(), `
			SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity
			WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()`).Scan(&all, &busy))
		if busy > 0 {
			left = append(left, fmt.Sprintf("%d sessions at work", busy))
		}
		if limit := nodes * (w.instance.PoolSize + 1); all > limit { // and one for health checks
			left = append(left, fmt.Sprintf("%d sessions, where the pools have %d", all, limit))
		}
		return left
	}
}

// leftovers, by strategy, ask the servers what they know of a key that nobody has or wants. The counter stays, and the pools.
var leftovers = map[string]func(w *world, key domain.Key) func() []string{
	"local":    none, // its own test looks into its queues
	"postgres": none, // there are but the sessions
	"redis": func(w *world, key domain.Key) func() []string {
		return inRedis(w.t, []string{w.config.RedisURL}, key)
	},
	"redlock": func(w *world, key domain.Key) func() []string {
		return inRedis(w.t, w.config.RedlockURLs, key)
	},
	"zookeeper": func(w *world, key domain.Key) func() []string {
		conn, _, err := zk.Connect(w.config.ZooKeeperServers, deadline, zk.WithLogInfo(false))
		require.NoError(w.t, err)
		w.t.Cleanup(conn.Close)
		return func() []string {
			queue, _, err := conn.Children("/fencepost/" + url.PathEscape(string(key)))
			require.NoError(w.t, err)
			return queue
		}
	},
}

func none(*world, domain.Key) func() []string { return func() []string { return nil } }

func inRedis(t *testing.T, urls []string, key domain.Key) func() []string {
	t.Helper()
	var clients []*redis.Client
	for _, u := range urls {
		o, err := redis.ParseURL(u)
		require.NoError(t, err)
		c := redis.NewClient(o)
		t.Cleanup(func() { _ = c.Close() })
		clients = append(clients, c)
	}
	return func() (left []string) {
		for _, c := range clients {
			keys, err := c.Keys(t.Context(), "*"+string(key)+"*").Result()
			require.NoError(t, err)
			left = append(left, slices.DeleteFunc(keys, func(k string) bool { return strings.HasSuffix(k, ":token") })...)
			channels, err := c.PubSubChannels(t.Context(), "*"+string(key)+"*").Result()
			require.NoError(t, err)
			left = append(left, channels...)
			connected, err := c.ClientList(t.Context()).Result()
			require.NoError(t, err)
			// And one for the subscriptions of each, and the one that asks.
			all, limit := strings.Count(connected, fmt.Sprint(" db=", redisDatabase, " ")), nodes*(c.Options().PoolSize+1)+1
			require.Positive(t, all, "the one that asks")
			if all > limit {
				left = append(left, fmt.Sprintf("%d connections, where the pools have %d", all, limit))
			}
		}
		return left
	}
}
