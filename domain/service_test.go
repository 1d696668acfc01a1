package domain_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

// memory is both ports of the use cases, for one test on one goroutine. It runs every section twice and keeps only what the
// second run did, because a guard may do so; it refuses to put what the section does not hold, because PostgreSQL does.
type memory struct {
	t      *testing.T
	rows   rows
	specs  []domain.LockSpec // what resources were created with
	before func()            // runs when a section has been asked for and has not begun: others come first
}

type rows struct {
	items        map[string]domain.Item
	coupons      map[string]domain.Coupon
	reservations map[string]domain.Reservation
	redemptions  map[string]domain.Redemption
	ledger       []domain.Entry
}

func (r rows) clone() rows {
	return rows{maps.Clone(r.items), maps.Clone(r.coupons), maps.Clone(r.reservations), maps.Clone(r.redemptions), slices.Clone(r.ledger)}
}

func find[T any](m map[string]T, id string) (T, error) {
	v, ok := m[id]
	if !ok {
		return v, fmt.Errorf("%s: %w", id, domain.ErrNotFound)
	}
	return v, nil
}

func (m *memory) Do(ctx context.Context, s domain.Section) (domain.Receipt, error) {
	if before := m.before; before != nil {
		m.before = nil
		before()
	}
	for _, key := range s.Keys {
		_, item := m.rows.items[key.Name()]
		_, coupon := m.rows.coupons[key.Name()]
		if key.Kind() == domain.KindItem && !item || key.Kind() == domain.KindCoupon && !coupon {
			return domain.Receipt{}, fmt.Errorf("%s: %w", key, domain.ErrNotFound)
		}
	}
	first := &section{t: m.t, rows: m.rows.clone(), keys: s.Keys}
	firstErr := s.Run(ctx, first)
	second := &section{t: m.t, rows: m.rows.clone(), keys: s.Keys}
	err := s.Run(ctx, second)
	assert.Equal(m.t, firstErr == nil, err == nil, "a section that runs again ends the same way")
	assert.Equal(m.t, first.rows, second.rows, "a section that runs again does the same")
	if err == nil {
		m.rows = second.rows
	}
	return domain.Receipt{Grants: []domain.Grant{{Key: s.Keys[0]}}}, err
}

func (m *memory) Spec(_ context.Context, _ domain.Kind, strategy string, fencing domain.Fencing) (domain.LockSpec, error) {
	if strategy == "none" && fencing == domain.FencingEnforced {
		return domain.LockSpec{}, domain.Invalid("lock.strategy", "issues no tokens")
	}
	return domain.LockSpec{Strategy: strategy, Fencing: fencing}, nil
}

func (m *memory) Items(_ context.Context, after domain.Key, limit int64) (views []domain.ItemView, _ error) {
	for _, sku := range slices.Sorted(maps.Keys(m.rows.items)) {
		if domain.ItemKey(sku) > after && int64(len(views)) < limit {
			views = append(views, domain.ItemView{Item: m.rows.items[sku]})
		}
	}
	return views, nil
}

func (m *memory) Item(_ context.Context, sku string) (domain.ItemView, error) {
	item, err := find(m.rows.items, sku)
	return domain.ItemView{Item: item}, err
}

func (m *memory) Coupon(_ context.Context, code string) (domain.CouponView, error) {
	coupon, err := find(m.rows.coupons, code)
	return domain.CouponView{Coupon: coupon}, err
}

func (m *memory) Reservation(_ context.Context, id string) (domain.Reservation, error) {
	return find(m.rows.reservations, id)
}

func (m *memory) Redemption(_ context.Context, id string) (domain.Redemption, error) {
	return find(m.rows.redemptions, id)
}

func (m *memory) CreateItem(_ context.Context, item domain.Item, lock domain.LockSpec, _ *domain.Once) (domain.ItemView, error) {
	m.rows.items[item.SKU] = item
	m.specs = append(m.specs, lock)
	return domain.ItemView{Item: item}, nil
}

func (m *memory) CreateCoupon(_ context.Context, coupon domain.Coupon, lock domain.LockSpec, _ *domain.Once) (domain.CouponView, error) {
	m.rows.coupons[coupon.Code] = coupon
	m.specs = append(m.specs, lock)
	return domain.CouponView{Coupon: coupon}, nil
}

