package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/postgrestest"
	"fencepost/locking"
	"fencepost/locking/strategies"
)

// soak makes of some tests what takes too long for every day.
var soak = flag.Bool("soak", false, "run the long forms of the tests that have one")

// soaked is how often to do what the long form does n times.
func soaked(n int) int {
	if *soak {
		return n
	}
	return n / 50
}

// shop is instances of the service in this process: each has its own connections and its own clients of the lock servers.
type shop struct {
	db        postgrestest.Database
	instances []*shopInstance
	items     []string // of each strategy that fences in turn
	coupon    string
}

type shopInstance struct {
	domain.Service
	store *postgres.Store
}

func newShop(t *testing.T, instances, items int, stock int64) *shop {
	t.Helper()
	db, _ := postgrestest.Reused(t)
	log := slog.New(slog.DiscardHandler)
	s := &shop{db: db, coupon: uuid.NewString()[:32]}
	for range instances {
		backends, err := strategies.Open(strategies.Config{
			RedisURL:         os.Getenv("FENCEPOST_REDIS_URL"),
			RedlockURLs:      strings.Split(os.Getenv("FENCEPOST_REDLOCK_URLS"), ","),
			ZooKeeperServers: strings.Split(os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"), ","),
			LeaseTTL:         2 * time.Minute, // longer than anybody waits: whoever sleeps through a release fails
			Log:              log,
		})
		require.NoError(t, err)
		t.Cleanup(func() { _ = backends.Close() })
		store := db.Store(t, 8)
		guard := locking.NewGuard(store, backends, locking.Options{LockWait: time.Minute, MaxBatch: 64, MaxQueue: 10_000, MaxTransactions: 1, Log: log})
		t.Cleanup(guard.Wait) // before the servers are left
		require.NoError(t, guard.Claim(t.Context(), map[domain.Scope]string{
			domain.ScopeInventory: "postgres", domain.ScopeCoupons: "postgres",
		}))
		s.instances = append(s.instances, &shopInstance{store: store, Service: domain.Service{
			Guard: guard, Store: store, NewID: uuid.NewString, Now: time.Now,
			HoldTTL: time.Minute, MaxTTL: time.Hour, Fencing: domain.FencingEnforced,
		}})
	}
	var fencing []string
	for _, row := range strategies.All() {
		if row.Traits.Fences {
			fencing = append(fencing, row.Name)
		}
	}
	for i := range items {
		sku := uuid.NewString() // the tests share the lock servers
		_, err := s.instances[0].CreateItem(t.Context(), domain.NewItem{SKU: sku, Name: "A", Stock: stock, Strategy: fencing[i%len(fencing)]}, nil)
		require.NoError(t, err)
		s.items = append(s.items, sku)
	}
	_, err := s.instances[0].CreateCoupon(t.Context(), domain.NewCoupon{Code: s.coupon, MaxRedemptions: domain.MaxStock, Strategy: "redis"}, nil)
	require.NoError(t, err)
	return s
}

func (s *shop) any() *shopInstance { return s.instances[rand.N(len(s.instances))] }

// lines are of some different items, in any order.
func (s *shop) lines(n int) (lines []domain.Line) {
	for _, i := range rand.Perm(len(s.items))[:n] {
		lines = append(lines, domain.Line{SKU: s.items[i], Quantity: 1 + rand.N(int64(3))})
	}
	return lines
}

// audit has every row of the verdict; ok is whether all is well.
func (s *shop) audit(t *testing.T) (rows map[domain.Key]domain.AuditRow, ok bool) {
	t.Helper()
	keys := []domain.Key{domain.CouponKey(s.coupon)}
	for _, sku := range s.items {
		keys = append(keys, domain.ItemKey(sku))
	}
	audit, err := s.instances[0].store.Audit(t.Context(), keys...)
	require.NoError(t, err)
	rows, ok = map[domain.Key]domain.AuditRow{}, true
	for _, row := range audit {
		rows[row.Key], ok = row, ok && row.OK()
	}
	return rows, ok
}

// crowd does something n times, so many at once.
func crowd(n, atOnce int, do func(i int)) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				do(i - 1)
			}
		})
	}
	group.Wait()
}

// race is what became of holds that were confirmed, released and expired at once.
type race struct {
	mu     sync.Mutex
	ends   map[string][]domain.ReservationState // what those who ended a hold were told, by its id
	won    map[domain.ReservationState]int
	errors []error // but for those that tell a loser that he has lost
}

func (r *race) ended(id string, state domain.ReservationState, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.ends[id] = append(r.ends[id], state)
		r.won[state]++
	case !errors.Is(err, domain.ErrExpired) && !errors.Is(err, domain.ErrWrongState):
		r.errors = append(r.errors, err)
	}
}

