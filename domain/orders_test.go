package domain_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

// withMore adds an item "b" of which two are there, and a coupon "old" that is over.
func withMore(m *memory) {
	m.rows.items["b"] = domain.Item{SKU: "b", Name: "B", OnHand: 2}
	m.rows.coupons["old"] = domain.Coupon{Code: "old", MaxRedemptions: 1, ValidUntil: noon}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	withMore(m)
	order, receipt, err := s.Order(t.Context(), owner, domain.NewOrder{
		Lines:      []domain.Line{{SKU: "b", Quantity: 1}, {SKU: "a", Quantity: 2}, {SKU: "b", Quantity: 1}},
		Coupon:     "c",
		CustomerID: "one",
		TTL:        time.Hour,
	}, nil)
	require.NoError(t, err)
	want := domain.Reservation{
		ID: "rsv_1", State: domain.Held, Lines: []domain.Line{{SKU: "a", Quantity: 2}, {SKU: "b", Quantity: 2}},
		CustomerID: "one", CreatedBy: "owner", CreatedAt: noon, ExpiresAt: noon.Add(time.Hour),
		Tied: []domain.TiedUse{{Redemption: "rdm_2", Code: "c"}},
	}
	assert.Equal(t, want, order.Reservation, "lines for one item are one, and in the order in which they are stored")
	assert.Equal(t, &domain.Redemption{
		ID: "rdm_2", Code: "c", CustomerID: "one", ReservationID: "rsv_1", State: domain.Redeemed, CreatedBy: "owner", CreatedAt: noon,
	}, order.Redemption)
	assert.NotEmpty(t, receipt.Grants)
	stored, err := s.Reservation(t.Context(), owner, "rsv_1")
	require.NoError(t, err)
	assert.Equal(t, want, stored, "what is answered is what will be read")
	assert.Equal(t, *order.Redemption, m.rows.redemptions["rdm_2"])
	assert.EqualValues(t, 2, m.rows.items["a"].Reserved)
	assert.EqualValues(t, 2, m.rows.items["b"].Reserved)
	assert.EqualValues(t, 1, m.rows.coupons["c"].Redeemed)
	assert.Equal(t, []domain.Entry{
		{Kind: domain.EntryHold, Reference: "rsv_1"},
		{Kind: domain.EntryHold, Reference: "rsv_1"},
		{Kind: domain.EntryRedeem, Reference: "rdm_2"},
	}, m.rows.ledger)
}

// What is refused changes nothing, and the refusal names the line, the items, or nothing that is not for the caller to know.
func TestOrderRefused(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	withMore(m)
	m.rows.coupons["used"] = domain.Coupon{Code: "used", MaxRedemptions: 1, Redeemed: 1}
	before := m.rows.clone()
	line := func(sku string, quantity int64) domain.Line { return domain.Line{SKU: sku, Quantity: quantity} }
	order := func(coupon, customer string, lines ...domain.Line) error {
		_, _, err := s.Order(t.Context(), owner, domain.NewOrder{Lines: lines, Coupon: coupon, CustomerID: customer}, nil)
		return err
	}
	many := make([]domain.Line, domain.MaxLines+1)
	for i := range many {
		many[i] = line("a", 1)
	}
	for _, c := range []struct {
		field  string
		coupon string
		lines  []domain.Line
	}{
		{"lines", "", nil},
		{"lines", "", many},
		{"lines[1].sku", "", []domain.Line{line("a", 1), line("", 1)}},
		{"lines[1].sku", "", []domain.Line{line("a", 1), line("ghost", 1)}},
		{"lines[1].sku", "c", []domain.Line{line("a", 1), line("ghost", 1)}},
		{"lines[1].sku", "old", []domain.Line{line("a", 1), line("ghost", 1)}},
		{"lines[1].sku", "nocode", []domain.Line{line("a", 1), line("ghost", 1)}},
		{"lines[0].quantity", "", []domain.Line{line("a", 0), line("b", 1)}},
		{"lines[1].quantity", "", []domain.Line{line("a", 2), line("a", -1)}},
		{"lines[2].quantity", "", []domain.Line{line("a", 50), line("b", 1), line("a", 51)}},
		{"lines[1].quantity", "", []domain.Line{line("a", 1), line("a", 1<<63-1)}},
	} {
		invalid(t, order(c.coupon, "one", c.lines...), c.field)
	}
	invalid(t, order("c", "", line("a", 1)), "customer_id")
	require.ErrorIs(t, order("", "", many[:domain.MaxLines]...), domain.ErrOutOfStock, "so many lines are not too many")

	err := order("", "", line("b", 2), line("a", 6), line("b", 1), line("a", 5))
	short, ok := err.(*domain.OutOfStockError)
	require.True(t, ok)
	assert.Equal(t, []domain.Shortage{{SKU: "a", Asked: 11, Available: 10}, {SKU: "b", Asked: 3, Available: 2}}, short.Items,
		"lines that are each in stock are not together")
	require.ErrorIs(t, err, domain.ErrOutOfStock)
	assert.EqualError(t, err, "not enough stock: 11 of a asked for, 10 available; 3 of b asked for, 2 available")

	for _, code := range []string{"old", "nocode", "no such code", "a.b"} {
		for _, quantity := range []int64{1, 3} { // whether there is stock must not tell a code from none
			err := order(code, "one", line("b", quantity))
			require.ErrorIs(t, err, domain.ErrCouponExpired, code)
			require.NotErrorIs(t, err, domain.ErrNotFound, code)
			assert.False(t, domain.Final(err))
		}
	}
	require.ErrorIs(t, order("used", "one", line("b", 1)), domain.ErrCouponExhausted)
	assert.Equal(t, before, m.rows)

	require.NoError(t, order("c", "one", line("a", 1)))
	before = m.rows.clone()
	require.ErrorIs(t, order("c", "one", line("a", 1)), domain.ErrCustomerLimit)
	require.ErrorIs(t, order("c", "two", line("a", 10)), domain.ErrOutOfStock)
	assert.Equal(t, before, m.rows)
}

