package postgres_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/pgproxy"
	"fencepost/domain/postgres/postgrestest"
)

const wait = 10 * time.Second

// world is a store with redis in charge of both scopes. The grants are made up: the store does not ask where they come from.
type world struct {
	db    postgrestest.Database
	store *postgres.Store
	epoch int64
	token atomic.Int64
}

// newWorld gives the store one connection: whatever leaves it unusable, or asks for a second, hangs the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	db, _ := postgrestest.Reused(t)
	w := &world{db: db, store: db.Store(t, 1)}
	for _, scope := range []domain.Scope{domain.ScopeInventory, domain.ScopeCoupons} {
		authority, err := w.store.ClaimAuthority(t.Context(), scope, "redis", "server", domain.ByConfiguration)
		require.NoError(t, err)
		w.epoch = authority.Epoch
	}
	return w
}

func (w *world) item(t *testing.T, sku string, stock int64, fencing domain.Fencing) domain.Key {
	t.Helper()
	_, err := w.store.CreateItem(t.Context(), domain.Item{SKU: sku, Name: sku, OnHand: stock}, domain.LockSpec{Fencing: fencing}, nil)
	require.NoError(t, err)
	return domain.ItemKey(sku)
}

func (w *world) coupon(t *testing.T, coupon domain.Coupon) domain.Key {
	t.Helper()
	_, err := w.store.CreateCoupon(t.Context(), coupon, domain.LockSpec{Fencing: domain.FencingEnforced}, nil)
	require.NoError(t, err)
	return domain.CouponKey(coupon.Code)
}

// grant is one that is newer than those before it.
func (w *world) grant(key domain.Key) domain.Grant {
	return domain.Grant{
		Key: key, Strategy: "redis", Epoch: w.epoch, Token: domain.Token(w.token.Add(1)), ID: domain.GrantID(uuid.New()),
	}
}

// transact runs fn alone in a transaction.
func transact(ctx context.Context, store *postgres.Store, grants []domain.Grant, wait time.Duration,
	fn func(context.Context, domain.Tx) error,
) (domain.Receipt, error) {
	return transactSection(ctx, store, grants, wait, domain.Section{Run: fn})
}

func transactSection(ctx context.Context, store *postgres.Store, grants []domain.Grant, wait time.Duration, section domain.Section,
) (domain.Receipt, error) {
	receipt, outcomes, err := store.Transact(ctx, grants, wait, false, domain.Only(section))
	if err == nil {
		err = outcomes[0]
	}
	return receipt, err
}

// section is a transaction under fresh grants of the keys.
func (w *world) section(t *testing.T, fn func(context.Context, domain.Tx) error, keys ...domain.Key) error {
	t.Helper()
	var grants []domain.Grant
	for _, key := range keys {
		grants = append(grants, w.grant(key))
	}
	_, err := transact(t.Context(), w.store, grants, wait, fn)
	return err
}

// hold is the usual work of a section.
func hold(r domain.Reservation) func(context.Context, domain.Tx) error {
	return func(ctx context.Context, tx domain.Tx) error {
		for _, line := range r.Lines {
			item, err := tx.Item(ctx, line.SKU)
			if err != nil {
				return err
			}
			if err := item.Hold(line.Quantity); err != nil {
				return err
			}
			tx.PutItem(item, domain.Entry{Kind: domain.EntryHold, Reference: r.ID})
		}
		tx.PutReservation(r)
		return nil
	}
}

// settle ends a hold, as the use cases do.
func settle(id string, state domain.ReservationState, why domain.EntryKind, move func(*domain.Item, int64) error,
) func(context.Context, domain.Tx) error {
	return func(ctx context.Context, tx domain.Tx) error {
		r, err := tx.Reservation(ctx, id)
		if err != nil {
			return err
		}
		if r.State != domain.Held {
			return domain.ErrWrongState
		}
		for _, line := range r.Lines {
			item, err := tx.Item(ctx, line.SKU)
			if err != nil {
				return err
			}
			if err := move(&item, line.Quantity); err != nil {
				return err
			}
			tx.PutItem(item, domain.Entry{Kind: why, Reference: id})
		}
		r.State, r.SettledAt = state, r.CreatedAt
		tx.PutReservation(r)
		return nil
	}
}

func release(id string) func(context.Context, domain.Tx) error {
	return settle(id, domain.Released, domain.EntryRelease, (*domain.Item).Release)
}

func reservation(lines ...domain.Line) domain.Reservation {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return domain.Reservation{
		ID: domain.ReservationPrefix + uuid.NewString(), State: domain.Held, Lines: lines,
		CustomerID: "customer", CreatedBy: "caller", CreatedAt: now, ExpiresAt: now.Add(time.Minute),
	}
}

func (w *world) audit(t *testing.T, key domain.Key) domain.AuditRow {
	t.Helper()
	rows, err := w.store.Audit(t.Context(), key)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	return rows[0]
}

// untouched makes sure that nothing of a section on the item is left: no state, no moved fence, no held row, no used-up
// connection. A further section would hang or be refused.
func (w *world) untouched(t *testing.T, key domain.Key, before domain.ItemView) {
	t.Helper()
	after, err := w.store.Item(t.Context(), key.Name())
	require.NoError(t, err)
	assert.Equal(t, before, after)
	assert.True(t, w.audit(t, key).OK())
	r := reservation(domain.Line{SKU: key.Name(), Quantity: 1})
	require.NoError(t, w.section(t, hold(r), key), "the next section goes on")
}

