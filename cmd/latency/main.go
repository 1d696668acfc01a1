// Command latency measures what a lock costs that nobody else wants: how long one client takes to get it and give it back,
// for each strategy, beside a bare round trip to the same servers. It reads the addresses of the servers from the
// environment, as 'lab exec' sets them, and uses a database of which nothing is expected afterwards.
//
// Without an argument it prints a table, with -json the same figures as JSON. With the name of a file, it puts the table
// into the block that is kept for it there.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"fencepost/cmd/internal/block"
	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/locking"
	"fencepost/locking/strategies"
	"fencepost/migrations"
)

// place is the block of the README that has the table.
const place = "latency"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "latency:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("latency", flag.ContinueOnError)
	rounds := flags.Int("rounds", 2000, "how often each strategy has its turn")
	asJSON := flags.Bool("json", false, "print the figures as JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 1 || flags.NArg() == 1 && *asJSON || *rounds < 1 {
		return errors.New("name one file at the most, and none with -json; -rounds must be at least 1")
	}
	subjects, err := measure(ctx, *rounds, servers{
		owner: os.Getenv("FENCEPOST_OWNER_URL"), database: os.Getenv("FENCEPOST_DATABASE_URL"),
		redis: os.Getenv("FENCEPOST_REDIS_URL"), redlock: strings.Split(os.Getenv("FENCEPOST_REDLOCK_URLS"), ","),
		zookeeper: strings.Split(os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"), ","),
	})
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(os.Stdout).Encode(figures(subjects))
	}
	table := fmt.Sprintf("%s\nMilliseconds; %d rounds in which every strategy has its turn; %s, %s/%s, %d CPUs, servers on the same machine.\n",
		render(subjects), *rounds, time.Now().UTC().Format(time.DateOnly), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	fmt.Print(table)
	if flags.NArg() == 0 {
		return nil
	}
	return block.Write(flags.Arg(0), place, table)
}

// subject is what is measured of one strategy.
type subject struct {
	name        string
	trip, lock  func(context.Context) error // nil: there is nothing to do
	trips, held []time.Duration
}

func render(subjects []*subject) string {
	var b strings.Builder
	b.WriteString("| strategy | round trip p50 | p99 | lock and release p50 | p99 |\n| --- | --- | --- | --- | --- |\n")
	for _, s := range subjects {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", s.name,
			quantile(s.trips, 0.5), quantile(s.trips, 0.99), quantile(s.held, 0.5), quantile(s.held, 0.99))
	}
	return b.String()
}

func quantile(sample []time.Duration, q float64) string {
	if len(sample) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3f", milliseconds(sample, q))
}

func milliseconds(sample []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(sample))
	return sorted[int(q*float64(len(sorted)-1))].Seconds() * 1000
}

// figure is what was measured of a strategy that has a lock.
type figure struct {
	Strategy string  `json:"strategy"`
	P50      float64 `json:"lock_and_release_p50_ms"`
	P99      float64 `json:"lock_and_release_p99_ms"`
}

func figures(subjects []*subject) (all []figure) {
	for _, s := range subjects {
		if len(s.held) > 0 {
			all = append(all, figure{s.name, milliseconds(s.held, 0.5), milliseconds(s.held, 0.99)})
		}
	}
	return all
}

// servers are the addresses.
type servers struct {
	owner, database, redis string
	redlock, zookeeper     []string
}

// measure takes turns, so that what disturbs the machine for a while disturbs all alike.
func measure(ctx context.Context, rounds int, s servers) (subjects []*subject, err error) {
	log := slog.New(slog.DiscardHandler)
	backends, err := strategies.Open(strategies.Config{
		RedisURL: s.redis, RedlockURLs: s.redlock, ZooKeeperServers: s.zookeeper, LeaseTTL: 10 * time.Second, Log: log,
	})
	if err != nil {
		return nil, err
	}
	defer backends.Close()
	rowLock, closeStore, err := openRowLock(ctx, s, log)
	if err != nil {
		return nil, err
	}
	defer closeStore()
	trips, closeTrips, err := openTrips(ctx, s)
	if err != nil {
		return nil, err
	}
	defer closeTrips()

	for _, b := range backends {
		one := &subject{name: b.Name, trip: trips[b.Name]}
		switch {
		case b.RowLocks:
			one.lock = rowLock
		case b.Locker != nil:
			one.lock = func(ctx context.Context) error { return lockOnce(ctx, b.Locker) }
		}
		subjects = append(subjects, one)
	}
	for round := range rounds + rounds/10 + 1 { // the first tenth, and one at the least, is for warming up
		for _, one := range subjects {
			for _, part := range []struct {
				do     func(context.Context) error
				sample *[]time.Duration
			}{{one.trip, &one.trips}, {one.lock, &one.held}} {
				if part.do == nil {
					continue
				}
				began := time.Now()
				if err := part.do(ctx); err != nil {
					return nil, fmt.Errorf("%s: %w", one.name, err)
				}
				if round > rounds/10 {
					*part.sample = append(*part.sample, time.Since(began))
				}
			}
		}
	}
	return subjects, nil
}