// race lets the buyer confirm, the buyer release, and the sweep expire the same hold at the same time, each from any instance.
// The sweep's clock is ahead, so that each of the three may win.
func (s *shop) race(t *testing.T, races int, expire func(*shopInstance, domain.Reservation) error) *race {
	t.Helper()
	buyer := domain.Caller{ID: "buyer"}
	result := &race{ends: map[string][]domain.ReservationState{}, won: map[domain.ReservationState]int{}}
	crowd(races, 64, func(i int) {
		order := domain.NewOrder{Lines: s.lines(1), CustomerID: "customer"}
		if i%16 == 0 { // some take more than one lock
			order.Lines, order.Coupon = s.lines(2), s.coupon
		}
		held, _, err := s.any().Order(t.Context(), buyer, order, nil)
		if !assert.NoError(t, err) {
			return
		}
		var racers sync.WaitGroup
		racers.Go(func() {
			_, _, err := s.any().Confirm(t.Context(), buyer, held.ID, nil)
			result.ended(held.ID, domain.Confirmed, err)
		})
		racers.Go(func() {
			_, _, err := s.any().Release(t.Context(), buyer, held.ID, nil)
			result.ended(held.ID, domain.Released, err)
		})
		racers.Go(func() { result.ended(held.ID, domain.Expired, expire(s.any(), held.Reservation)) })
		racers.Wait()
	})
	return result
}

// ahead is the service with a clock by which every hold is due.
func (i *shopInstance) ahead() *domain.Service {
	service := i.Service
	service.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	return &service
}

// However confirm, release and expiry race, a hold ends in one way, whoever won is told so and nobody else, and stock and
// coupons come out exact.
func TestHoldsEndOnce(t *testing.T) {
	t.Parallel()
	s := newShop(t, 3, 8, 1_000_000)
	races := soaked(50_000)
	result := s.race(t, races, func(i *shopInstance, r domain.Reservation) error {
		ended, failed := i.ahead().Expire(t.Context(), []domain.Reservation{r})
		for _, err := range failed {
			return err
		}
		if ended == 0 {
			return domain.ErrWrongState
		}
		return nil
	})
	t.Logf("%d races: %v", races, result.won)
	require.Empty(t, result.errors)
	require.Len(t, result.ends, races)
	sold := map[domain.Key]int64{}
	for id, states := range result.ends {
		r, err := s.instances[0].store.Reservation(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, []domain.ReservationState{r.State}, states, "exactly one ending succeeds, and it is what is stored")
		if r.State != domain.Confirmed {
			require.Empty(t, r.Tied, "the coupon's use ends with the hold")
			continue
		}
		for _, line := range r.Lines {
			sold[domain.ItemKey(line.SKU)] += line.Quantity
		}
		sold[domain.CouponKey(s.coupon)] += int64(len(r.Tied))
	}
	for _, state := range []domain.ReservationState{domain.Confirmed, domain.Released, domain.Expired} {
		assert.NotZero(t, result.won[state], "%s must win some of the races: otherwise this has shown nothing", state)
	}
	audit, ok := s.audit(t)
	assert.True(t, ok, "%+v", audit)
	for key, row := range audit {
		assert.Equal(t, sold[key], row.Sold, key)
		assert.Zero(t, row.Held, key)
	}
}

// A sweep that trusts what it saw before it had the lock gives units back that were sold or given back already. The same races
// must show it.
func TestCarelessSweepIsCaught(t *testing.T) {
	t.Parallel()
	s := newShop(t, 3, 4, 1_000_000)
	result := s.race(t, 200, func(i *shopInstance, r domain.Reservation) error {
		section := domain.Section{Keys: r.Keys()}
		section.Run = func(ctx context.Context, tx domain.Tx) error {
			for _, line := range r.Lines {
				item, err := tx.Item(ctx, line.SKU)
				if err == nil {
					err = item.Release(line.Quantity)
				}
				if err != nil {
					return err
				}
				tx.PutItem(item, domain.Entry{Kind: domain.EntryExpire, Reference: r.ID})
			}
			if stored, err := tx.Reservation(ctx, r.ID); err != nil || stored.State != domain.Held {
				return err // the database changes no state twice, which is another net
			}
			r.State, r.SettledAt = domain.Expired, r.ExpiresAt
			tx.PutReservation(r)
			return nil
		}
		_, err := i.Guard.Do(t.Context(), section)
		return err
	})
	twice := 0
	for _, states := range result.ends {
		if len(states) > 1 {
			twice++
		}
	}
	_, ok := s.audit(t)
	assert.NotZero(t, twice)
	assert.False(t, ok, "the audit must see what such a sweep does")
}