func query[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) (v T) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), sql, args...).Scan(&v), sql)
	return v
}

// backend waits until a session of the test's database, other than the watcher's, is in the state, and returns its process id.
func backend(t *testing.T, watcher *pgx.Conn, condition string) (pid uint32) {
	t.Helper()
	require.Eventually(t, func() bool {
		pid = query[uint32](t, watcher, `
			SELECT COALESCE((SELECT pid FROM pg_stat_activity
			                  WHERE datname = current_database() AND pid <> pg_backend_pid() AND `+condition+` LIMIT 1), 0)`)
		return pid != 0
	}, wait, time.Millisecond, "no session with %s", condition)
	return pid
}

const waitsForLock = `wait_event_type = 'Lock'`

// A transaction may wait for its sections to come, and that is nobody's time in the database.
func TestGatheringIsNoWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	const away = 100 * time.Millisecond
	only := domain.Only(domain.Section{Run: hold(reservation(domain.Line{SKU: "a", Quantity: 1}))})
	began := time.Now()
	receipt, _, err := w.store.Transact(t.Context(), []domain.Grant{w.grant(key)}, wait, false, func(presented bool) []domain.Section {
		if !presented {
			return nil
		}
		time.Sleep(away) // what is to be left out
		return only(false)
	})
	require.NoError(t, err)
	assert.Positive(t, receipt.Database)
	assert.LessOrEqual(t, receipt.Database, time.Since(began)-away)
	assert.EqualValues(t, 1, w.audit(t, key).Held)
}

func TestCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.item(t, "a", 10, domain.FencingEnforced), w.item(t, "b", 10, domain.FencingEnforced)
	r := reservation(domain.Line{SKU: "a", Quantity: 2}, domain.Line{SKU: "b", Quantity: 3})
	grants := []domain.Grant{w.grant(a), w.grant(b)}
	receipt, err := transact(t.Context(), w.store, grants, wait, hold(r))
	require.NoError(t, err)
	assert.Equal(t, grants, receipt.Grants)
	assert.Positive(t, receipt.Database)

	stored, err := w.store.Reservation(t.Context(), r.ID)
	require.NoError(t, err)
	assert.Equal(t, r, stored, "what is read back is what was put, times included")

	for key, quantity := range map[domain.Key]int64{a: 2, b: 3} {
		item, err := w.store.Item(t.Context(), key.Name())
		require.NoError(t, err)
		assert.Equal(t, domain.Item{SKU: key.Name(), Name: key.Name(), OnHand: 10, Reserved: quantity}, item.Item)
		audit := w.audit(t, key)
		assert.Equal(t, quantity, audit.Held)
		assert.Zero(t, audit.Drift)
		assert.True(t, audit.OK())
	}

	conn := postgrestest.Connect(t, w.db.ServiceURL)
	for _, g := range grants {
		rows, _ := conn.Query(t.Context(), `SELECT strategy, epoch, token, grant_id FROM ledger WHERE resource = $1 AND kind = 'hold'`, g.Key)
		stamps, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s domain.Grant, err error) {
			s.Key = g.Key
			err = row.Scan(&s.Strategy, &s.Epoch, &s.Token, &s.ID)
			return s, err
		})
		require.NoError(t, err)
		assert.Equal(t, []domain.Grant{g}, stamps, "the ledger tells under which grant")
	}
}

// Sections that share a transaction see what those before them have put, and nothing of those that failed.
func TestSharedTransaction(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	earlier := reservation(domain.Line{SKU: "a", Quantity: 6})
	require.NoError(t, w.section(t, hold(earlier), key))

	boom := errors.New("boom")
	abandoned, taken, refused, last := reservation(domain.Line{SKU: "a", Quantity: 4}), reservation(domain.Line{SKU: "a", Quantity: 4}),
		reservation(domain.Line{SKU: "a", Quantity: 1}), reservation(domain.Line{SKU: "a", Quantity: 5})
	release := release(earlier.ID)
	then := func(run func(context.Context, domain.Tx) error, err error) func(context.Context, domain.Tx) error {
		return func(ctx context.Context, tx domain.Tx) error { return errors.Join(run(ctx, tx), err) }
	}
	g := w.grant(key)
	sections := []domain.Section{
		{Run: then(hold(abandoned), boom)}, // has put everything, and fails after that
		{Run: hold(taken)},
		{Run: hold(refused)}, // nothing is left
		{Run: then(release, boom), Reads: domain.Reads{Reservations: []string{earlier.ID}}},
		{Run: release},
		{Run: hold(last)},
		{Run: release}, // sees that it was released
	}
	receipt, outcomes, err := w.store.Transact(t.Context(), []domain.Grant{g}, wait, false, func(presented bool) []domain.Section {
		if presented {
			return sections[3:] // have come while the server was asked
		}
		return sections[:3]
	})
	require.NoError(t, err)
	assert.Equal(t, []domain.Grant{g}, receipt.Grants)
	for i, want := range []error{boom, nil, domain.ErrOutOfStock, boom, nil, nil, domain.ErrWrongState} {
		assert.ErrorIs(t, outcomes[i], want, "section %d", i)
	}
	item, err := w.store.Item(t.Context(), "a")
	require.NoError(t, err)
	assert.EqualValues(t, 9, item.Reserved)
	for _, r := range []domain.Reservation{taken, last} {
		stored, err := w.store.Reservation(t.Context(), r.ID)
		require.NoError(t, err)
		assert.Equal(t, r, stored)
	}
	for _, r := range []domain.Reservation{abandoned, refused} {
		_, err := w.store.Reservation(t.Context(), r.ID)
		require.ErrorIs(t, err, domain.ErrNotFound)
	}
	stored, err := w.store.Reservation(t.Context(), earlier.ID)
	require.NoError(t, err)
	assert.Equal(t, domain.Released, stored.State)
	assert.True(t, w.audit(t, key).OK())
	conn := postgrestest.Connect(t, w.db.ServiceURL)
	assert.EqualValues(t, 5, query[int64](t, conn, `SELECT count(*) FROM ledger WHERE resource = $1`, key), "create, hold; hold, release, hold")

	// When none of them has succeeded, the server is spared the COMMIT.
	before, err := w.store.Item(t.Context(), "a")
	require.NoError(t, err)
	_, outcomes, err = w.store.Transact(t.Context(), []domain.Grant{w.grant(key)}, wait, false, domain.Only(domain.Section{Run: then(hold(refused), boom)}, domain.Section{Run: release}))
	require.NoError(t, err)
	require.ErrorIs(t, outcomes[0], boom)
	require.ErrorIs(t, outcomes[1], domain.ErrWrongState)
	w.untouched(t, key, before)
}

