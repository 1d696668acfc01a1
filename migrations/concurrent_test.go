package migrations_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

// inBackground runs the statement and sends its outcome.
func inBackground(ctx context.Context, conn *pgx.Conn, sql string) <-chan error {
	done := make(chan error, 1)
	go func() { done <- run(ctx, conn, sql) }()
	return done
}

// waitsForLock returns as soon as PostgreSQL reports that the connection waits for a lock.
func waitsForLock(t *testing.T, watcher, conn *pgx.Conn) {
	t.Helper()
	require.Eventually(t, func() bool {
		return value[bool](t, watcher, `
			SELECT COALESCE(wait_event_type = 'Lock', false) FROM pg_stat_activity WHERE pid = $1`, conn.PgConn().PID())
	}, 10*time.Second, time.Millisecond, "the connection does not wait for a lock")
}

// The hole that a check at the write leaves open: the new holder has read, the old holder writes with what still is the
// newest token that was seen, the new holder writes from a stale read. Presenting first, the old holder waits and loses.
func TestPresentFirst(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	old, newer, watcher := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)

	must(t, newer, `BEGIN`)
	must(t, newer, `SELECT present('item/a', 'redis', 2, 7, gen_random_uuid())`)
	assert.EqualValues(t, 10, value[int64](t, newer, `SELECT on_hand FROM items WHERE resource = 'item/a'`))

	must(t, old, `BEGIN`)
	refused := inBackground(t.Context(), old, `SELECT present('item/a', 'redis', 2, 6, gen_random_uuid())`)
	waitsForLock(t, watcher, old)

	must(t, newer, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)
	must(t, newer, `COMMIT`)
	err := <-refused
	require.Equal(t, staleToken, state(err), "%v", err)
	d := detail(t, err)
	assert.Equal(t, "6", d["presented_token"])
	assert.Equal(t, "7", d["current_token"])
	assert.EqualValues(t, 9, value[int64](t, watcher, `SELECT on_hand FROM items WHERE resource = 'item/a'`))
}

// When the newer holder gives up, it has moved nothing, and the older one goes on.
func TestPresentAfterARollback(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	old, newer, watcher := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
	must(t, newer, `BEGIN`)
	must(t, newer, `SELECT present('item/a', 'redis', 2, 7, gen_random_uuid())`)
	must(t, old, `BEGIN`)
	accepted := inBackground(t.Context(), old, `SELECT present('item/a', 'redis', 2, 6, gen_random_uuid())`)
	waitsForLock(t, watcher, old)
	must(t, newer, `ROLLBACK`)
	require.NoError(t, <-accepted)
	must(t, old, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)
	must(t, old, `COMMIT`)
}

// A transaction that does not wait presents what it can, and for a row that somebody else has locked nothing: there it may not
// write either.
func TestPresentWithoutWaiting(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	a, b := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
	must(t, a, `BEGIN`)
	for _, lock := range []string{
		`SELECT present('item/a', 'redis', 2, 6, gen_random_uuid())`, `SELECT lock_row('item/row', 1, gen_random_uuid())`, `SELECT lock_row('item/off', 1, gen_random_uuid())`,
	} {
		must(t, a, lock)
	}
	must(t, b, `BEGIN`)
	must(t, b, `SET LOCAL lock_timeout = '5s'`) // an error, not a test that hangs
	present := func(resource, strategy string, epoch, token int) *int64 {
		return value[*int64](t, b, `SELECT present($1, $2, $3, NULLIF($4, 0), gen_random_uuid(), false)`, resource, strategy, epoch, token)
	}
	lock := func(resource string) *int64 {
		return value[*int64](t, b, `SELECT token FROM lock_row($1, 1, gen_random_uuid(), false)`, resource)
	}
	two, zero := int64(2), int64(0)
	assert.Equal(t, &two, present("coupon/c", "redis", 2, 6), "the fence's second turn")
	assert.Nil(t, present("item/a", "redis", 2, 7))
	assert.Equal(t, &zero, present("item/off", "none", 1, 0))
	assert.Nil(t, lock("item/off"))
	assert.Nil(t, lock("item/row"))
	must(t, b, `UPDATE coupons SET redeemed = 1 WHERE resource = 'coupon/c'`)
	must(t, b, `SAVEPOINT s`)
	assert.Equal(t, notPresented, state(run(t.Context(), b, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)))
	must(t, b, `ROLLBACK TO s`)
	must(t, b, `COMMIT`)
	must(t, a, `COMMIT`)
	must(t, b, `BEGIN`)
	assert.Equal(t, &two, lock("item/row"), "the row is free, and the next token is drawn")
	must(t, b, `ROLLBACK`)
}

