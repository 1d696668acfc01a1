package postgres_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres/postgrestest"
)

// The short audit finds what the long one does.
func TestAuditSums(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	owner := postgrestest.Connect(t, w.db.OwnerURL)
	w.item(t, "fenced", 10, domain.FencingEnforced)
	for _, sku := range []string{"raced", "twice"} {
		w.item(t, sku, 1, domain.FencingOff)
		_, err := owner.Exec(t.Context(), `
			INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at)
			VALUES ('item/' || $1, gen_random_uuid(), 3, 'held', '', '', now(), now())`, sku)
		require.NoError(t, err)
	}
	want := map[domain.Fencing]domain.AuditSum{}
	rows, err := w.store.Audit(t.Context(), "item/fenced", "item/raced", "item/twice")
	require.NoError(t, err)
	for _, r := range rows {
		sum := want[r.Fencing]
		want[r.Fencing] = domain.AuditSum{Oversold: sum.Oversold + r.Oversold, Drift: sum.Drift + r.Drift, Off: sum.Off}
		if !r.OK() {
			sum = want[r.Fencing]
			sum.Off++
			want[r.Fencing] = sum
		}
	}
	got, err := w.store.AuditSums(t.Context())
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.Equal(t, map[domain.Fencing]domain.AuditSum{
		domain.FencingEnforced: {}, domain.FencingOff: {Oversold: 4, Drift: 6, Off: 2},
	}, got)
}

// An audit that takes its time keeps neither requests nor health checks waiting, and ends when it is told to.
func TestAuditInTheBackgroundIsInNobodysWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	owner := postgrestest.Connect(t, w.db.OwnerURL)
	watcher := postgrestest.Connect(t, w.db.ServiceURL) // the owner does not see what the service waits for
	held, err := owner.Begin(t.Context())
	require.NoError(t, err)
	_, err = held.Exec(t.Context(), `LOCK TABLE coupons`) // the audit reads it
	require.NoError(t, err)
	key := w.item(t, "a", 10, domain.FencingEnforced)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := w.store.AuditSums(ctx)
		done <- err
	}()
	backend(t, watcher, waitsForLock)
	require.NoError(t, w.store.Ping(t.Context()))
	_, err = w.store.Reigns(t.Context())
	require.NoError(t, err)
	require.NoError(t, w.section(t, hold(reservation(domain.Line{SKU: "a", Quantity: 1})), key))
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.NoError(t, held.Rollback(t.Context()))
	_, err = w.store.AuditSums(t.Context())
	require.NoError(t, err, "the connection is still of use")
}
