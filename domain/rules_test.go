package domain_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

func TestItem(t *testing.T) {
	t.Parallel()
	before := domain.Item{SKU: "a", Name: "A", OnHand: 10, Reserved: 4, Sold: 3}
	after := func(onHand, reserved, sold int64) domain.Item {
		return domain.Item{SKU: "a", Name: "A", OnHand: onHand, Reserved: reserved, Sold: sold}
	}
	for _, c := range []struct {
		name string
		do   func(*domain.Item) error
		want domain.Item
		err  error
	}{
		{"hold what is available", func(i *domain.Item) error { return i.Hold(6) }, after(10, 10, 3), nil},
		{"hold one more", func(i *domain.Item) error { return i.Hold(7) }, before, domain.ErrOutOfStock},
		{"confirm what is held", func(i *domain.Item) error { return i.Confirm(4) }, after(6, 0, 7), nil},
		{"confirm one more", func(i *domain.Item) error { return i.Confirm(5) }, before, domain.ErrCountersCorrupted},
		{"release what is held", func(i *domain.Item) error { return i.Release(4) }, after(10, 0, 3), nil},
		{"release one more", func(i *domain.Item) error { return i.Release(5) }, before, domain.ErrCountersCorrupted},
		{"restock up to the limit", func(i *domain.Item) error { return i.Restock(domain.MaxStock - 10) }, after(domain.MaxStock, 4, 3), nil},
		{"restock beyond the limit", func(i *domain.Item) error { return i.Restock(domain.MaxStock - 9) }, before, domain.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			item := before
			require.ErrorIs(t, c.do(&item), c.err)
			assert.Equal(t, c.want, item)
			if c.err == nil && !strings.HasPrefix(c.name, "restock") {
				assert.Equal(t, before.OnHand+before.Sold, item.OnHand+item.Sold, "what was ever added stays the same")
			}
		})
	}
	assert.EqualValues(t, 6, before.Available())
}

func TestCoupon(t *testing.T) {
	t.Parallel()
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	until := from.Add(time.Hour)
	coupon := domain.Coupon{Code: "c", MaxRedemptions: 2, PerCustomerLimit: 1, ValidFrom: from, ValidUntil: until}
	used := coupon
	used.Redeemed = 2
	unlimited := domain.Coupon{Code: "c", MaxRedemptions: 2}
	for _, c := range []struct {
		name   string
		coupon domain.Coupon
		uses   int64
		now    time.Time
		err    error
	}{
		{"in the first moment", coupon, 0, from, nil},
		{"before the first moment", coupon, 0, from.Add(-1), domain.ErrCouponExpired},
		{"in the last moment", coupon, 0, until.Add(-1), nil},
		{"after the last moment", coupon, 0, until, domain.ErrCouponExpired},
		{"used up", used, 0, from, domain.ErrCouponExhausted},
		{"used up and expired", used, 0, until, domain.ErrCouponExpired},
		{"by a customer who has had it", coupon, 1, from, domain.ErrCustomerLimit},
		{"by a customer who has had a used-up one", used, 1, from, domain.ErrCouponExhausted},
		{"without limits", unlimited, 99, time.Time{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			coupon := c.coupon
			require.ErrorIs(t, coupon.Redeem(c.uses, c.now), c.err)
			if c.err != nil {
				assert.Equal(t, c.coupon, coupon)
				return
			}
			assert.Equal(t, c.coupon.Redeemed+1, coupon.Redeemed)
			require.NoError(t, coupon.GiveBack())
			assert.Equal(t, c.coupon, coupon)
		})
	}
	require.ErrorIs(t, unlimited.GiveBack(), domain.ErrCountersCorrupted)
	assert.Zero(t, unlimited.Redeemed)
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		sku, code bool
	}{
		{"a", true, true},
		{"A-1_b", true, true},
		{"a.b", true, false},
		{strings.Repeat("a", 32), true, true},
		{strings.Repeat("a", 33), true, false},
		{strings.Repeat("a", 64), true, false},
		{strings.Repeat("a", 65), false, false},
		{"", false, false},
		{"-a", false, false},
		{"_a", false, false},
		{".a", false, false},
		{"a b", false, false},
		{"a/b", false, false},
		{"a\n", false, false},
		{"a\x00", false, false},
		{"ä", false, false},
		{"a\xff", false, false},
	} {
		assert.Equal(t, c.sku, domain.CheckSKU("sku", c.name) == nil, "sku %q", c.name)
		assert.Equal(t, c.code, domain.CheckCode("code", c.name) == nil, "code %q", c.name)
	}
	var invalid *domain.InvalidError
	require.ErrorAs(t, domain.CheckSKU("lines[1].sku", ""), &invalid)
	assert.Equal(t, "lines[1].sku", invalid.Field, "the error names the field")
}