// What another transaction presents is no leave to write for this one, neither before it commits nor after.
func TestPresentationOfAnotherTransaction(t *testing.T) {
	t.Parallel()
	const write = `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`
	db := fenced(t)
	presenter, writer := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
	must(t, writer, `BEGIN; SELECT pg_current_xact_id(); SAVEPOINT s`)
	must(t, presenter, `BEGIN`)
	must(t, presenter, next("item/a"))
	assert.Equal(t, notPresented, state(run(t.Context(), writer, write)))
	must(t, writer, `ROLLBACK TO s`)
	must(t, presenter, `COMMIT`)
	assert.Equal(t, notPresented, state(run(t.Context(), writer, write)))
}

// A reign that begins while a transaction waits for the fence is in charge when the transaction goes on.
func TestEpochIsRaisedWhilePresentingWaits(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	holder, waiter, watcher := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
	must(t, holder, `BEGIN`)
	must(t, holder, `SELECT present('item/a', 'redis', 2, 6, gen_random_uuid())`)
	refused := inBackground(t.Context(), waiter, `SELECT present('item/a', 'redis', 2, 7, gen_random_uuid())`)
	waitsForLock(t, watcher, waiter)
	must(t, watcher, `SELECT raise_epoch('inventory', 2)`)
	must(t, holder, `COMMIT`)
	err := <-refused
	assert.Equal(t, notInCharge, state(err), "%v", err)
}

// Under REPEATABLE READ every read is as old as the first one. A holder that presents after others have written would
// decide from what was before them: PostgreSQL does not let it past the fence's row.
func TestPresentFromAnOldSnapshot(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	old, newer := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
	must(t, old, `BEGIN ISOLATION LEVEL REPEATABLE READ`)
	assert.EqualValues(t, 10, value[int64](t, old, `SELECT on_hand FROM items WHERE resource = 'item/a'`))
	must(t, newer, `BEGIN`)
	must(t, newer, `SELECT present('item/a', 'redis', 2, 6, gen_random_uuid())`)
	must(t, newer, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)
	must(t, newer, `COMMIT`)
	err := run(t.Context(), old, `SELECT present('item/a', 'redis', 2, 7, gen_random_uuid())`)
	assert.Equal(t, "40001", state(err), "%v", err)
}

// Where fencing is off, presenting must not take the lock that it takes elsewhere: it would protect what is there to be
// broken. The test requires the lost update.
func TestPresentLocksNothingWhereFencingIsOff(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	a, b := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
	var read [2]int64
	for i, conn := range []*pgx.Conn{a, b} {
		must(t, conn, `BEGIN`)
		must(t, conn, `SET LOCAL lock_timeout = '5s'`) // an error, not a test that hangs
		assert.Zero(t, value[int64](t, conn, `SELECT present('item/off', 'none', 1, NULL, gen_random_uuid())`))
		read[i] = value[int64](t, conn, `SELECT on_hand FROM items WHERE resource = 'item/off'`)
	}
	for i, conn := range []*pgx.Conn{a, b} {
		must(t, conn, fmt.Sprintf(`UPDATE items SET on_hand = %d WHERE resource = 'item/off'`, read[i]-1))
		must(t, conn, `COMMIT`)
	}
	assert.EqualValues(t, 9, value[int64](t, a, `SELECT on_hand FROM items WHERE resource = 'item/off'`), "two were taken from ten, and one was lost")
}

