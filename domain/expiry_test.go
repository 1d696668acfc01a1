package domain_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

// memory is for one goroutine, so a test of Expire has holds of one set of keys.
func TestExpire(t *testing.T) {
	t.Parallel()
	s, m, clock := newService(t)
	var due []domain.Reservation
	for range 4 {
		r, _, err := s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 2}, nil)
		require.NoError(t, err)
		due = append(due, r)
	}
	longer, _, err := s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: 2, TTL: time.Hour}, nil)
	require.NoError(t, err)
	_, _, err = s.Confirm(t.Context(), owner, due[0].ID, nil)
	require.NoError(t, err)
	_, _, err = s.Release(t.Context(), owner, due[1].ID, nil)
	require.NoError(t, err)
	before := m.rows.clone()

	*clock = start.Add(time.Minute - time.Microsecond)
	ended, failed := s.Expire(t.Context(), append(due, longer))
	assert.Zero(t, ended, "none is due yet")
	assert.Empty(t, failed)
	assert.Equal(t, before, m.rows)

	*clock = start.Add(time.Minute)
	for _, want := range []int{2, 0} { // ending twice is ending once
		ended, failed = s.Expire(t.Context(), append(due, longer))
		assert.Equal(t, want, ended)
		assert.Empty(t, failed)
		assert.Equal(t, domain.Item{SKU: "a", Name: "A", OnHand: 8, Reserved: 2, Sold: 2}, m.rows.items["a"])
	}
	var states []domain.ReservationState
	for _, r := range append(due, longer) {
		states = append(states, m.rows.reservations[r.ID].State)
	}
	assert.Equal(t, []domain.ReservationState{domain.Confirmed, domain.Released, domain.Expired, domain.Expired, domain.Held}, states)
	assert.Equal(t, noon.Add(time.Minute), m.rows.reservations[due[2].ID].SettledAt)
	assert.Equal(t, []domain.Entry{{Kind: domain.EntryExpire, Reference: due[2].ID}, {Kind: domain.EntryExpire, Reference: due[3].ID}},
		m.rows.ledger[len(before.ledger):])
}

// A hold that cannot be ended keeps no other from its end, and is named so that it can be left alone.
func TestExpireWhatIsCorrupted(t *testing.T) {
	t.Parallel()
	s, m, clock := newService(t)
	var due []domain.Reservation
	for _, quantity := range []int64{2, 3} {
		r, _, err := s.Reserve(t.Context(), owner, domain.NewReservation{SKU: "a", Quantity: quantity}, nil)
		require.NoError(t, err)
		due = append(due, r)
	}
	item := m.rows.items["a"]
	item.Reserved = 4
	m.rows.items["a"] = item
	*clock = start.Add(time.Minute)
	ended, failed := s.Expire(t.Context(), due)
	assert.Equal(t, 1, ended)
	require.Len(t, failed, 1)
	require.ErrorIs(t, failed["item/a"], domain.ErrCountersCorrupted)
	assert.Equal(t, domain.Held, m.rows.reservations[due[1].ID].State)
	assert.EqualValues(t, 2, m.rows.items["a"].Reserved)

	m.rows.items["b"] = domain.Item{SKU: "b", Name: "B"}
	r := domain.Reservation{ID: "rsv_x", State: domain.Held, Lines: []domain.Line{{SKU: "a", Quantity: 1}, {SKU: "b", Quantity: 1}}, ExpiresAt: noon}
	m.rows.reservations[r.ID] = r
	before := m.rows.clone()
	ended, failed = s.Expire(t.Context(), []domain.Reservation{r})
	assert.Zero(t, ended)
	require.ErrorIs(t, failed["rsv_x"], domain.ErrCountersCorrupted, "one that needs several keys is named itself: its items may be fine for others")
	assert.Equal(t, before, m.rows, "the first line is not given back without the second")
}