func (m *memory) Resources(ctx context.Context, after domain.Key, limit int64) (keys []domain.Key, _ error) {
	views, err := m.Items(ctx, after, limit)
	for _, view := range views {
		keys = append(keys, domain.ItemKey(view.SKU))
	}
	return keys, err
}

func (m *memory) Audit(_ context.Context, keys ...domain.Key) (rows []domain.AuditRow, _ error) {
	for _, key := range keys {
		rows = append(rows, domain.AuditRow{Key: key})
	}
	return rows, nil
}

type section struct {
	t    *testing.T
	rows rows
	keys []domain.Key
}

func (s *section) holds(key domain.Key) {
	assert.Contains(s.t, s.keys, key, "put without being held")
}

func (s *section) Slow(ctx context.Context, step func(context.Context) error) error { return step(ctx) }

func (s *section) Item(_ context.Context, sku string) (domain.Item, error) {
	return find(s.rows.items, sku)
}

func (s *section) PutItem(item domain.Item, why domain.Entry) {
	s.holds(domain.ItemKey(item.SKU))
	s.rows.items[item.SKU] = item
	s.rows.ledger = append(s.rows.ledger, why)
}

func (s *section) Reservation(_ context.Context, id string) (domain.Reservation, error) {
	return find(s.rows.reservations, id)
}

func (s *section) PutReservation(r domain.Reservation) {
	for _, key := range r.Keys() {
		s.holds(key)
	}
	s.rows.reservations[r.ID] = r
}

func (s *section) Coupon(_ context.Context, code string) (domain.Coupon, error) {
	return find(s.rows.coupons, code)
}

func (s *section) PutCoupon(c domain.Coupon, why domain.Entry) {
	s.holds(domain.CouponKey(c.Code))
	s.rows.coupons[c.Code] = c
	s.rows.ledger = append(s.rows.ledger, why)
}

func (s *section) CustomerUses(_ context.Context, code, customer string) (n int64, _ error) {
	for _, r := range s.rows.redemptions {
		if r.Code == code && r.CustomerID == customer && r.State == domain.Redeemed {
			n++
		}
	}
	return n, nil
}

func (s *section) Redemption(_ context.Context, id string) (domain.Redemption, error) {
	return find(s.rows.redemptions, id)
}

func (s *section) PutRedemption(r domain.Redemption) {
	s.holds(domain.CouponKey(r.Code))
	s.rows.redemptions[r.ID] = r
}

var (
	start = time.Date(2026, 1, 2, 3, 4, 5, 6_789, time.FixedZone("somewhere", 3600)) // finer than what is stored, and not UTC
	noon  = time.Date(2026, 1, 2, 2, 4, 5, 6_000, time.UTC)                          // start, as it is stored

	owner    = domain.Caller{ID: "owner"}
	stranger = domain.Caller{ID: "stranger"}
	admin    = domain.Caller{ID: "admin", Admin: true}
)

// newService has an item "a" of which ten are there, and a coupon "c" for two, once a customer. Its clock stands still.
func newService(t *testing.T) (*domain.Service, *memory, *time.Time) {
	t.Helper()
	m := &memory{t: t, rows: rows{
		items:        map[string]domain.Item{"a": {SKU: "a", Name: "A", OnHand: 10}},
		coupons:      map[string]domain.Coupon{"c": {Code: "c", MaxRedemptions: 2, PerCustomerLimit: 1}},
		reservations: map[string]domain.Reservation{},
		redemptions:  map[string]domain.Redemption{},
	}}
	clock, ids := start, 0
	return &domain.Service{
		Guard: m, Store: m,
		NewID:   func() string { ids++; return fmt.Sprint(ids) },
		Now:     func() time.Time { return clock },
		HoldTTL: time.Minute, MaxTTL: time.Hour, Fencing: domain.FencingEnforced,
	}, m, &clock
}

// invalid requires an error that names the field.
func invalid(t *testing.T, err error, field string) {
	t.Helper()
	var e *domain.InvalidError
	require.ErrorAs(t, err, &e)
	assert.Equal(t, field, e.Field)
}

