package postgrestest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres"
)

// free are the databases of this process that no test has at the moment. They stay behind like the template.
var free struct {
	sync.Mutex
	databases []reusable
}

type reusable struct {
	Database
	owner *pgx.Conn
}

// Reused gives the test a database that tests before it may have had, and a session of its owner in it. Emptying one takes
// milliseconds, where New and the DROP after it take half a second, most of it for a checkpoint. Its stores are used again
// too: each session of the server costs some thirty milliseconds until it has forked, knows the tables and has planned what
// it is asked. It is for tests that change no more than rows and leave the sessions as they were: the next one would meet
// whatever else they changed.
func Reused(tb testing.TB) (Database, *pgx.Conn) {
	tb.Helper()
	d, err := take(tb.Context())
	require.NoError(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), time.Minute)
		defer cancel()
		if tb.Failed() || d.owner.IsClosed() { // who knows in which state it is
			d.leave(ctx)
			return
		}
		require.NoError(tb, d.empty(ctx, 5*time.Second)) // as long as DROP DATABASE waits
		free.Lock()
		defer free.Unlock()
		free.databases = append(free.databases, d)
	})
	return d.Database, d.owner
}

// take takes the database that was used last, or makes one. One whose session has not outlived a restart of the server, which
// another test may have made meanwhile, is left where it is.
func take(ctx context.Context) (d reusable, err error) {
	for {
		free.Lock()
		last := len(free.databases) - 1
		if last < 0 {
			free.Unlock()
			break
		}
		d, free.databases = free.databases[last], free.databases[:last]
		free.Unlock()
		if d.owner.Ping(ctx) == nil {
			return d, nil
		}
		d.leave(ctx)
	}
	template, err := migrated()
	if err != nil {
		return d, err
	}
	if d.Database, err = copyOf(ctx, template); err != nil {
		return d, err
	}
	d.kept = &kept{free: map[int32][]*postgres.Store{}}
	// The session outlives the test, so it must not depend on the test's context.
	d.owner, err = pgx.Connect(context.WithoutCancel(ctx), d.OwnerURL)
	return d, err
}

// leave closes what is kept of a database that is not used any more.
func (d reusable) leave(ctx context.Context) {
	_ = d.owner.Close(ctx)
	for _, stores := range d.kept.free {
		for _, store := range stores {
			store.Close()
		}
	}
}

// kept are stores of a database that no test has at the moment, by the size of their pools.
type kept struct {
	sync.Mutex
	free map[int32][]*postgres.Store
}

// keptName tells the sessions of stores that are kept from those that a test has left open.
const keptName = "kept"

// store takes a store for the test, or opens one. It must come back with its connections unused.
func (k *kept) store(tb testing.TB, url string, maxConns int32) *postgres.Store {
	tb.Helper()
	k.Lock()
	defer k.Unlock()
	var store *postgres.Store
	if last := len(k.free[maxConns]) - 1; last >= 0 {
		store, k.free[maxConns] = k.free[maxConns][last], k.free[maxConns][:last]
	} else {
		var err error
		// Its pools outlive the test, so they must not depend on the test's context.
		store, err = open(context.WithoutCancel(tb.Context()), url, maxConns, keptName)
		require.NoError(tb, err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			store.Close()
			return
		}
		require.Eventually(tb, func() bool { return store.PoolStat().AcquiredConns() == 0 }, 5*time.Second, time.Millisecond,
			"the test has not given back all connections of a store")
		k.Lock()
		defer k.Unlock()
		k.free[maxConns] = append(k.free[maxConns], store)
	})
	return store
}

// empty makes of the database what the migrations have made. Sessions that are just ending, or falling idle, are waited for;
// it fails when a test has left one open.
func (d reusable) empty(ctx context.Context, patience time.Duration) error {
	for began := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		var left []string
		// PostgreSQL's own processes, such as autovacuum, have no user.
		err := d.owner.QueryRow(ctx, `
			SELECT array_agg(usename || ', ' || application_name) FROM pg_stat_activity
			 WHERE datname = current_database() AND usename IS NOT NULL AND pid <> pg_backend_pid()
			   AND NOT (application_name = $1 AND state = 'idle')`, "fencepost "+keptName).Scan(&left)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			break
		}
		if time.Since(began) > patience {
			return fmt.Errorf("the test has left sessions open in its database: %s", strings.Join(left, "; "))
		}
	}
	_, err := d.owner.Exec(ctx, emptied)
	return err
}

// emptied deletes from every table but the two whose rows come with the schema. TRUNCATE takes dozens of times as long
// for the few rows of a test: it makes the files of every table and index anew. One statement deletes from all, because foreign
// keys are checked at its end, and so the order of the tables does not matter.
const emptied = `
DO $$
DECLARE
    guarded regclass[] := ARRAY(SELECT tgrelid FROM pg_trigger WHERE tgname = 'guard_never');
    deletes text := (SELECT string_agg(format('%I AS (DELETE FROM %s)', 'from_' || relname, oid::regclass), ', ') FROM pg_class
                      WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT IN ('goose_db_version', 'sweep_slots'));
    t       regclass;
BEGIN
    FOREACH t IN ARRAY guarded LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER guard_never', t);
    END LOOP;
    EXECUTE format('WITH %s SELECT', deletes);
    FOREACH t IN ARRAY guarded LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER guard_never', t);
    END LOOP;
END $$`