// The strategy postgres excludes also where nothing is fenced; it only issues no token there.
func TestLockRowLocksWhereFencingIsOff(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	a, b, watcher := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
	const lock = `SELECT token FROM lock_row('item/off', 1, gen_random_uuid())`
	must(t, a, `BEGIN`)
	assert.Zero(t, value[int64](t, a, lock))
	locked := inBackground(t.Context(), b, lock)
	waitsForLock(t, watcher, b)
	must(t, a, `COMMIT`)
	require.NoError(t, <-locked)
}

// Instances of two configurations start at once, again and again. Each change of reign moves the epoch by one, no epoch has
// two strategies, and nobody ever sees an epoch go back.
func TestClaimsAtOnce(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	var mu sync.Mutex
	reigns := map[int64]string{}
	var group sync.WaitGroup
	for i := range 8 {
		strategy := []string{"redis", "zookeeper"}[i%2]
		conn := postgrestest.Connect(t, db.ServiceURL)
		group.Go(func() {
			last := int64(0)
			for range 20 {
				var got string
				var epoch int64
				err := conn.QueryRow(t.Context(), `SELECT strategy, epoch FROM claim_authority('inventory', $1, '')`, strategy).Scan(&got, &epoch)
				if !assert.NoError(t, err) {
					return
				}
				assert.Equal(t, strategy, got, "a claim answers with the reign that it left")
				assert.GreaterOrEqual(t, epoch, last)
				last = epoch
				mu.Lock()
				if other, known := reigns[epoch]; known {
					assert.Equal(t, other, got, "epoch %d has one strategy", epoch)
				}
				reigns[epoch] = got
				mu.Unlock()
			}
		})
	}
	group.Wait()
	conn := postgrestest.Connect(t, db.ServiceURL)
	newest := value[int64](t, conn, `SELECT epoch FROM authorities WHERE scope = 'inventory'`)
	assert.Len(t, reigns, int(newest), "every epoch was somebody's claim: none was skipped")
	for epoch := int64(2); epoch <= newest; epoch++ {
		assert.NotEqual(t, reigns[epoch-1], reigns[epoch], "epoch %d began without a change", epoch)
	}
	assert.Greater(t, newest, int64(1), "both strategies were in charge")
}

func TestClaim(t *testing.T) {
	t.Parallel()
	conn := postgrestest.Connect(t, postgrestest.New(t).ServiceURL)
	for _, c := range []struct {
		strategy, fingerprint string
		epoch                 int64
	}{
		{"redis", "one", 1},
		{"redis", "one", 1}, // a restart
		{"redis", "two", 2}, // other servers issue other tokens
		{"postgres", "", 3},
		{"postgres", "", 3},
		{"redis", "one", 4}, // back again is a new reign
	} {
		assert.Equal(t, c.epoch, value[int64](t, conn, `SELECT epoch FROM claim_authority('inventory', $1, $2)`, c.strategy, c.fingerprint), "%v", c)
	}
}