// A transaction that does not wait for rows leaves out the sections whose row is locked, and commits the others.
func TestSkipLocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	free, locked := w.item(t, "a", 10, domain.FencingEnforced), w.item(t, "b", 10, domain.FencingEnforced)
	before, err := w.store.Item(t.Context(), "b")
	require.NoError(t, err)
	other := postgrestest.Connect(t, w.db.OwnerURL)
	_, err = other.Exec(t.Context(), `BEGIN`)
	require.NoError(t, err)
	_, err = other.Exec(t.Context(), `SELECT FROM fences WHERE resource = $1 FOR UPDATE`, locked)
	require.NoError(t, err)
	r := reservation(domain.Line{SKU: "a", Quantity: 1})
	_, outcomes, err := w.store.Transact(t.Context(), []domain.Grant{w.grant(free), w.grant(locked)}, wait, true, domain.Only([]domain.Section{
		{Keys: []domain.Key{free}, Run: hold(r)},
		{Keys: []domain.Key{locked}, Run: func(context.Context, domain.Tx) error { panic("not reached") }},
	}...))
	require.NoError(t, err)
	require.NoError(t, outcomes[0])
	require.ErrorIs(t, outcomes[1], domain.ErrRowLocked)
	_, err = w.store.Reservation(t.Context(), r.ID)
	require.NoError(t, err)
	_, err = other.Exec(t.Context(), `ROLLBACK`)
	require.NoError(t, err)
	w.untouched(t, locked, before)
}

// A section whose read breaks the transaction breaks it for all.
func TestSharedTransactionBreaks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	before, err := w.store.Item(t.Context(), "a")
	require.NoError(t, err)
	admin := postgrestest.Connect(t, w.db.ServiceURL)
	_, _, err = w.store.Transact(t.Context(), []domain.Grant{w.grant(key)}, wait, false, domain.Only([]domain.Section{
		{Run: hold(reservation(domain.Line{SKU: "a", Quantity: 1}))},
		{Run: func(ctx context.Context, tx domain.Tx) error {
			pid := backend(t, admin, `state = 'idle in transaction'`)
			query[bool](t, admin, `SELECT pg_terminate_backend($1)`, pid)
			_, err := tx.Reservation(ctx, domain.ReservationPrefix+uuid.NewString())
			return err
		}},
		{Run: func(context.Context, domain.Tx) error { panic("not reached") }},
	}...))
	require.ErrorIs(t, err, domain.ErrUnavailable)
	w.untouched(t, key, before)
}

func TestRollback(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	before, err := w.store.Item(t.Context(), "a")
	require.NoError(t, err)
	work := hold(reservation(domain.Line{SKU: "a", Quantity: 1}))
	watcher := postgrestest.Connect(t, w.db.ServiceURL)
	// Autovacuum, which has no user, comes and goes.
	const sessions = `SELECT array_agg(pid ORDER BY pid)::text FROM pg_stat_activity WHERE datname = current_database() AND usename IS NOT NULL`
	connections := query[string](t, watcher, sessions)

	t.Run("an error", func(t *testing.T) {
		no := errors.New("no")
		require.ErrorIs(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
			require.NoError(t, work(ctx, tx))
			return no
		}, key), no)
		w.untouched(t, key, before)
	})
	t.Run("a panic", func(t *testing.T) {
		before, err := w.store.Item(t.Context(), "a")
		require.NoError(t, err)
		assert.PanicsWithValue(t, "no", func() {
			_ = w.section(t, func(ctx context.Context, tx domain.Tx) error {
				require.NoError(t, work(ctx, tx))
				panic("no")
			}, key)
		})
		w.untouched(t, key, before)
	})
	t.Run("sold out", func(t *testing.T) {
		before, err := w.store.Item(t.Context(), "a")
		require.NoError(t, err)
		require.ErrorIs(t, w.section(t, hold(reservation(domain.Line{SKU: "a", Quantity: 11})), key), domain.ErrOutOfStock)
		w.untouched(t, key, before)
	})
	t.Run("an item that the section does not hold", func(t *testing.T) {
		other := w.item(t, "other", 10, domain.FencingEnforced)
		before, err := w.store.Item(t.Context(), "other")
		require.NoError(t, err)
		require.ErrorContains(t, w.section(t, hold(reservation(domain.Line{SKU: "other", Quantity: 1})), key), "FP003")
		w.untouched(t, other, before)
	})
	assert.Equal(t, connections, query[string](t, watcher, sessions), "a rollback does not cost a connection")
}