func TestCreateItem(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	_, err := s.CreateItem(t.Context(), domain.NewItem{SKU: "b", Name: "B", Stock: 0}, nil)
	require.NoError(t, err)
	_, err = s.CreateItem(t.Context(), domain.NewItem{SKU: "d", Name: "D", Stock: domain.MaxStock, Strategy: "none", Fencing: domain.FencingOff}, nil)
	require.NoError(t, err)
	assert.Equal(t, []domain.LockSpec{
		{Fencing: domain.FencingEnforced}, // the configured default
		{Strategy: "none", Fencing: domain.FencingOff},
	}, m.specs)

	for _, c := range []struct {
		field string
		in    domain.NewItem
	}{
		{"sku", domain.NewItem{SKU: "", Name: "B"}},
		{"name", domain.NewItem{SKU: "e", Name: ""}},
		{"name", domain.NewItem{SKU: "e", Name: strings.Repeat("ä", 201)}},
		{"name", domain.NewItem{SKU: "e", Name: "two\nlines"}},
		{"name", domain.NewItem{SKU: "e", Name: "nul\x00"}},
		{"name", domain.NewItem{SKU: "e", Name: "broken\xff"}},
		{"stock", domain.NewItem{SKU: "e", Name: "E", Stock: -1}},
		{"stock", domain.NewItem{SKU: "e", Name: "E", Stock: domain.MaxStock + 1}},
		{"lock.fencing", domain.NewItem{SKU: "e", Name: "E", Fencing: "perhaps"}},
		{"lock.strategy", domain.NewItem{SKU: "e", Name: "E", Strategy: "none"}},
	} {
		_, err := s.CreateItem(t.Context(), c.in, nil)
		invalid(t, err, c.field)
	}
	assert.NotContains(t, m.rows.items, "e")
	_, err = s.CreateItem(t.Context(), domain.NewItem{SKU: "f", Name: strings.Repeat("ä", 200)}, nil)
	require.NoError(t, err, "the limit is in characters, not in bytes")
}

func TestCreateCoupon(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	view, err := s.CreateCoupon(t.Context(), domain.NewCoupon{Code: "d", MaxRedemptions: 1, ValidFrom: start, ValidUntil: start.Add(time.Microsecond)}, nil)
	require.NoError(t, err)
	assert.Equal(t, domain.Coupon{Code: "d", MaxRedemptions: 1, ValidFrom: noon, ValidUntil: noon.Add(time.Microsecond)}, view.Coupon,
		"what is answered is what will be read")

	for _, c := range []struct {
		field string
		in    domain.NewCoupon
	}{
		{"code", domain.NewCoupon{Code: "a.b", MaxRedemptions: 1}},
		{"max_redemptions", domain.NewCoupon{Code: "e"}},
		{"max_redemptions", domain.NewCoupon{Code: "e", MaxRedemptions: domain.MaxStock + 1}},
		{"per_customer_limit", domain.NewCoupon{Code: "e", MaxRedemptions: 1, PerCustomerLimit: -1}},
		{"valid_until", domain.NewCoupon{Code: "e", MaxRedemptions: 1, ValidFrom: start, ValidUntil: start}},
		// Later, but not by as much as can be stored.
		{"valid_until", domain.NewCoupon{Code: "e", MaxRedemptions: 1, ValidFrom: start, ValidUntil: start.Add(time.Nanosecond)}},
		{"lock.fencing", domain.NewCoupon{Code: "e", MaxRedemptions: 1, Fencing: "perhaps"}},
	} {
		_, err := s.CreateCoupon(t.Context(), c.in, nil)
		invalid(t, err, c.field)
	}
	assert.NotContains(t, m.rows.coupons, "e")
}

// A time that JSON cannot write must not be stored: nobody could read the coupon again.
func TestCouponTimesThatCannotBeShown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		time string
		good bool
	}{
		{"9999-12-31T23:59:59Z", true},
		{"9999-12-31T23:59:59+23:59", true},
		{"9999-12-31T23:59:59-00:01", false},
		{"9999-12-31T23:59:59-23:59", false},
		{"0001-01-01T00:00:01Z", true},
		{"0000-12-31T23:59:59-23:59", true},
		{"0001-01-01T00:00:00+00:01", false},
		{"0000-12-31T23:59:59Z", false},
		{"0000-01-01T00:00:00+23:59", false}, // the year -1
	} {
		t.Run(c.time, func(t *testing.T) {
			t.Parallel()
			s, m, _ := newService(t)
			at, err := time.Parse(time.RFC3339, c.time)
			require.NoError(t, err)
			_, fromErr := s.CreateCoupon(t.Context(), domain.NewCoupon{Code: "from", MaxRedemptions: 1, ValidFrom: at}, nil)
			_, untilErr := s.CreateCoupon(t.Context(), domain.NewCoupon{Code: "until", MaxRedemptions: 1, ValidUntil: at}, nil)
			if c.good {
				require.NoError(t, fromErr)
				require.NoError(t, untilErr)
				return
			}
			invalid(t, fromErr, "valid_from")
			invalid(t, untilErr, "valid_until")
			require.EqualError(t, untilErr, "valid_until must lie in the years 1 to 9999")
			assert.NotContains(t, m.rows.coupons, "from")
			assert.NotContains(t, m.rows.coupons, "until")
		})
	}
}