// item is what is locked.
const item = "latency"

// lockOnce takes a lease and gives it back.
func lockOnce(ctx context.Context, locker locking.Locker) error {
	lease, err := locker.Acquire(ctx, domain.ItemKey(item), domain.GrantID(uuid.New()))
	if err != nil {
		return err
	}
	return lease.Release(ctx)
}

// openRowLock returns what stands for a lock and its release where the lock is a row's: a transaction that takes it and does
// nothing else.
func openRowLock(ctx context.Context, s servers, log *slog.Logger) (lock func(context.Context) error, closeStore func(), err error) {
	if _, err := migrations.Up(ctx, s.owner, log); err != nil {
		return nil, nil, err
	}
	store, err := postgres.Open(ctx, s.database, postgres.Options{MaxConns: 1, Instance: "latency", Log: log})
	if err != nil {
		return nil, nil, err
	}
	authority, err := store.ClaimAuthority(ctx, domain.ScopeInventory, "postgres", "postgres", domain.ByConfiguration)
	if err == nil {
		_, err = store.CreateItem(ctx, domain.Item{SKU: item, Name: item}, domain.LockSpec{Fencing: domain.FencingEnforced}, nil)
	}
	if err != nil && !errors.Is(err, domain.ErrAlreadyExists) {
		store.Close()
		return nil, nil, err
	}
	nothing := domain.Section{Keys: []domain.Key{domain.ItemKey(item)}, Run: func(context.Context, domain.Tx) error { return nil }}
	return func(ctx context.Context) error {
		grant := domain.Grant{
			Key: domain.ItemKey(item), Strategy: authority.Strategy, Epoch: authority.Epoch,
			ID: domain.GrantID(uuid.New()), RowLock: true,
		}
		_, outcomes, err := store.Transact(ctx, []domain.Grant{grant}, time.Second, false, domain.Only(nothing))
		return errors.Join(append(outcomes, err)...)
	}, store.Close, nil
}

// openTrips returns a bare round trip to the servers of each strategy that has some. Redlock's is to all at once.
func openTrips(ctx context.Context, s servers) (trips map[string]func(context.Context) error, closeAll func(), err error) {
	conn, err := pgx.Connect(ctx, s.database)
	if err != nil {
		return nil, nil, err
	}
	var clients []*redis.Client
	for _, url := range append([]string{s.redis}, s.redlock...) {
		o, err := redis.ParseURL(url)
		if err != nil {
			return nil, nil, err
		}
		clients = append(clients, redis.NewClient(o))
	}
	session, _, err := zk.Connect(s.zookeeper, 10*time.Second, zk.WithLogInfo(false))
	if err != nil {
		return nil, nil, err
	}
	closeAll = func() {
		session.Close()
		for _, c := range clients {
			_ = c.Close()
		}
		_ = conn.Close(context.WithoutCancel(ctx))
	}
	return map[string]func(context.Context) error{
		"postgres": func(ctx context.Context) error {
			_, err := conn.Exec(ctx, `SELECT 1`)
			return err
		},
		"redis": func(ctx context.Context) error { return clients[0].Ping(ctx).Err() },
		"redlock": func(ctx context.Context) error {
			var group errgroup.Group
			for _, c := range clients[1:] {
				group.Go(func() error { return c.Ping(ctx).Err() })
			}
			return group.Wait()
		},
		"zookeeper": func(context.Context) error {
			_, _, err := session.Exists("/")
			return err
		},
	}, closeAll, nil
}