// Instances that sweep side by side end every hold once, and the stock is there again.
func TestSweepersShareTheHolds(t *testing.T) {
	t.Parallel()
	s := newShop(t, 3, 24, 1_000)
	buyer := domain.Caller{ID: "buyer"}
	const holds = 600
	crowd(holds, 16, func(i int) {
		order := domain.NewOrder{Lines: s.lines(1 + i%3), TTL: time.Second}
		if i%10 == 0 {
			order.Coupon, order.CustomerID = s.coupon, "customer"
		}
		_, _, err := s.any().Order(t.Context(), buyer, order, nil)
		assert.NoError(t, err)
	})
	ctx, cancel := context.WithCancel(t.Context())
	var sweeping sync.WaitGroup
	for _, i := range s.instances {
		sweeper := newSweeper(i.store, &i.Service, &Config{SweepInterval: 50 * time.Millisecond, AnswerTTL: time.Hour}, slog.New(slog.DiscardHandler))
		sweeping.Go(func() { sweeper.run(ctx) })
	}
	require.Eventually(t, func() bool {
		audit, ok := s.audit(t)
		require.True(t, ok, "%+v", audit)
		for _, row := range audit {
			if row.Held+row.Sold > 0 {
				return false
			}
		}
		return true
	}, time.Minute, 20*time.Millisecond)
	cancel()
	sweeping.Wait()
}

// order has 50 clients make orders of 2 to 8 items in any order, until there is not enough for all. It returns the lines of each
// that was made.
func (s *shop) order(t *testing.T, orders int, do func([]domain.Line) (ids []string, err error)) (made map[string][]domain.Line) {
	t.Helper()
	var mu sync.Mutex
	refused := 0
	made = map[string][]domain.Line{}
	crowd(orders, 50, func(int) {
		lines := s.lines(2 + rand.N(7))
		ids, err := do(lines)
		mu.Lock()
		defer mu.Unlock()
		if errors.Is(err, domain.ErrOutOfStock) {
			refused++
		} else if assert.NoError(t, err) {
			slices.SortFunc(lines, func(a, b domain.Line) int { return strings.Compare(a.SKU, b.SKU) })
			made[strings.Join(ids, " ")] = lines
		}
	})
	t.Logf("%d orders made, %d refused", len(made), refused)
	assert.NotZero(t, refused, "the stock must run out: otherwise this has shown nothing")
	return made
}

// lost is how many units are held for no order that was made, or the other way round.
func (s *shop) lost(t *testing.T, made map[string][]domain.Line) (units int64) {
	t.Helper()
	taken := map[domain.Key]int64{}
	for _, lines := range made {
		for _, line := range lines {
			taken[domain.ItemKey(line.SKU)] += line.Quantity
		}
	}
	audit, ok := s.audit(t)
	assert.True(t, ok, "%+v", audit)
	for key, row := range audit {
		units += max(row.Held-taken[key], taken[key]-row.Held)
	}
	return units
}

// Orders of several items in any order from many clients: each gets all of it or nothing, and nobody is told of a deadlock or
// of a lock that did not come free.
func TestOrdersAreWholeAndDoNotDeadlock(t *testing.T) {
	t.Parallel()
	orders := soaked(20_000)
	s := newShop(t, 3, 40, int64(orders/5)) // each order asks for some ten units
	made := s.order(t, orders, func(lines []domain.Line) ([]string, error) {
		split := slices.Clone(lines) // one item stands in two lines
		split[0].Quantity++
		lines[0].Quantity += 2
		split = append(split, domain.Line{SKU: split[0].SKU, Quantity: 1})
		order, _, err := s.any().Order(t.Context(), domain.Caller{ID: "buyer"}, domain.NewOrder{Lines: split}, nil)
		return []string{order.ID}, err
	})
	for id, lines := range made {
		r, err := s.instances[0].store.Reservation(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, lines, r.Lines, "all of an order, once")
	}
	assert.Zero(t, s.lost(t, made), "nothing is held for an order that was refused")
}

// Who takes the lines of an order one by one keeps some of those that he does not get as a whole. The same orders must show it.
func TestOrdersLineByLineAreCaught(t *testing.T) {
	t.Parallel()
	s := newShop(t, 3, 40, 10)
	made := s.order(t, 100, func(lines []domain.Line) (ids []string, err error) {
		for _, line := range lines {
			r, _, err := s.any().Reserve(t.Context(), domain.Caller{ID: "buyer"}, domain.NewReservation{SKU: line.SKU, Quantity: line.Quantity}, nil)
			if err != nil {
				return nil, err
			}
			ids = append(ids, r.ID)
		}
		return ids, nil
	})
	assert.NotZero(t, s.lost(t, made))
}