// What a section puts and puts again is written once, in its last state, and the ledger has every step.
func TestUnitOfWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	r := reservation(domain.Line{SKU: "a", Quantity: 4})
	require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
		if err := hold(r)(ctx, tx); err != nil {
			return err
		}
		again, err := tx.Reservation(ctx, r.ID)
		if err != nil {
			return err
		}
		assert.Equal(t, r, again, "a section sees what it has put")
		item, err := tx.Item(ctx, "a")
		if err != nil {
			return err
		}
		assert.EqualValues(t, 4, item.Reserved)
		return release(r.ID)(ctx, tx)
	}, key))
	stored, err := w.store.Reservation(t.Context(), r.ID)
	require.NoError(t, err)
	assert.Equal(t, domain.Released, stored.State)
	assert.Equal(t, r.CreatedAt, stored.SettledAt)
	assert.True(t, w.audit(t, key).OK())
	conn := postgrestest.Connect(t, w.db.ServiceURL)
	assert.EqualValues(t, 3, query[int64](t, conn, `SELECT count(*) FROM ledger WHERE resource = $1`, key), "create, hold, release")
}

func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	never := func(context.Context, domain.Tx) error {
		t.Error("a refused grant must not get as far as the section")
		return nil
	}
	stale := w.grant(key)
	require.NoError(t, w.section(t, hold(reservation(domain.Line{SKU: "a", Quantity: 1})), key))
	newest := stale.Token + 1
	conn := postgrestest.Connect(t, w.db.ServiceURL)
	holder := domain.GrantID(query[[16]byte](t, conn, `SELECT grant_id FROM fences WHERE resource = $1`, key))

	_, err := transact(t.Context(), w.store, []domain.Grant{stale}, wait, never)
	var refused *domain.RefusedError
	require.ErrorAs(t, err, &refused)
	require.ErrorIs(t, err, domain.ErrStaleToken)
	assert.Equal(t, domain.Refusal{
		Grant: stale, Reason: "stale_fencing_token", CurrentEpoch: w.epoch, CurrentToken: newest, CurrentGrant: holder,
	}, refused.Refusal, "both tokens, and whose grant it was")

	require.NoError(t, w.store.RecordRefusal(t.Context(), refused.Refusal))
	assert.EqualValues(t, 1, w.audit(t, key).Refused)
	assert.Equal(t, [16]byte(stale.ID), query[[16]byte](t, conn, `SELECT presented_grant FROM refusals`))
	assert.Equal(t, [16]byte(holder), query[[16]byte](t, conn, `SELECT current_grant FROM refusals`))

	old := w.grant(key)
	_, err = w.store.RaiseEpoch(t.Context(), domain.ScopeInventory, w.epoch)
	require.NoError(t, err)
	_, err = transact(t.Context(), w.store, []domain.Grant{old}, wait, never)
	require.ErrorAs(t, err, &refused)
	require.ErrorIs(t, err, domain.ErrSuperseded)
	assert.Equal(t, domain.Refusal{
		Grant: old, Reason: "strategy_superseded", CurrentEpoch: w.epoch + 1, CurrentToken: newest, CurrentGrant: holder,
	}, refused.Refusal)

	_, err = w.store.ClaimAuthority(t.Context(), domain.ScopeInventory, "none", "", domain.ByConfiguration)
	require.NoError(t, err)
	none := domain.Grant{Key: key, Strategy: "none", Epoch: w.epoch + 2, ID: domain.GrantID(uuid.New())}
	_, err = transact(t.Context(), w.store, []domain.Grant{none}, wait, never)
	require.ErrorAs(t, err, &refused)
	require.ErrorIs(t, err, domain.ErrFencingRequired)
	assert.Equal(t, none, refused.Refusal.Grant)

	assert.EqualValues(t, 1, w.audit(t, key).Refused, "counted is what was recorded")

	ghost := domain.Grant{Key: "item/ghost", Strategy: "none", Epoch: 1, ID: domain.GrantID(uuid.New())}
	_, err = transact(t.Context(), w.store, []domain.Grant{ghost}, wait, never)
	require.ErrorIs(t, err, domain.ErrNotFound)
	assert.NotErrorAs(t, err, &refused)
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	for _, id := range []string{"", "rsv_", "rsv_1", "rdm_" + uuid.NewString(), "rsv_" + uuid.NewString(), uuid.NewString(), "rsv_{" + uuid.NewString() + "}"} {
		_, err := w.store.Reservation(ctx, id)
		require.ErrorIs(t, err, domain.ErrNotFound, id)
		_, err = w.store.Redemption(ctx, strings.Replace(id, "rsv_", "rdm_", 1))
		require.ErrorIs(t, err, domain.ErrNotFound, id)
	}
	_, err := w.store.Item(ctx, "ghost")
	require.ErrorIs(t, err, domain.ErrNotFound)
	_, err = w.store.Coupon(ctx, "ghost")
	require.ErrorIs(t, err, domain.ErrNotFound)
	_, err = w.store.Audit(ctx, "item/ghost")
	require.ErrorIs(t, err, domain.ErrNotFound)
	_, err = w.store.Authority(ctx, "item/ghost")
	require.ErrorIs(t, err, domain.ErrNotFound)
	_, err = w.store.AuthorityOf(ctx, "item/ghost")
	require.ErrorIs(t, err, domain.ErrNotFound)
	_, err = w.store.RaiseEpoch(ctx, "item/ghost", 1)
	require.ErrorIs(t, err, domain.ErrNotFound)
}

func TestCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	view, err := w.store.CreateItem(ctx, domain.Item{SKU: "a", Name: "A", OnHand: 5}, domain.LockSpec{Fencing: domain.FencingEnforced}, nil)
	require.NoError(t, err)
	assert.Equal(t, domain.ItemView{
		Item:  domain.Item{SKU: "a", Name: "A", OnHand: 5},
		Fence: domain.Fence{Strategy: "redis", Fencing: domain.FencingEnforced, Epoch: w.epoch},
	}, view)
	stored, err := w.store.Item(ctx, "a")
	require.NoError(t, err)
	assert.Equal(t, view, stored)
	assert.Equal(t, domain.AuditRow{
		Key: "item/a", Limit: 5, Strategy: "redis", Fencing: domain.FencingEnforced, LastEpoch: w.epoch,
	}, w.audit(t, "item/a"))

	_, err = w.store.CreateItem(ctx, domain.Item{SKU: "a", Name: "B", OnHand: 7}, domain.LockSpec{Fencing: domain.FencingOff}, nil)
	require.ErrorIs(t, err, domain.ErrAlreadyExists)
	again, err := w.store.Item(ctx, "a")
	require.NoError(t, err)
	assert.Equal(t, stored, again)

	// A resource with a strategy of its own is a scope of its own.
	own, err := w.store.CreateItem(ctx, domain.Item{SKU: "own", Name: "Own"}, domain.LockSpec{Strategy: "none", Fencing: domain.FencingOff}, nil)
	require.NoError(t, err)
	assert.Equal(t, domain.Fence{Strategy: "none", Fencing: domain.FencingOff, Epoch: 1}, own.Fence)
	authority, err := w.store.Authority(ctx, "item/own")
	require.NoError(t, err)
	assert.Equal(t, domain.Scope("item/own"), authority.Scope)
	shared, err := w.store.Reigns(ctx)
	require.NoError(t, err)
	assert.Len(t, shared, 2)
	counts, err := w.store.OwnReigns(ctx)
	require.NoError(t, err)
	assert.Equal(t, map[string]int64{"none": 1}, counts)

	items, err := w.store.Items(ctx, "", 10)
	require.NoError(t, err)
	assert.Equal(t, []domain.ItemView{stored, own}, items)
}

// Lists are in byte order whatever the database's own order is, and a page begins behind a key, not at a place.
func TestPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	var keys []domain.Key
	for _, sku := range []string{"10", "9", "B", "Z", "a.b", "aB", "ab"} { // in byte order; an English dictionary has another
		keys = append(keys, w.item(t, sku, 1, domain.FencingEnforced))
	}
	for after, want := range map[domain.Key][]domain.Key{"": keys[:3], "item/9": keys[2:5], "item/A": keys[2:5], "item/aB": keys[6:], "item/ab": nil} {
		items, err := w.store.Items(ctx, after, 3)
		require.NoError(t, err)
		var got []domain.Key
		for _, item := range items {
			got = append(got, domain.ItemKey(item.SKU))
		}
		assert.Equal(t, want, got, after)
	}
	coupon := w.coupon(t, domain.Coupon{Code: "z", MaxRedemptions: 1})
	resources, err := w.store.Resources(ctx, "", 3)
	require.NoError(t, err)
	assert.Equal(t, []domain.Key{coupon, keys[0], keys[1]}, resources)
	rows, err := w.store.Audit(ctx, resources...)
	require.NoError(t, err)
	var audited []domain.Key
	for _, row := range rows {
		audited = append(audited, row.Key)
	}
	assert.Equal(t, resources, audited)
	resources, err = w.store.Resources(ctx, "item/aB", 3)
	require.NoError(t, err)
	assert.Equal(t, keys[6:], resources)
	_, err = w.store.Audit(ctx, keys[0], "item/ghost")
	require.ErrorIs(t, err, domain.ErrNotFound)
}

// A page costs what is on it, however long the list is: PostgreSQL walks an index and sorts nothing.
func TestPagesAreReadFromAnIndex(t *testing.T) {
	t.Parallel()
	conn := postgrestest.Connect(t, postgrestest.New(t).ServiceURL)
	_, err := conn.Exec(t.Context(), `SET enable_seqscan = off; SET enable_bitmapscan = off`) // the tables are empty
	require.NoError(t, err)
	plan := func(order string) string {
		rows, err := conn.Query(t.Context(), `EXPLAIN SELECT resource FROM items WHERE resource > 'item/a' ORDER BY `+order+` LIMIT 10`)
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return strings.Join(lines, "\n")
	}
	assert.NotContains(t, plan(`resource`), "Sort")
	assert.NotContains(t, plan(`resource COLLATE "C"`), "Sort")
	assert.Contains(t, plan(`resource COLLATE "POSIX"`), "Sort", "an index in one order is of no use for another")
}

func TestCreateAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	store := w.db.Store(t, 8)
	for _, lock := range []domain.LockSpec{{Fencing: domain.FencingEnforced}, {Fencing: domain.FencingEnforced, Strategy: "postgres"}} {
		var created atomic.Int64
		var group sync.WaitGroup
		for stock := range int64(8) {
			group.Go(func() {
				_, err := store.CreateItem(t.Context(), domain.Item{SKU: "a" + lock.Strategy, Name: "A", OnHand: stock}, lock, nil)
				if err == nil {
					created.Add(1)
					return
				}
				assert.ErrorIs(t, err, domain.ErrAlreadyExists)
			})
		}
		group.Wait()
		assert.EqualValues(t, 1, created.Load())
		assert.True(t, w.audit(t, domain.ItemKey("a"+lock.Strategy)).OK())
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := time.Date(2026, 3, 29, 1, 59, 59, 999999000, time.UTC)
	view, err := w.store.CreateCoupon(t.Context(), domain.Coupon{
		Code: "spring", MaxRedemptions: 1, ValidFrom: from, ValidUntil: from.Add(time.Microsecond),
	}, domain.LockSpec{Fencing: domain.FencingEnforced}, nil)
	require.NoError(t, err)
	stored, err := w.store.Coupon(t.Context(), "spring")
	require.NoError(t, err)
	assert.Equal(t, view, stored)
	assert.Equal(t, from, stored.ValidFrom)
	assert.Equal(t, time.UTC, stored.ValidFrom.Location())

	w.coupon(t, domain.Coupon{Code: "ever", MaxRedemptions: 1})
	ever, err := w.store.Coupon(t.Context(), "ever")
	require.NoError(t, err)
	assert.True(t, ever.ValidFrom.IsZero() && ever.ValidUntil.IsZero() && ever.PerCustomerLimit == 0)
}

func TestCoupons(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.coupon(t, domain.Coupon{Code: "c", MaxRedemptions: 5, PerCustomerLimit: 2})
	redemption := func(customer string) domain.Redemption {
		return domain.Redemption{
			ID: domain.RedemptionPrefix + uuid.NewString(), Code: "c", CustomerID: customer, State: domain.Redeemed,
			CreatedBy: "caller", CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
		}
	}
	redeem := func(ctx context.Context, tx domain.Tx, r domain.Redemption) error {
		coupon, err := tx.Coupon(ctx, "c")
		if err != nil {
			return err
		}
		uses, err := tx.CustomerUses(ctx, "c", r.CustomerID)
		if err != nil {
			return err
		}
		if err := coupon.Redeem(uses, r.CreatedAt); err != nil {
			return err
		}
		tx.PutCoupon(coupon, domain.Entry{Kind: domain.EntryRedeem, Reference: r.ID})
		tx.PutRedemption(r)
		return nil
	}

	first, second, other := redemption("one"), redemption("one"), redemption("two")
	other.ReservationID = domain.ReservationPrefix + uuid.NewString()
	require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error { return redeem(ctx, tx, first) }, key))
	require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
		require.NoError(t, redeem(ctx, tx, second))
		require.NoError(t, redeem(ctx, tx, other))
		assert.ErrorIs(t, redeem(ctx, tx, redemption("one")), domain.ErrCustomerLimit, "what is stored and what is about to be both count")
		return nil
	}, key))
	for _, want := range []domain.Redemption{first, second, other} {
		got, err := w.store.Redemption(t.Context(), want.ID)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	audit := w.audit(t, key)
	assert.EqualValues(t, 3, audit.Sold)
	assert.True(t, audit.OK())

	rollback := func(ctx context.Context, tx domain.Tx, id string) error {
		r, err := tx.Redemption(ctx, id)
		if err != nil {
			return err
		}
		coupon, err := tx.Coupon(ctx, "c")
		if err != nil {
			return err
		}
		if err := coupon.GiveBack(); err != nil {
			return err
		}
		r.State, r.SettledAt = domain.RolledBack, r.CreatedAt
		tx.PutCoupon(coupon, domain.Entry{Kind: domain.EntryRollback, Reference: id})
		tx.PutRedemption(r)
		return nil
	}
	require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
		require.NoError(t, rollback(ctx, tx, first.ID))
		uses, err := tx.CustomerUses(ctx, "c", "one")
		require.NoError(t, err)
		assert.EqualValues(t, 1, uses)
		return nil
	}, key))
	got, err := w.store.Redemption(t.Context(), first.ID)
	require.NoError(t, err)
	assert.Equal(t, domain.RolledBack, got.State)
	assert.Equal(t, first.CreatedAt, got.SettledAt)

	// A section that gives the same use back again, without looking at its state, changes nothing however often it is run.
	err = w.section(t, func(ctx context.Context, tx domain.Tx) error { return rollback(ctx, tx, first.ID) }, key)
	require.ErrorIs(t, err, domain.ErrLockTimeout)
	audit = w.audit(t, key)
	assert.EqualValues(t, 2, audit.Sold)
	assert.True(t, audit.OK())

	// Redeemed and given back in one section.
	brief := redemption("three")
	require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
		require.NoError(t, redeem(ctx, tx, brief))
		return rollback(ctx, tx, brief.ID)
	}, key))
	got, err = w.store.Redemption(t.Context(), brief.ID)
	require.NoError(t, err)
	assert.Equal(t, domain.RolledBack, got.State)
	assert.True(t, w.audit(t, key).OK())
}