func TestRestock(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	item, _, err := s.Restock(t.Context(), "a", 5, nil, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 15, item.OnHand)
	assert.Equal(t, item, m.rows.items["a"])
	assert.Equal(t, []domain.Entry{{Kind: domain.EntryRestock}}, m.rows.ledger)
	for _, quantity := range []int64{0, -1, domain.MaxStock + 1, domain.MaxStock} { // the last: too much with what is there
		_, _, err = s.Restock(t.Context(), "a", quantity, nil, nil)
		invalid(t, err, "quantity")
	}
	for _, sku := range []string{"ghost", "", "no such name"} {
		_, _, err = s.Restock(t.Context(), sku, 1, nil, nil)
		require.ErrorIs(t, err, domain.ErrNotFound, sku)
	}
	assert.EqualValues(t, 15, m.rows.items["a"].OnHand)
}

// Whether the item is what an admin takes it for is asked when nobody can change it any more: what comes between the request
// and its section counts.
func TestRestockOfAnItemThatHasChanged(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	seen := m.rows.items["a"]
	unchanged := func(i domain.Item) bool { return i == seen }
	others := func() {
		_, _, err := s.Restock(t.Context(), "a", 1, nil, nil)
		require.NoError(t, err)
	}
	m.before = others
	_, receipt, err := s.Restock(t.Context(), "a", 5, unchanged, nil)
	require.ErrorIs(t, err, domain.ErrChanged)
	assert.NotEmpty(t, receipt.Grants, "it was refused under the lock")
	assert.Equal(t, seen.OnHand+1, m.rows.items["a"].OnHand)

	seen = m.rows.items["a"]
	item, _, err := s.Restock(t.Context(), "a", 5, unchanged, nil)
	require.NoError(t, err)
	assert.Equal(t, seen.OnHand+5, item.OnHand)
}

func TestPages(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	clear(m.rows.items)
	skus := []string{"1", "B", "Z", "a", "b"} // in byte order
	for _, sku := range skus {
		m.rows.items[sku] = domain.Item{SKU: sku}
	}
	walk := func(limit int64, page func(domain.Page) ([]string, string)) (pages [][]string) {
		for p := (domain.Page{Limit: limit}); ; {
			names, next := page(p)
			pages = append(pages, names)
			if next == "" {
				return pages
			}
			p.Cursor = next
		}
	}
	items := func(p domain.Page) (names []string, next string) {
		views, next, err := s.Items(t.Context(), p)
		require.NoError(t, err)
		for _, v := range views {
			names = append(names, v.SKU)
		}
		return names, next
	}
	audits := func(p domain.Page) (names []string, next string) {
		rows, next, err := s.AuditPage(t.Context(), p)
		require.NoError(t, err)
		for _, r := range rows {
			names = append(names, r.Key.Name())
		}
		return names, next
	}
	for _, page := range []func(domain.Page) ([]string, string){items, audits} {
		assert.Equal(t, [][]string{skus[:2], skus[2:4], skus[4:]}, walk(2, page))
		assert.Equal(t, [][]string{skus}, walk(5, page), "a page that is just full is the last")
		assert.Equal(t, [][]string{skus[:4], skus[4:]}, walk(4, page))
	}

	_, next := items(domain.Page{Limit: 2})
	delete(m.rows.items, "B") // where a page ended need not be there for the next to go on
	m.rows.items["0"] = domain.Item{SKU: "0"}
	names, _ := items(domain.Page{Limit: 2, Cursor: next})
	assert.Equal(t, skus[2:4], names, "what was created before the cursor moves nothing")

	clear(m.rows.items)
	names, next = items(domain.Page{Limit: 1})
	assert.Empty(t, names)
	assert.Empty(t, next)
	names, _ = audits(domain.Page{Limit: 1})
	assert.Empty(t, names)
}