// What goes with a reservation ends with it, unless it was sold.
func TestTiedUses(t *testing.T) {
	t.Parallel()
	type end func(*domain.Service, domain.Reservation) error
	release := func(s *domain.Service, r domain.Reservation) error {
		_, _, err := s.Release(t.Context(), owner, r.ID, nil)
		return err
	}
	confirm := func(s *domain.Service, r domain.Reservation) error {
		_, _, err := s.Confirm(t.Context(), owner, r.ID, nil)
		return err
	}
	expire := func(s *domain.Service, r domain.Reservation) error {
		s.Now = func() time.Time { return r.ExpiresAt }
		due, err := s.Reservation(t.Context(), owner, r.ID)
		ended, failed := s.Expire(t.Context(), []domain.Reservation{due})
		assert.Equal(t, 1, ended)
		assert.Empty(t, failed)
		return err
	}
	for _, c := range []struct {
		name string
		end  end
		left int64 // uses that stay
	}{
		{"release", release, 0},
		{"expire", expire, 0},
		{"confirm", confirm, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, m, _ := newService(t)
			withMore(m)
			m.rows.coupons["d"] = domain.Coupon{Code: "d", MaxRedemptions: 5}
			order, _, err := s.Order(t.Context(), owner, domain.NewOrder{
				Lines: []domain.Line{{SKU: "a", Quantity: 1}, {SKU: "b", Quantity: 2}}, Coupon: "c", CustomerID: "one",
			}, nil)
			require.NoError(t, err)
			var last domain.Redemption
			for range 3 { // one of them is given back before
				last, _, err = s.Redeem(t.Context(), owner, domain.NewRedemption{Code: "d", CustomerID: "one", ReservationID: order.ID}, nil)
				require.NoError(t, err)
			}
			_, _, err = s.Rollback(t.Context(), owner, last.ID, nil)
			require.NoError(t, err)
			alone, _, err := s.Redeem(t.Context(), owner, domain.NewRedemption{Code: "d", CustomerID: "one"}, nil)
			require.NoError(t, err)

			require.NoError(t, c.end(s, order.Reservation))
			assert.Zero(t, m.rows.items["b"].Reserved)
			assert.EqualValues(t, c.left, m.rows.coupons["c"].Redeemed+m.rows.coupons["d"].Redeemed-1)
			assert.Equal(t, domain.Redeemed, m.rows.redemptions[alone.ID].State, "a use that goes with no reservation stays")
			if c.left == 0 {
				assert.Equal(t, domain.RolledBack, m.rows.redemptions[order.Redemption.ID].State)
			}
		})
	}
}

// A coupon that is used with the reservation after its keys were looked up is given back as well.
func TestUseBeforeRelease(t *testing.T) {
	t.Parallel()
	s, m, _ := newService(t)
	r, _, err := s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 1}, nil)
	require.NoError(t, err)
	m.before = func() {
		_, _, err := s.Redeem(t.Context(), owner, domain.NewRedemption{Code: "c", CustomerID: "one", ReservationID: r.ID}, nil)
		require.NoError(t, err)
	}
	_, _, err = s.Release(t.Context(), owner, r.ID, nil)
	require.NoError(t, err)
	assert.Zero(t, m.rows.coupons["c"].Redeemed)
	assert.Zero(t, m.rows.items["a"].Reserved)
}

// A coupon cannot be used with a reservation that is over, also when that happens while it waits for the lock.
func TestUseAfterEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(*domain.Service, *time.Time, string) error
		err  error
	}{
		{"released", func(s *domain.Service, _ *time.Time, id string) error {
			_, _, err := s.Release(t.Context(), owner, id, nil)
			return err
		}, domain.ErrWrongState},
		{"due", func(_ *domain.Service, clock *time.Time, _ string) error {
			*clock = start.Add(time.Minute)
			return nil
		}, domain.ErrExpired},
		{"confirmed", func(s *domain.Service, _ *time.Time, id string) error {
			_, _, err := s.Confirm(t.Context(), owner, id, nil)
			return err
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, m, clock := newService(t)
			r, _, err := s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 1}, nil)
			require.NoError(t, err)
			m.before = func() { require.NoError(t, c.end(s, clock, r.ID)) }
			_, _, err = s.Redeem(t.Context(), owner, domain.NewRedemption{Code: "c", CustomerID: "one", ReservationID: r.ID}, nil)
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, c.err == nil, m.rows.coupons["c"].Redeemed == 1)
			_, _, err = s.Redeem(t.Context(), owner, domain.NewRedemption{Code: "nocode", CustomerID: "one", ReservationID: r.ID}, nil)
			require.ErrorIs(t, err, domain.ErrCouponExpired, "what the reservation is like does not tell a code from none")
		})
	}
}
