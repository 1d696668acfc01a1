package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres/postgrestest"
	"fencepost/locking"
)

// sweeping is an instance's sweeper, whose clock stands still and whose log can be read.
func sweeping(i *shopInstance) (sweeper *sweeper, clock *time.Time, warnings func() int) {
	now := time.Now().Add(time.Hour) // every hold is due
	i.Service.Now = func() time.Time { return now }
	var log bytes.Buffer
	sweeper = newSweeper(i.store, &i.Service, &Config{SweepInterval: time.Second, AnswerTTL: time.Hour}, slog.New(slog.NewTextHandler(&log, nil)))
	return sweeper, &now, func() int { return strings.Count(log.String(), "level=WARN") }
}

func (s *shop) hold(t *testing.T, lines ...domain.Line) (id string) {
	t.Helper()
	order, _, err := s.instances[1].Order(t.Context(), domain.Caller{ID: "buyer"}, domain.NewOrder{Lines: lines}, nil)
	require.NoError(t, err)
	return order.ID
}

func (s *shop) state(t *testing.T, id string) domain.ReservationState {
	t.Helper()
	r, err := s.instances[1].store.Reservation(t.Context(), id)
	require.NoError(t, err)
	return r.State
}

// A hold whose lock does not come free is tried again later, and later again. It delays none that needs no lock which it has.
func TestSweepGetsPastALock(t *testing.T) {
	t.Parallel()
	s := newShop(t, 2, 3, 10)
	stuck := []string{
		s.hold(t, domain.Line{SKU: s.items[0], Quantity: 1}),
		s.hold(t, domain.Line{SKU: s.items[0], Quantity: 1}, domain.Line{SKU: s.items[2], Quantity: 1}),
	}
	free := s.hold(t, domain.Line{SKU: s.items[1], Quantity: 1})
	sweeper, clock, warnings := sweeping(s.instances[0])

	held, letGo, over := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := s.instances[1].Guard.Do(t.Context(), domain.Section{
			Keys: []domain.Key{domain.ItemKey(s.items[0])}, Alone: true,
			Run: func(context.Context, domain.Tx) error {
				close(held)
				<-letGo
				return nil
			},
		})
		over <- err
	}()
	<-held
	for range 10 { // the first gives up; the others leave it alone
		assert.Zero(t, sweeper.sweep(t.Context()))
	}
	assert.Equal(t, 1, warnings())
	assert.Equal(t, domain.Expired, s.state(t, free))
	for _, id := range stuck {
		assert.Equal(t, domain.Held, s.state(t, id))
	}
	close(letGo)
	require.NoError(t, <-over)
	*clock = clock.Add(leastRest)
	sweeper.sweep(t.Context())
	for _, id := range stuck {
		assert.Equal(t, domain.Expired, s.state(t, id))
	}
	audit, ok := s.audit(t)
	assert.True(t, ok, "%+v", audit)
}

// An instance whose strategy is not in charge leaves the holds to those whose is, and makes no noise about it.
func TestSweepOfASupersededInstance(t *testing.T) {
	t.Parallel()
	s := newShop(t, 2, 0, 0)
	sku := uuid.NewString()
	_, err := s.instances[0].CreateItem(t.Context(), domain.NewItem{SKU: sku, Name: "A", Stock: 1}, nil)
	require.NoError(t, err)
	s.items = append(s.items, sku)
	id := s.hold(t, domain.Line{SKU: sku, Quantity: 1})
	require.NoError(t, s.instances[1].Guard.(*locking.Guard).Claim(t.Context(), map[domain.Scope]string{domain.ScopeInventory: "redis"}))

	sweeper, clock, warnings := sweeping(s.instances[0])
	for range 10 {
		sweeper.sweep(t.Context())
	}
	assert.Equal(t, 1, warnings())
	*clock = clock.Add(leastRest)
	sweeper.sweep(t.Context())
	assert.Equal(t, 2, warnings())
	audit, _ := s.audit(t)
	assert.LessOrEqual(t, audit[domain.ItemKey(sku)].Refused, int64(1), "the fence is asked once, and believed")
	assert.Equal(t, domain.Held, s.state(t, id))

	other, _, _ := sweeping(s.instances[1])
	other.sweep(t.Context())
	assert.Equal(t, domain.Expired, s.state(t, id))
}

// A database that is gone is logged once, and asked again.
func TestSweepWithoutDatabase(t *testing.T) {
	t.Parallel()
	s := newShop(t, 2, 1, 10)
	sweeper, _, warnings := sweeping(s.instances[0])
	gone := postgrestest.New(t).Store(t, 1)
	gone.Close()
	sweeper.store = gone
	for range 3 {
		assert.Zero(t, sweeper.sweep(t.Context()))
	}
	assert.Equal(t, 1, warnings())
	sweeper.store = s.instances[0].store
	id := s.hold(t, domain.Line{SKU: s.items[0], Quantity: 1})
	sweeper.sweep(t.Context())
	assert.Equal(t, domain.Expired, s.state(t, id))
	assert.False(t, sweeper.failing)
}

// Answers are thrown away when they are old, beside the sweep. A late retry is told so, and buys nothing.
func TestSweepThrowsOldAnswersAway(t *testing.T) {
	t.Parallel()
	s := newShop(t, 2, 1, 10)
	buy := func() (answer domain.Answer, replayed bool) {
		once := &domain.Once{Caller: "buyer", Key: "the-key", Encode: func(any, error) domain.Answer {
			return domain.Answer{Status: 201, Location: "/there", Body: []byte("done")}
		}}
		_, _, err := s.instances[1].Reserve(t.Context(), domain.Caller{ID: "buyer"}, domain.NewReservation{SKU: s.items[0], Quantity: 1}, once)
		if replay, ok := errors.AsType[*domain.Replay](err); ok {
			return replay.Answer, true
		}
		require.NoError(t, err)
		return domain.Answer{}, false
	}
	_, replayed := buy()
	require.False(t, replayed)

	sweeper, clock, warnings := sweeping(s.instances[0]) // which throws away what is older than an hour
	sweeper.purgeAnswers(t.Context())
	answer, _ := buy()
	assert.Equal(t, "done", string(answer.Body), "it is not old yet")
	sweeper.answerTTL = 0
	*clock = clock.Add(purgePause)
	ctx, cancel := context.WithCancel(t.Context())
	var sweep sync.WaitGroup
	sweep.Go(func() { sweeper.run(ctx) })
	require.Eventually(t, func() bool { answer, replayed = buy(); return answer.Body == nil }, time.Minute, 10*time.Millisecond)
	cancel()
	sweep.Wait()
	assert.True(t, replayed)
	assert.Equal(t, "/there", answer.Location)
	assert.Zero(t, warnings())
	audit, ok := s.audit(t)
	assert.True(t, ok, "%+v", audit)
	assert.EqualValues(t, 1, count(t, postgrestest.Connect(t, s.db.OwnerURL), `SELECT count(*) FROM reservation_lines`), "it was bought once")
}

func TestSweepPause(t *testing.T) {
	t.Parallel()
	now := time.Now()
	w := &sweeper{interval: time.Second, service: &domain.Service{Now: func() time.Time { return now }}}
	for next, least := range map[time.Time]time.Duration{
		{}:                              time.Second,
		now.Add(time.Hour):              time.Second,
		now.Add(300 * time.Millisecond): 300 * time.Millisecond,
		now.Add(-time.Hour):             100 * time.Millisecond,
	} {
		pause := w.pause(next)
		assert.GreaterOrEqual(t, pause, least)
		assert.Less(t, pause, least+w.interval/10)
	}
}