func TestPagesThatAreRefused(t *testing.T) {
	t.Parallel()
	s, _, _ := newService(t)
	for _, tt := range []struct {
		page  domain.Page
		field string
	}{
		{domain.Page{Limit: 0}, "limit"},
		{domain.Page{Limit: -1}, "limit"},
		{domain.Page{Limit: 1001}, "limit"},
		{domain.Page{Limit: 1, Cursor: "a"}, "cursor"},
		{domain.Page{Limit: 1, Cursor: "item/a"}, "cursor"},
		{domain.Page{Limit: 1, Cursor: "aXRlbS9h="}, "cursor"},
		{domain.Page{Limit: 1, Cursor: "aXRlbS9i\n"}, "cursor"},
		{domain.Page{Limit: 1, Cursor: "Ym94L2E"}, "cursor"},     // box/a
		{domain.Page{Limit: 1, Cursor: "aXRlbS8A"}, "cursor"},    // item/ and a zero byte
		{domain.Page{Limit: 1, Cursor: "Y291cG9uL2F"}, "cursor"}, // the last bits are not zero
	} {
		_, _, err := s.Items(t.Context(), tt.page)
		invalid(t, err, tt.field)
		_, _, err = s.AuditPage(t.Context(), tt.page)
		invalid(t, err, tt.field)
	}
}

func TestReserve(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	r, receipt, err := s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 3, CustomerID: "Zoë"}, nil)
	require.NoError(t, err)
	assert.Equal(t, domain.Reservation{
		ID: "rsv_1", State: domain.Held, Lines: []domain.Line{{SKU: "a", Quantity: 3}},
		CustomerID: "Zoë", CreatedBy: "owner", CreatedAt: noon, ExpiresAt: noon.Add(time.Minute),
	}, r)
	assert.Equal(t, domain.Key("item/a"), receipt.Grants[0].Key)
	assert.Equal(t, r, m.rows.reservations[r.ID])
	assert.EqualValues(t, 3, m.rows.items["a"].Reserved)
	assert.Equal(t, []domain.Entry{{Kind: domain.EntryHold, Reference: r.ID}}, m.rows.ledger)

	r, _, err = s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 1, TTL: time.Hour}, nil)
	require.NoError(t, err)
	assert.Equal(t, noon.Add(time.Hour), r.ExpiresAt)

	before := m.rows.clone()
	_, _, err = s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 7}, nil)
	require.ErrorIs(t, err, domain.ErrOutOfStock)
	for _, c := range []struct {
		field string
		in    domain.NewReservation
	}{
		{"quantity", domain.NewReservation{SKU: "a"}},
		{"quantity", domain.NewReservation{SKU: "a", Quantity: -1}},
		{"quantity", domain.NewReservation{SKU: "a", Quantity: domain.MaxQuantity + 1}},
		{"customer_id", domain.NewReservation{SKU: "a", Quantity: 1, CustomerID: "a\tb"}},
		{"customer_id", domain.NewReservation{SKU: "a", Quantity: 1, CustomerID: strings.Repeat("a", 65)}},
		{"ttl_seconds", domain.NewReservation{SKU: "a", Quantity: 1, TTL: -time.Second}},
		{"ttl_seconds", domain.NewReservation{SKU: "a", Quantity: 1, TTL: time.Second - 1}},
		{"ttl_seconds", domain.NewReservation{SKU: "a", Quantity: 1, TTL: time.Hour + 1}},
	} {
		_, _, err := s.Reserve(t.Context(), owner, c.in, nil)
		invalid(t, err, c.field)
	}
	for _, sku := range []string{"ghost", "", "no such name"} {
		_, _, err = s.Reserve(t.Context(), owner, domain.NewReservation{SKU: sku, Quantity: 1}, nil)
		require.ErrorIs(t, err, domain.ErrNotFound, sku)
	}
	assert.Equal(t, before, m.rows, "what is refused changes nothing")
}