// Without a fence two sections can settle the same hold at once. The change of state is conditional on the state: the
// second is undone as a whole, runs again, and sees what the first has done.
func TestSettlingTwiceAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingOff)
	r := reservation(domain.Line{SKU: "a", Quantity: 2})
	require.NoError(t, w.section(t, hold(r), key))
	second := w.db.Store(t, 1)
	err := w.section(t, settle(r.ID, domain.Released, domain.EntryRelease, func(item *domain.Item, quantity int64) error {
		_, err := transact(t.Context(), second, []domain.Grant{w.grant(key)}, wait, release(r.ID))
		require.NoError(t, err)
		return item.Release(quantity)
	}), key)
	require.ErrorIs(t, err, domain.ErrWrongState)
	assert.True(t, w.audit(t, key).OK())
}

func TestRowLock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.store.ClaimAuthority(t.Context(), domain.ScopeInventory, "postgres", "", domain.ByConfiguration)
	require.NoError(t, err)
	authority, err := w.store.AuthorityOf(t.Context(), domain.ScopeInventory)
	require.NoError(t, err)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	grant := func() domain.Grant {
		return domain.Grant{Key: key, Strategy: "postgres", Epoch: authority.Epoch, ID: domain.GrantID(uuid.New()), RowLock: true}
	}
	for want := domain.Token(1); want <= 3; want++ {
		receipt, err := transact(t.Context(), w.store, []domain.Grant{grant()}, wait, hold(reservation(domain.Line{SKU: "a", Quantity: 1})))
		require.NoError(t, err)
		assert.Equal(t, want, receipt.Grants[0].Token, "the receipt has the token that the row lock drew")
	}

	// A row that does not come free.
	second := w.db.Store(t, 1)
	_, err = second.Item(t.Context(), "a") // so that the short wait below is for the row and not for a connection
	require.NoError(t, err)
	_, err = transact(t.Context(), w.store, []domain.Grant{grant()}, wait, func(context.Context, domain.Tx) error {
		_, err := transact(t.Context(), second, []domain.Grant{grant()}, 100*time.Millisecond, func(context.Context, domain.Tx) error {
			t.Error("the row is held by another")
			return nil
		})
		assert.ErrorIs(t, err, domain.ErrLockTimeout)
		assert.NotErrorIs(t, err, domain.ErrUnavailable)
		return nil
	})
	require.NoError(t, err)
	_, err = transact(t.Context(), second, []domain.Grant{grant()}, wait, hold(reservation(domain.Line{SKU: "a", Quantity: 1})))
	require.NoError(t, err, "the connection that had waited in vain is good again")
}

