package postgres_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/postgrestest"
)

var shop = domain.Caller{ID: "shop"}

// Instances share one limit, and few requests ask PostgreSQL. The negative control counts in each instance alone.
func TestRequestsOverInstances(t *testing.T) {
	t.Parallel()
	const instances, tries, limit = 3, 300, 500
	// A window ends at a full minute. The test counts within one: it begins again if the minute ends.
	count := func(t *testing.T, caller string, bounds []*postgres.Requests) (passed int64) {
		var group sync.WaitGroup
		var n atomic.Int64
		for _, bound := range bounds {
			for range 4 {
				group.Go(func() {
					for range tries / 4 {
						quota, err := bound.Take(t.Context(), caller)
						assert.EqualValues(t, limit, quota.Limit)
						assert.LessOrEqual(t, quota.Reset, postgres.RequestWindow)
						limited, ok := errors.AsType[*domain.LimitedError](err)
						switch {
						case err == nil:
							n.Add(1)
						case assert.True(t, ok, err):
							assert.Positive(t, limited.After)
							assert.Zero(t, quota.Remaining)
						}
					}
				})
			}
		}
		group.Wait()
		return n.Load()
	}
	db := postgrestest.New(t)
	conn := postgrestest.Connect(t, db.ServiceURL)
	minute := func() time.Time {
		return query[time.Time](t, conn, `SELECT date_trunc('minute', statement_timestamp())`)
	}
	var stores, others []*postgres.Store
	for range instances {
		stores, others = append(stores, db.Store(t, 1)), append(others, postgrestest.New(t).Store(t, 1))
	}
	for began := minute(); ; began = minute() {
		var shared, alone []*postgres.Requests
		caller := began.String()
		for i, store := range stores {
			shared = append(shared, store.Requests(limit))
			alone = append(alone, others[i].Requests(limit))
		}
		passed, uncounted := count(t, caller, shared), count(t, caller, alone)
		if !minute().Equal(began) {
			continue
		}
		assert.LessOrEqual(t, passed, int64(limit))
		assert.Greater(t, passed, int64(limit-instances*limit/50), "no more than a share is lost in each instance")
		assert.Greater(t, uncounted, int64(limit), "the negative control")
		break
	}
	_, err := stores[0].Requests(limit).Take(t.Context(), "another")
	require.NoError(t, err, "callers do not share a limit")
}

func TestRequestsAreLeased(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	requests := db.Store(t, 1).Requests(5000)
	conn := postgrestest.Connect(t, db.ServiceURL)
	for try := 0; ; try++ { // not over the end of a window
		began := query[time.Time](t, conn, `SELECT date_trunc('minute', statement_timestamp())`)
		for range 100 {
			_, err := requests.Take(t.Context(), "shop")
			require.NoError(t, err)
		}
		taken := query[int64](t, conn, `SELECT taken FROM request_quotas WHERE began = $1`, began)
		if query[bool](t, conn, `SELECT date_trunc('minute', statement_timestamp()) = $1`, began) {
			assert.EqualValues(t, 100*(try+1), taken, "one question for a hundred requests")
			return
		}
		require.Less(t, try, 2)
	}
}

// Who has used up a window has the next one.
func TestRequestsOfTheNextWindow(t *testing.T) {
	t.Parallel()
	requests := postgrestest.New(t).Store(t, 1).Requests(3).Within(200 * time.Millisecond)
	for range 3 {
		limited := false
		require.Eventually(t, func() bool {
			_, err := requests.Take(t.Context(), "shop")
			if errors.Is(err, domain.ErrRateLimited) {
				limited = true
				return false
			}
			assert.NoError(t, err)
			return limited
		}, time.Minute, time.Millisecond)
	}
}

func TestGuesses(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	const limit = 5
	one, two := db.Store(t, 1).Guesses(limit), db.Store(t, 1).Guesses(limit)
	ctx := t.Context()
	var attempts int
	wrong := func() error { attempts++; return domain.ErrCouponExpired }
	right := func() error { attempts++; return nil }

	for range 1000 {
		require.NoError(t, one.Try(ctx, shop, right), "what succeeds is not counted")
	}
	attempts = 0
	for range limit {
		require.ErrorIs(t, one.Try(ctx, shop, wrong), domain.ErrCouponExpired)
	}
	for range 100_000 {
		require.ErrorIs(t, one.Try(ctx, shop, wrong), domain.ErrRateLimited)
	}
	require.ErrorIs(t, one.Try(ctx, shop, right), domain.ErrRateLimited, "nor may a hit get through")
	assert.Equal(t, limit, attempts)
	// Another instance learns of it by the next failure.
	require.ErrorIs(t, two.Try(ctx, shop, wrong), domain.ErrCouponExpired)
	require.ErrorIs(t, two.Try(ctx, shop, right), domain.ErrRateLimited)
	require.NoError(t, one.Try(ctx, domain.Caller{ID: "other"}, right), "another caller is not concerned")
	require.ErrorIs(t, one.Try(ctx, domain.Caller{ID: "shop", Admin: true}, wrong), domain.ErrCouponExpired)

	// What was under way at once is counted all the same, and paid for later.
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	for range 10 {
		_ = db.Store(t, 1).Guesses(limit).Try(ctx, shop, func() error { hangUp(); return domain.ErrCouponExpired })
	}
	conn := postgrestest.Connect(t, db.ServiceURL)
	windows := query[float64](t, conn, `SELECT extract(epoch FROM until - now())::float8 / 60 FROM coupon_guesses WHERE caller = 'shop'`)
	assert.Greater(t, windows, float64(limit+1+10)/limit-0.9)
}