// Every action in every state.
func TestSettle(t *testing.T) {
	t.Parallel()
	type action func(*domain.Service, context.Context, domain.Caller, string, *domain.Once) (domain.Reservation, domain.Receipt, error)
	confirm, release := action((*domain.Service).Confirm), action((*domain.Service).Release)
	const inTime, late = time.Minute - time.Microsecond, time.Minute
	for _, c := range []struct {
		name  string
		state domain.ReservationState
		do    action
		after time.Duration
		want  domain.ReservationState
		item  domain.Item // what is left; the zero item: unchanged
		err   error
	}{
		{"confirm a hold", domain.Held, confirm, inTime, domain.Confirmed, domain.Item{OnHand: 7, Sold: 3}, nil},
		{"confirm a hold too late", domain.Held, confirm, late, domain.Held, domain.Item{}, domain.ErrExpired},
		{"confirm again", domain.Confirmed, confirm, late, domain.Confirmed, domain.Item{}, nil},
		{"confirm what was released", domain.Released, confirm, inTime, domain.Released, domain.Item{}, domain.ErrWrongState},
		{"confirm what has expired", domain.Expired, confirm, late, domain.Expired, domain.Item{}, domain.ErrExpired},
		{"release a hold", domain.Held, release, inTime, domain.Released, domain.Item{OnHand: 10}, nil},
		{"release a hold that nobody has swept yet", domain.Held, release, late, domain.Released, domain.Item{OnHand: 10}, nil},
		{"release again", domain.Released, release, late, domain.Released, domain.Item{}, nil},
		{"release what was confirmed", domain.Confirmed, release, inTime, domain.Confirmed, domain.Item{}, domain.ErrWrongState},
		{"release what has expired", domain.Expired, release, late, domain.Expired, domain.Item{}, domain.ErrExpired},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, m, clock := newService(t)
			r, _, err := s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 3}, nil)
			require.NoError(t, err)
			if r.State = c.state; c.state != domain.Held {
				r.SettledAt = noon
			}
			m.rows.reservations[r.ID] = r
			before := m.rows.clone()
			*clock = start.Add(c.after)

			got, _, err := c.do(s, t.Context(), owner, r.ID, nil)
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, c.want, m.rows.reservations[r.ID].State)
			if c.item == (domain.Item{}) {
				assert.Equal(t, before, m.rows, "nothing changes")
				return
			}
			assert.Equal(t, m.rows.reservations[r.ID], got)
			assert.Equal(t, noon.Add(c.after), got.SettledAt)
			c.item.SKU, c.item.Name = "a", "A"
			assert.Equal(t, c.item, m.rows.items["a"])
			require.Len(t, m.rows.ledger, 2)
			assert.Equal(t, r.ID, m.rows.ledger[1].Reference)
		})
	}
}

// What is read before the section only names the keys. The state counts that the section finds.
func TestSettleLooksAgain(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	r, _, err := s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 3}, nil)
	require.NoError(t, err)
	m.before = func() {
		_, _, err := s.Release(t.Context(), owner, r.ID, nil)
		require.NoError(t, err)
	}
	_, _, err = s.Confirm(t.Context(), owner, r.ID, nil)
	require.ErrorIs(t, err, domain.ErrWrongState)
	assert.Equal(t, domain.Item{SKU: "a", Name: "A", OnHand: 10}, m.rows.items["a"])
}

// What belongs to somebody else is not there.
func TestOwnership(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	ctx := t.Context()
	r, _, err := s.Reserve(ctx, owner, domain.NewReservation{SKU: "a", Quantity: 1}, nil)
	require.NoError(t, err)
	use, _, err := s.Redeem(ctx, owner, domain.NewRedemption{Code: "c", CustomerID: "one", ReservationID: r.ID}, nil)
	require.NoError(t, err)
	before := m.rows.clone()

	missing := func(do func(domain.Caller, string) error, id string) {
		t.Helper()
		theirs, none := do(stranger, id), do(stranger, "rsv_none")
		require.ErrorIs(t, theirs, domain.ErrNotFound)
		require.ErrorIs(t, none, domain.ErrNotFound)
	}
	missing(func(c domain.Caller, id string) error { _, err := s.Reservation(ctx, c, id); return err }, r.ID)
	missing(func(c domain.Caller, id string) error { _, _, err := s.Confirm(ctx, c, id, nil); return err }, r.ID)
	missing(func(c domain.Caller, id string) error { _, _, err := s.Release(ctx, c, id, nil); return err }, r.ID)
	missing(func(c domain.Caller, id string) error { _, _, err := s.Rollback(ctx, c, id, nil); return err }, use.ID)
	for _, id := range []string{r.ID, "rsv_none"} {
		_, _, err = s.Redeem(ctx, stranger, domain.NewRedemption{Code: "c", CustomerID: "two", ReservationID: id}, nil)
		invalid(t, err, "reservation_id")
	}
	assert.Equal(t, before, m.rows)

	_, err = s.Reservation(ctx, admin, r.ID)
	require.NoError(t, err)
	_, _, err = s.Confirm(ctx, admin, r.ID, nil)
	require.NoError(t, err)
	_, _, err = s.Rollback(ctx, admin, use.ID, nil)
	require.NoError(t, err)
}