func TestKeys(t *testing.T) {
	t.Parallel()
	assert.Equal(t, domain.Key("item/a"), domain.ItemKey("a"))
	assert.Equal(t, domain.Key("coupon/a"), domain.CouponKey("a"), "an item and a coupon of one name are two resources")
	assert.Equal(t, domain.KindCoupon, domain.CouponKey("a").Kind())
	assert.Equal(t, "a", domain.CouponKey("a").Name())
	assert.Empty(t, domain.Key("nothing").Name())
	r := domain.Reservation{Lines: []domain.Line{{SKU: "b", Quantity: 1}, {SKU: "a", Quantity: 2}}}
	assert.Equal(t, []domain.Key{"item/b", "item/a"}, r.Keys())
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	assert.True(t, domain.AuditRow{Sold: 3, Held: 4, Refused: 5}.OK(), "a refused write is the fence at work")
	assert.False(t, domain.AuditRow{Oversold: 1}.OK())
	assert.False(t, domain.AuditRow{Drift: 1}.OK())
}

func TestErrors(t *testing.T) {
	t.Parallel()
	cause := errors.New("connection refused")
	unavailable := fmt.Errorf("reserving: %w", &domain.UnavailableError{Server: "Redis", Err: cause})
	require.ErrorIs(t, unavailable, domain.ErrUnavailable)
	require.ErrorIs(t, unavailable, cause)
	require.ErrorContains(t, unavailable, "Redis")

	refused := fmt.Errorf("reserving: %w", &domain.RefusedError{
		Refusal: domain.Refusal{Grant: domain.Grant{Strategy: "redis", Epoch: 2, Token: 6}, CurrentEpoch: 2, CurrentToken: 7},
		Err:     domain.ErrStaleToken,
	})
	require.ErrorIs(t, refused, domain.ErrStaleToken)
	require.NotErrorIs(t, refused, domain.ErrSuperseded)
	require.ErrorContains(t, refused, "presented 2.6 under redis, the fence is at 2.7")

	require.ErrorIs(t, domain.Invalid("quantity", "must be at least %d", 1), domain.ErrInvalid)
	require.EqualError(t, domain.Invalid("quantity", "must be at least %d", 1), "quantity must be at least 1")
}

// A code that the service makes cannot be guessed, nor misread.
func TestMadeCodes(t *testing.T) {
	t.Parallel()
	s, _, _ := newService(t)
	codes := map[string]bool{}
	letters := map[rune]int{}
	const n = 2000
	for range n {
		view, err := s.CreateCoupon(t.Context(), domain.NewCoupon{MaxRedemptions: 1}, nil)
		require.NoError(t, err)
		require.Regexp(t, `^[2-9A-HJ-NP-Z]{4}(-[2-9A-HJ-NP-Z]{4}){3}$`, view.Code, "16 letters of 32: 80 bits")
		codes[view.Code] = true
		for _, r := range strings.ReplaceAll(view.Code, "-", "") {
			letters[r]++
		}
	}
	assert.Len(t, codes, n)
	assert.Len(t, letters, 32)
	for letter, count := range letters { // 1000 expected, with a deviation of 31
		assert.InDelta(t, n*16/32, count, 250, "%c", letter)
	}
}

// Every attempt to use a code is made within the bound, whether it looks like one or not, and so is every hold.
func TestBoundedAttempts(t *testing.T) {
	t.Parallel()
	s, _, _ := newService(t)
	var results []error
	bound := func(_ context.Context, caller domain.Caller, attempt func() error) error {
		assert.Equal(t, "caller", caller.ID)
		results = append(results, attempt())
		return domain.ErrRateLimited
	}
	s.Guessing, s.Holding = bound, bound
	caller := domain.Caller{ID: "caller"}
	for _, code := range []string{"unknown", "-bad", ""} {
		_, _, err := s.Redeem(t.Context(), caller, domain.NewRedemption{Code: code, CustomerID: "c"}, nil)
		require.ErrorIs(t, err, domain.ErrRateLimited)
	}
	_, _, err := s.Reserve(t.Context(), caller, domain.NewReservation{SKU: "unknown", Quantity: 1}, nil)
	require.ErrorIs(t, err, domain.ErrRateLimited)
	require.Len(t, results, 4)
	for _, err := range results[:3] {
		assert.ErrorIs(t, err, domain.ErrCouponExpired)
	}
	assert.ErrorIs(t, results[3], domain.ErrNotFound)
}