// A pool that is empty is a wait like any other, with an end.
func TestNoConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	require.NoError(t, w.section(t, func(ctx context.Context, _ domain.Tx) error {
		_, err := transact(ctx, w.store, nil, time.Millisecond, func(context.Context, domain.Tx) error { return nil })
		assert.ErrorIs(t, err, domain.ErrUnavailable)
		assert.NoError(t, w.store.Ping(ctx), "health checks have a connection of their own")
		return nil
	}, key))
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	lost := errors.New("the lease was lost")
	work := hold(reservation(domain.Line{SKU: "a", Quantity: 1}))

	for name, section := range map[string]func(ctx context.Context, tx domain.Tx, lose func()) error{
		"before the commit":                        func(ctx context.Context, tx domain.Tx, lose func()) error { defer lose(); return work(ctx, tx) },
		"before the commit, with nothing to write": func(_ context.Context, _ domain.Tx, lose func()) error { lose(); return nil },
		"in the section":                           func(ctx context.Context, tx domain.Tx, lose func()) error { lose(); return work(ctx, tx) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			key := w.item(t, "a", 10, domain.FencingEnforced)
			before, err := w.store.Item(t.Context(), "a")
			require.NoError(t, err)
			ctx, cancel := context.WithCancelCause(t.Context())
			_, err = transact(ctx, w.store, []domain.Grant{w.grant(key)}, wait, func(ctx context.Context, tx domain.Tx) error {
				return section(ctx, tx, func() { cancel(lost) })
			})
			require.ErrorIs(t, err, lost)
			w.untouched(t, key, before)
		})
	}
	t.Run("while presenting waits", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		key := w.item(t, "a", 10, domain.FencingEnforced)
		before, err := w.store.Item(t.Context(), "a")
		require.NoError(t, err)
		watcher, other := postgrestest.Connect(t, w.db.ServiceURL), w.db.Store(t, 1)
		held := errors.New("held")
		_, err = transact(t.Context(), other, []domain.Grant{w.grant(key)}, wait, func(context.Context, domain.Tx) error {
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				backend(t, watcher, waitsForLock)
				cancel(lost)
			}()
			_, err := transact(ctx, w.store, []domain.Grant{w.grant(key)}, wait, work)
			assert.ErrorIs(t, err, lost)
			return held
		})
		require.ErrorIs(t, err, held)
		w.untouched(t, key, before)
	})
	t.Run("without a cause", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		key := w.item(t, "a", 10, domain.FencingEnforced)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := transact(ctx, w.store, []domain.Grant{w.grant(key)}, wait, work)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// A request to cancel that was lost on its way may still arrive. The next query must not be the one that it meets, nor fail
// because the connection has been closed for that reason.
func TestCancelIsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.item(t, "a", 10, domain.FencingEnforced)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	server, err := url.Parse(w.db.ServiceURL)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var armed atomic.Bool
	through := postgrestest.NewProxy(t, w.db.ServiceURL, func(p *pgproxy.Proxy, r pgproxy.Request) pgproxy.Verdict {
		if strings.Contains(r.Statement, "items") && armed.CompareAndSwap(true, false) {
			p.Route(silent.Addr().String())
			cancel()
			lost, err := silent.Accept() // the request, of which the server does not hear
			if assert.NoError(t, err) {
				t.Cleanup(func() { _ = lost.Close() })
			}
			p.Route(server.Host)
		}
		return pgproxy.Pass
	})
	store, err := postgres.Open(t.Context(), through.URL, postgres.Options{MaxConns: 1, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	armed.Store(true)
	_, _ = store.Item(ctx, "a") // it has its answer all the same
	require.False(t, armed.Load())
	_, err = store.Item(t.Context(), "a")
	require.NoError(t, err, "somebody else's query")
}

// The server ends a circle of waits by aborting one of those in it. Who is aborted tries again, and nobody notices.
func TestDeadlockIsRetried(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.item(t, "a", 10, domain.FencingOff), w.item(t, "b", 10, domain.FencingOff)
	raw, watcher := postgrestest.Connect(t, w.db.ServiceURL), postgrestest.Connect(t, w.db.ServiceURL)
	exec := func(sql string) error {
		_, err := raw.Exec(t.Context(), sql)
		return err
	}
	holds := int64(0)
	tries := 0
	// Aborted is whoever looks first after a second of waiting: nearly always the store, which waits first. If it was the
	// other, once more.
	for rounds := 0; tries < 2; rounds++ {
		require.Less(t, rounds, 5)
		tries = 0
		require.NoError(t, exec(`BEGIN; UPDATE items SET on_hand = on_hand WHERE resource = 'item/b'`))
		done := make(chan error, 1)
		go func() {
			_, err := transact(t.Context(), w.store, []domain.Grant{w.grant(a), w.grant(b)}, wait, func(ctx context.Context, tx domain.Tx) error {
				tries++
				return hold(reservation(domain.Line{SKU: "a", Quantity: 1}, domain.Line{SKU: "b", Quantity: 1}))(ctx, tx)
			})
			done <- err
		}()
		backend(t, watcher, waitsForLock)
		if err := exec(`UPDATE items SET on_hand = on_hand WHERE resource = 'item/a'`); err != nil {
			require.ErrorContains(t, err, "40P01")
		}
		require.NoError(t, exec(`COMMIT`))
		require.NoError(t, <-done)
		holds++
	}
	for _, key := range []domain.Key{a, b} {
		audit := w.audit(t, key)
		assert.Equal(t, holds, audit.Held, "written once, however often it was tried")
		assert.True(t, audit.OK())
	}
}

// A server that goes away in the middle: the error says so, and the next call gets a new connection.
func TestConnectionIsKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	before, err := w.store.Item(t.Context(), "a")
	require.NoError(t, err)
	watcher := postgrestest.Connect(t, w.db.ServiceURL)
	kill := func() {
		pid := backend(t, watcher, `state = 'idle in transaction'`)
		assert.True(t, query[bool](t, watcher, `SELECT pg_terminate_backend($1, 10000)`, pid))
	}
	work := hold(reservation(domain.Line{SKU: "a", Quantity: 1}))
	for name, section := range map[string]func(context.Context, domain.Tx) error{
		"before a read":     func(ctx context.Context, tx domain.Tx) error { kill(); return work(ctx, tx) },
		"before the writes": func(ctx context.Context, tx domain.Tx) error { defer kill(); return work(ctx, tx) },
		"before the commit": func(context.Context, domain.Tx) error { kill(); return nil },
	} {
		err := w.section(t, section, key)
		require.ErrorIs(t, err, domain.ErrUnavailable, name)
		require.ErrorContains(t, err, "PostgreSQL", name)
		after, err := w.store.Item(t.Context(), "a")
		require.NoError(t, err, name)
		assert.Equal(t, before, after, name)
	}
	w.untouched(t, key, before)
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	open := func(url string) error {
		store, err := postgres.Open(t.Context(), url, postgres.Options{MaxConns: 1, Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			store.Close()
		}
		return err
	}
	db := postgrestest.New(t)
	require.NoError(t, open(db.ServiceURL))
	require.ErrorContains(t, open(db.OwnerURL), "connect as fencepost_service")
	require.ErrorContains(t, open(postgrestest.Empty(t).ServiceURL), "run 'fencepost migrate'")
	require.ErrorContains(t, open("postgres://%"), "database URL")
	serializable, err := url.Parse(db.ServiceURL)
	require.NoError(t, err)
	query := serializable.Query()
	query.Set("default_transaction_isolation", "serializable")
	serializable.RawQuery = query.Encode()
	require.ErrorContains(t, open(serializable.String()), "SET default_transaction_isolation = 'read committed'")

	err = open("postgres://me:secret@127.0.0.1:1/fencepost?sslmode=disable")
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.ErrorContains(t, err, "PostgreSQL")
	require.ErrorContains(t, err, "127.0.0.1:1")
	assert.NotContains(t, err.Error(), "secret")

	owner := postgrestest.Connect(t, db.OwnerURL)
	_, err = owner.Exec(t.Context(), `GRANT CREATE ON SCHEMA public TO fencepost_service`)
	require.NoError(t, err)
	require.ErrorContains(t, open(db.ServiceURL), "REVOKE CREATE ON SCHEMA public")
}