// When it cannot be counted, nobody learns whether it is a code.
func TestGuessThatCannotBeCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	store, err := postgres.Open(t.Context(), w.db.ServiceURL, postgres.Options{MaxConns: 1})
	require.NoError(t, err)
	store.Close()
	err = store.Guesses(5).Try(t.Context(), shop, func() error { return domain.ErrCouponExpired })
	require.Error(t, err)
	assert.NotErrorIs(t, err, domain.ErrCouponExpired)
}

// However many tries there are at once, and over however many instances, a caller has no more open holds than he may.
func TestOpenHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 1000, domain.FencingEnforced)
	const limit, instances = 60, 4
	var bounds []*postgres.Holds
	for range instances {
		bounds = append(bounds, w.db.Store(t, 2).Holds(limit))
	}
	make200 := func(try func(i int, attempt func() error) error) (made int64, ids []string) {
		var mu sync.Mutex
		var group sync.WaitGroup
		for i := range 200 {
			group.Go(func() {
				r := reservation(domain.Line{SKU: "a", Quantity: 1})
				r.CreatedBy = shop.ID
				err := try(i, func() error {
					if i%7 == 0 {
						return domain.ErrOutOfStock // a try that comes to nothing leaves its place to others
					}
					mu.Lock() // one after the other: grants must be presented in their order
					defer mu.Unlock()
					return w.section(t, hold(r), key)
				})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					made++
					ids = append(ids, r.ID)
				case !errors.Is(err, domain.ErrOutOfStock):
					assert.ErrorIs(t, err, domain.ErrTooManyHolds)
				}
			})
		}
		group.Wait()
		return made, ids
	}
	made, ids := make200(func(i int, attempt func() error) error { return bounds[i%instances].Try(t.Context(), shop, attempt) })
	assert.LessOrEqual(t, made, int64(limit))
	// What was refused because it was counted twice for a moment can be had afterwards.
	fill := func(try func(attempt func() error) error) (n int64) {
		for {
			r := reservation(domain.Line{SKU: "a", Quantity: 1})
			r.CreatedBy = shop.ID
			if err := try(func() error { return w.section(t, hold(r), key) }); err != nil {
				require.ErrorIs(t, err, domain.ErrTooManyHolds)
				return n
			}
			n++
		}
	}
	for _, bound := range bounds {
		made += fill(func(attempt func() error) error { return bound.Try(t.Context(), shop, attempt) })
	}
	assert.EqualValues(t, limit, made, "nothing is lost for good")
	conn := postgrestest.Connect(t, w.db.ServiceURL)
	open := `SELECT count(*) FROM reservation_lines WHERE created_by = 'shop' AND state = 'held'`
	assert.Equal(t, made, query[int64](t, conn, open))

	for _, id := range ids[:30] {
		require.NoError(t, w.section(t, release(id), key))
	}
	assert.EqualValues(t, 30, fill(func(attempt func() error) error { return bounds[0].Try(t.Context(), shop, attempt) }))
	assert.EqualValues(t, limit, query[int64](t, conn, open), "what was given back can be held again, and no more")

	make200(func(i int, attempt func() error) error { return attempt() })
	assert.Greater(t, query[int64](t, conn, open), int64(limit), "the negative control")
	require.NoError(t, bounds[0].Try(t.Context(), domain.Caller{ID: "boss", Admin: true}, func() error { return nil }))
}

// What may have been made counts as made, also to the instance that does not know.
func TestHoldsOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 1000, domain.FencingEnforced)
	const limit = 5
	bound := w.db.Store(t, 1).Holds(limit)
	for n := range 3 * limit {
		err := bound.Try(t.Context(), shop, func() error {
			r := reservation(domain.Line{SKU: "a", Quantity: 1})
			r.CreatedBy = shop.ID
			require.NoError(t, w.section(t, hold(r), key))
			return domain.ErrOutcomeUnknown
		})
		if n < limit {
			require.ErrorIs(t, err, domain.ErrOutcomeUnknown)
		} else {
			require.ErrorIs(t, err, domain.ErrTooManyHolds)
		}
	}
}

// An instance that has not come to use what it had leave for in time must ask again: others have it by now.
func TestLeaveThatIsOver(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	const limit = 100
	slow, other := db.Store(t, 1).Holds(limit), db.Store(t, 1).Holds(limit)
	try := func(bound *postgres.Holds, within func() error) error { return bound.Try(t.Context(), shop, within) }
	nothing := func() error { return domain.ErrOutOfStock }
	require.ErrorIs(t, try(slow, nothing), domain.ErrOutOfStock) // leaves it with a share
	conn := postgrestest.Connect(t, db.ServiceURL)
	_, err := conn.Exec(t.Context(), `DELETE FROM hold_leases`) // its term is over
	require.NoError(t, err)
	slow.EndLeave(shop.ID)
	// The other takes all there is, and while he is at it there is nothing left for the slow one.
	var nested func(n int) error
	nested = func(n int) error {
		if n == 0 {
			require.ErrorIs(t, try(slow, nothing), domain.ErrTooManyHolds)
			return domain.ErrOutOfStock
		}
		return try(other, func() error { return nested(n - 1) })
	}
	require.ErrorIs(t, nested(limit), domain.ErrOutOfStock)
}