// An order of the operator's outranks what instances are configured with, until one starts that agrees with it.
func TestOrders(t *testing.T) {
	t.Parallel()
	conn := postgrestest.Connect(t, postgrestest.New(t).ServiceURL)
	for _, c := range []struct{ strategy, fingerprint, by, want string }{
		{"redis", "one", "configuration", "redis one 1 configuration"},
		{"postgres", "", "operator", "postgres  2 operator"},
		{"redis", "one", "configuration", "postgres  2 operator"}, // a restart with the old configuration
		{"zookeeper", "x", "operator", "zookeeper x 3 operator"},
		{"zookeeper", "y", "", "zookeeper y 4 operator"}, // its servers have lost their memory
		{"postgres", "", "", "zookeeper y 4 operator"},
		{"zookeeper", "y", "configuration", "zookeeper y 4 both"},
		{"zookeeper", "z", "", "zookeeper z 5 both"},
		{"zookeeper", "z", "operator", "zookeeper z 5 operator"},
		{"zookeeper", "z", "configuration", "zookeeper z 5 both"},
		{"redis", "one", "configuration", "redis one 6 configuration"},
		{"redis", "one", "operator", "redis one 6 operator"}, // no new reign, but an order
		{"zookeeper", "z", "configuration", "redis one 6 operator"},
	} {
		assert.Equal(t, c.want, value[string](t, conn, `
			SELECT strategy || ' ' || fingerprint || ' ' || epoch || ' ' || decided_by FROM claim_authority('inventory', $1, $2, NULLIF($3, ''))`,
			c.strategy, c.fingerprint, c.by), "%v", c)
	}
}

// Who waits for the fence while its resource gets another authority is refused when it goes on.
func TestSwitchWhilePresentingWaits(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	holder, operator, waiter, watcher := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL),
		postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
	must(t, holder, `BEGIN`)
	must(t, holder, `SELECT present('item/a', 'redis', 2, 6, gen_random_uuid())`)
	switched := inBackground(t.Context(), operator, `SELECT switch_resource('item/a', 'redis', 'elsewhere')`)
	waitsForLock(t, watcher, operator)
	refused := inBackground(t.Context(), waiter, `SELECT present('item/a', 'redis', 2, 7, gen_random_uuid())`)
	waitsForLock(t, watcher, waiter)
	must(t, holder, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)
	must(t, holder, `COMMIT`)
	require.NoError(t, <-switched)
	err := <-refused
	assert.Equal(t, notInCharge, state(err), "%v", err)
}

// An epoch names one authority of a resource, also across its scopes: while a resource is on its way out of a scope, the
// scope's epoch cannot reach the one that the resource is given. The control leaves the lock out, and the same epoch is read
// under both scopes.
func TestNoEpochInTwoScopes(t *testing.T) {
	t.Parallel()
	for _, locked := range []bool{true, false} {
		db := fenced(t)
		operator, instance, watcher := postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL), postgrestest.Connect(t, db.ServiceURL)
		if !locked {
			owner := postgrestest.Connect(t, db.OwnerURL)
			function := value[string](t, owner, `SELECT pg_get_functiondef('switch_resource'::regproc)`)
			require.Contains(t, function, "FOR NO KEY UPDATE")
			must(t, owner, strings.ReplaceAll(function, "FOR NO KEY UPDATE", ""))
		}
		must(t, operator, `BEGIN`)
		must(t, operator, `SELECT switch_resource('item/a', 'redis', 'elsewhere')`)
		raised := inBackground(t.Context(), instance, `SELECT raise_epoch('inventory', 2)`)
		if locked {
			waitsForLock(t, watcher, instance)
		} else {
			require.NoError(t, <-raised)
		}
		scope, epoch := authority(t, watcher, "item/a")
		assert.Equal(t, "inventory", scope)
		must(t, operator, `COMMIT`)
		ownScope, own := authority(t, watcher, "item/a")
		assert.Equal(t, "item/a", ownScope)
		if !locked {
			assert.Equal(t, epoch, own, "without the lock both scopes must be seen with this epoch")
			continue
		}
		assert.Less(t, epoch, own)
		require.NoError(t, <-raised)
	}
}

// Several instances find the same counter gone back and all raise the epoch that they know: it rises once.
func TestRaisesAtOnce(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	var group sync.WaitGroup
	for range 8 {
		conn := postgrestest.Connect(t, db.ServiceURL)
		group.Go(func() {
			var epoch int64
			err := conn.QueryRow(t.Context(), `SELECT epoch FROM raise_epoch('inventory', 2)`).Scan(&epoch)
			assert.NoError(t, err)
			assert.EqualValues(t, 3, epoch, "everybody learns the epoch in charge")
		})
	}
	group.Wait()
}
