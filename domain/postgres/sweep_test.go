package postgres_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/postgrestest"
)

// held makes a hold that is due at the time.
func (w *world) held(t *testing.T, due time.Time, lines ...domain.Line) domain.Reservation {
	t.Helper()
	r := reservation(lines...)
	r.ExpiresAt = due.UTC().Truncate(time.Microsecond)
	require.NoError(t, w.section(t, hold(r), r.Keys()...))
	return r
}

// swept is what a sweep of the store finds.
func swept(t *testing.T, store *postgres.Store, now time.Time, except ...string) (ids []string, next time.Time) {
	t.Helper()
	found, next, err := store.Sweep(t.Context(), now, except, func(due []domain.Reservation) {
		for _, r := range due {
			ids = append(ids, r.ID)
		}
	})
	require.NoError(t, err)
	require.Equal(t, len(ids), found)
	return ids, next
}

func TestSweepFindsWhatIsDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.item(t, "a", 10, domain.FencingEnforced)
	w.item(t, "b", 10, domain.FencingEnforced)
	ids, next := swept(t, w.store, time.Now())
	assert.Empty(t, ids)
	assert.Zero(t, next)

	at := time.Now().UTC().Truncate(time.Microsecond)
	first := w.held(t, at, domain.Line{SKU: "a", Quantity: 1})
	both := w.held(t, at.Add(time.Second), domain.Line{SKU: "b", Quantity: 1}, domain.Line{SKU: "a", Quantity: 1})
	last := w.held(t, at.Add(2*time.Second), domain.Line{SKU: "b", Quantity: 1})
	settled := w.held(t, at, domain.Line{SKU: "a", Quantity: 1})
	settled.State, settled.SettledAt = domain.Released, at
	require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
		_, err := tx.Reservation(ctx, settled.ID)
		tx.PutReservation(settled)
		return err
	}, "item/a"))

	ids, next = swept(t, w.store, at.Add(-time.Microsecond))
	assert.Empty(t, ids)
	assert.Equal(t, at, next.UTC())
	ids, next = swept(t, w.store, at.Add(time.Second))
	assert.ElementsMatch(t, []string{first.ID, both.ID}, ids, "one of several lines is found once")
	assert.Equal(t, at.Add(2*time.Second), next.UTC())
	ids, next = swept(t, w.store, at.Add(time.Hour))
	assert.ElementsMatch(t, []string{first.ID, both.ID, last.ID}, ids)
	assert.Zero(t, next)
	ids, _ = swept(t, w.store, at.Add(time.Hour), "item/a")
	assert.Equal(t, []string{last.ID}, ids, "what is to be left alone: an item, by the first of an order")
	ids, _ = swept(t, w.store, at.Add(time.Hour), first.ID, last.ID)
	assert.Equal(t, []string{both.ID}, ids, "or single holds")
}

// A sweep finds an order with what goes with it, so that its end needs no second look.
func TestSweepKnowsWhatIsTied(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.item(t, "a", 10, domain.FencingEnforced)
	coupon := w.coupon(t, domain.Coupon{Code: "c", MaxRedemptions: 5})
	r := w.held(t, time.Now(), domain.Line{SKU: "a", Quantity: 1})
	use := domain.Redemption{
		ID: domain.RedemptionPrefix + uuid.NewString(), Code: "c", CustomerID: "customer", ReservationID: r.ID,
		State: domain.Redeemed, CreatedBy: "caller", CreatedAt: r.CreatedAt,
	}
	require.NoError(t, w.section(t, func(_ context.Context, tx domain.Tx) error {
		tx.PutRedemption(use)
		return nil
	}, coupon))
	var due []domain.Reservation
	_, _, err := w.store.Sweep(t.Context(), time.Now(), nil, func(found []domain.Reservation) { due = found })
	require.NoError(t, err)
	r.Tied = []domain.TiedUse{{Redemption: use.ID, Code: "c"}}
	assert.Equal(t, []domain.Reservation{r}, due)
}

// sweeping is a sweep that stays at what it has found until it is let go.
func sweeping(t *testing.T, store *postgres.Store, now time.Time) (ids []string, letGo func()) {
	t.Helper()
	found, release, done := make(chan []string, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		n, _, err := store.Sweep(t.Context(), now, nil, func(due []domain.Reservation) {
			var ids []string
			for _, r := range due {
				ids = append(ids, r.ID)
			}
			found <- ids
			<-release
		})
		if n == 0 {
			found <- nil
		}
		done <- err
	}()
	return <-found, func() {
		close(release)
		require.NoError(t, <-done)
	}
}

// While one instance is at the holds of an item, others get none of it, and find work elsewhere. What it was at is free as soon
// as it is gone, however that happens.
func TestSweepsShareTheWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	var all []string
	for i := range 40 { // over the 16 slots
		sku := fmt.Sprintf("item-%d", i)
		w.item(t, sku, 10, domain.FencingEnforced)
		for range 2 {
			all = append(all, w.held(t, now, domain.Line{SKU: sku, Quantity: 1}).ID)
		}
	}
	var shared []string
	for range 4 {
		ids, letGo := sweeping(t, w.db.Store(t, 1), now)
		defer letGo()
		assert.NotEmpty(t, ids)
		assert.Less(t, len(ids), len(all)/2)
		shared = append(shared, ids...)
	}
	assert.ElementsMatch(t, all, shared, "each hold is one instance's")
	ids, _ := swept(t, w.store, now)
	assert.Empty(t, ids, "nothing is left")

	// The processes are gone, as far as PostgreSQL can tell.
	watcher := postgrestest.Connect(t, w.db.ServiceURL)
	assert.Equal(t, 4, query[int](t, watcher, `
		SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
		 WHERE datname = current_database() AND state = 'idle in transaction'`))
	ids, _ = swept(t, w.store, now)
	assert.NotEmpty(t, ids)
}