func TestRedeem(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	ctx := t.Context()
	redeem := func(code, customer string) (domain.Redemption, error) {
		r, _, err := s.Redeem(ctx, owner, domain.NewRedemption{Code: code, CustomerID: customer}, nil)
		return r, err
	}
	r, err := redeem("c", "one")
	require.NoError(t, err)
	assert.Equal(t, domain.Redemption{
		ID: "rdm_1", Code: "c", CustomerID: "one", State: domain.Redeemed, CreatedBy: "owner", CreatedAt: noon,
	}, r)
	assert.Equal(t, r, m.rows.redemptions[r.ID])
	assert.EqualValues(t, 1, m.rows.coupons["c"].Redeemed)
	assert.Equal(t, []domain.Entry{{Kind: domain.EntryRedeem, Reference: r.ID}}, m.rows.ledger)

	_, err = redeem("c", "one")
	require.ErrorIs(t, err, domain.ErrCustomerLimit)
	_, err = redeem("c", "two")
	require.NoError(t, err)
	_, err = redeem("c", "three")
	require.ErrorIs(t, err, domain.ErrCouponExhausted)

	before := m.rows.clone()
	m.rows.coupons["old"] = domain.Coupon{Code: "old", MaxRedemptions: 1, ValidUntil: noon}
	before.coupons["old"] = m.rows.coupons["old"]
	for _, code := range []string{"old", "ghost", "", "no such code", "a.b"} {
		_, err = redeem(code, "one")
		require.ErrorIs(t, err, domain.ErrCouponExpired, code)
		require.NotErrorIs(t, err, domain.ErrNotFound, "codes must not be found by trying: %q", code)
	}
	for _, customer := range []string{"", strings.Repeat("a", 65), "a\nb"} {
		_, err = redeem("c", customer)
		invalid(t, err, "customer_id")
	}
	assert.Equal(t, before, m.rows)
}

func TestRollback(t *testing.T) {
	t.Parallel()
	s, m, clock := newService(t)
	ctx := t.Context()
	r, _, err := s.Redeem(ctx, owner, domain.NewRedemption{Code: "c", CustomerID: "one"}, nil)
	require.NoError(t, err)
	*clock = start.Add(time.Second)
	back, _, err := s.Rollback(ctx, owner, r.ID, nil)
	require.NoError(t, err)
	assert.Equal(t, domain.RolledBack, back.State)
	assert.Equal(t, noon.Add(time.Second), back.SettledAt)
	assert.Zero(t, m.rows.coupons["c"].Redeemed)

	before := m.rows.clone()
	*clock = start.Add(time.Minute)
	again, _, err := s.Rollback(ctx, owner, r.ID, nil)
	require.NoError(t, err, "rolling back twice is rolling back once")
	assert.Equal(t, back, again)
	assert.Equal(t, before, m.rows)

	_, _, err = s.Redeem(ctx, owner, domain.NewRedemption{Code: "c", CustomerID: "one"}, nil)
	require.NoError(t, err, "the customer may use it again")
}

func TestLookUps(t *testing.T) {
	t.Parallel()
	s, _, _ := newService(t)
	ctx := t.Context()
	_, err := s.Item(ctx, "a")
	require.NoError(t, err)
	_, err = s.Coupon(ctx, "c")
	require.NoError(t, err)
	for _, name := range []string{"ghost", "", "no such name", "a\x00"} {
		_, err = s.Item(ctx, name)
		require.ErrorIs(t, err, domain.ErrNotFound, name)
		_, err = s.Coupon(ctx, name)
		require.ErrorIs(t, err, domain.ErrNotFound, name)
	}
	for _, key := range []domain.Key{"item/a", "coupon/c"} {
		_, err = s.Audit(ctx, key)
		require.NoError(t, err, key)
	}
	for _, key := range []domain.Key{"", "a", "item/", "/a", "box/a", "item/a\x00", "item/\xff", "coupon/a.b"} {
		_, err = s.Audit(ctx, key)
		invalid(t, err, "resource")
	}
}
