package postgres_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/postgrestest"
)

// lived makes an item and a coupon to which everything has happened that can.
func (w *world) lived(t *testing.T) {
	t.Helper()
	item := w.item(t, "a", 10, domain.FencingEnforced)
	for _, end := range []func(id string) func(context.Context, domain.Tx) error{
		nil,
		func(id string) func(context.Context, domain.Tx) error {
			return settle(id, domain.Confirmed, domain.EntryConfirm, (*domain.Item).Confirm)
		},
		release,
	} {
		r := reservation(domain.Line{SKU: "a", Quantity: 2})
		require.NoError(t, w.section(t, hold(r), item))
		if end != nil {
			require.NoError(t, w.section(t, end(r.ID), item))
		}
	}
	require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
		item, err := tx.Item(ctx, "a")
		require.NoError(t, err)
		require.NoError(t, item.Restock(5))
		tx.PutItem(item, domain.Entry{Kind: domain.EntryRestock})
		return nil
	}, item))

	coupon := w.coupon(t, domain.Coupon{Code: "c", MaxRedemptions: 5, PerCustomerLimit: 1})
	for _, customer := range []string{"one", "two", "three"} {
		r := domain.Redemption{
			ID: domain.RedemptionPrefix + uuid.NewString(), Code: "c", CustomerID: customer, State: domain.Redeemed,
			CreatedBy: "caller", CreatedAt: reservation().CreatedAt,
		}
		require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
			c, err := tx.Coupon(ctx, "c")
			require.NoError(t, err)
			require.NoError(t, c.Redeem(0, r.CreatedAt))
			tx.PutCoupon(c, domain.Entry{Kind: domain.EntryRedeem, Reference: r.ID})
			tx.PutRedemption(r)
			return nil
		}, coupon))
		if customer != "three" {
			continue
		}
		require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
			c, err := tx.Coupon(ctx, "c")
			require.NoError(t, err)
			r, err := tx.Redemption(ctx, r.ID)
			require.NoError(t, err)
			require.NoError(t, c.GiveBack())
			r.State, r.SettledAt = domain.RolledBack, r.CreatedAt
			tx.PutCoupon(c, domain.Entry{Kind: domain.EntryRollback, Reference: r.ID})
			tx.PutRedemption(r)
			return nil
		}, coupon))
	}
}

// auditEach is the audit of everything as the command and the metrics have it.
func (w *world) auditEach(t *testing.T) (rows []domain.AuditRow) {
	t.Helper()
	require.NoError(t, w.store.AuditEach(t.Context(), func(r domain.AuditRow) error {
		rows = append(rows, r)
		return nil
	}))
	return rows
}

// Whatever the owner breaks by hand, with every guard switched off, the audit finds, and says where and what.
func TestAuditFindsDamage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.lived(t)
	w.item(t, "b", 1, domain.FencingEnforced)
	off := w.item(t, "off", 1, domain.FencingOff)
	require.NoError(t, w.section(t, hold(reservation(domain.Line{SKU: "off", Quantity: 1})), off))
	rows := w.auditEach(t)
	require.Len(t, rows, 4)
	for _, r := range rows {
		require.Empty(t, r.Findings(), r.Key)
	}
	owner := postgrestest.Connect(t, w.db.OwnerURL)
	for _, tt := range []struct{ name, damage, key, finding string }{
		{"units from nowhere", `UPDATE items SET on_hand = on_hand + 1 WHERE resource = 'item/a'`, "item/a", "the counters are off by 1"},
		{"units held by nobody", `UPDATE items SET reserved = reserved + 2 WHERE resource = 'item/a'`, "item/a", "the counters are off by 2"},
		{"a sale forgotten", `UPDATE items SET sold = 0 WHERE resource = 'item/a'`, "item/a", "the counters are off by 2"},
		{"more held than there ever was", `UPDATE reservation_lines SET quantity = 100 WHERE state = 'held' AND resource = 'item/a'`, "item/a", "oversold by 87"},
		{"another quantity", `UPDATE reservation_lines SET quantity = 1 WHERE state = 'held' AND resource = 'item/a'`, "item/a", "the ledger disagrees with 1 of its"},
		{"a quantity that no sum shows", `UPDATE reservation_lines SET quantity = 1 WHERE state = 'released'`, "item/a", "the ledger disagrees with 1 of its"},
		{"another state", `UPDATE reservation_lines SET state = 'expired' WHERE state = 'released'`, "item/a", "the ledger disagrees with 1 of its"},
		{"a reservation lost", `DELETE FROM reservation_lines WHERE state = 'released'`, "item/a", "the ledger disagrees with 1 of its"},
		{"a reservation that no entry tells of", `
			INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at, settled_at)
			VALUES ('item/a', gen_random_uuid(), 1, 'released', '', '', now(), now(), now())`, "item/a", "the ledger disagrees with 1 of its"},
		{"an entry lost", `DELETE FROM ledger WHERE kind = 'restock'`, "item/a", "the counters are off by 5"},
		{"an entry of nobody", `UPDATE ledger SET reference = NULL WHERE kind = 'release'`, "item/a", "the ledger disagrees with 2 of its"},
		{"an entry of two, which cancel out", `
			UPDATE ledger SET on_hand_delta = on_hand_delta + CASE kind WHEN 'hold' THEN -1 ELSE 1 END
			 WHERE reference IN (SELECT reservation FROM reservation_lines WHERE state = 'confirmed')`, "item/a", "the ledger disagrees with 1 of its"},
		{"a write with an older token", `
			UPDATE ledger SET token = 0 WHERE resource = 'item/a' AND kind = 'restock'`, "item/a", "1 writes have an older token"},
		{"a write of an older epoch", `
			UPDATE ledger SET epoch = 0 WHERE resource = 'item/a' AND kind = 'restock'`, "item/a", "1 writes have an older token"},
		{"a token of two grants", `
			UPDATE ledger SET token = (SELECT token FROM ledger WHERE kind = 'release')
			 WHERE resource = 'item/a' AND kind = 'restock'`, "item/a", "1 writes have an older token"},
		{"two grants in one transaction", `
			UPDATE ledger SET turn = (SELECT turn FROM ledger WHERE kind = 'release')
			 WHERE resource = 'item/a' AND kind = 'restock'`, "item/a", "1 writes have an older token"},
		{"a write without a token", `UPDATE ledger SET token = NULL WHERE kind = 'release'`, "item/a", "writes have an older token"},
		{"a write without a turn", `UPDATE ledger SET turn = NULL WHERE kind = 'restock'`, "item/a", "1 writes have an older token"},
		{"a fence set back", `UPDATE fences SET token = 1 WHERE resource = 'item/a'`, "item/a", "the fence is behind"},
		{"a fence with fewer turns", `UPDATE fences SET turn = 0 WHERE resource = 'item/a'`, "item/a", "the fence is behind"},
		{"a fence of an epoch to come", `UPDATE fences SET epoch = 99 WHERE resource = 'item/b'`, "item/b", "ahead of its authority"},
		{"an item lost", `DELETE FROM items WHERE resource = 'item/a'`, "item/a", "its own row or its fence is missing"},
		{"a fence lost", `DELETE FROM items WHERE resource = 'item/b'; DELETE FROM fences WHERE resource = 'item/b'`, "item/b", "its own row or its fence is missing"},
		{"a coupon lost", `DELETE FROM coupons`, "coupon/c", "its own row or its fence is missing"},
		{"uses from nowhere", `UPDATE coupons SET redeemed = redeemed + 1`, "coupon/c", "the counters are off by 1"},
		{"fewer uses allowed than there were", `ALTER TABLE coupons DROP CONSTRAINT coupons_check; UPDATE coupons SET max_redemptions = 1`, "coupon/c", "oversold by 1"},
		{"two uses of one customer", `UPDATE redemptions SET customer_id = 'one' WHERE state = 'redeemed'`, "coupon/c", "1 customers have used it more often"},
		{"a use taken back by hand", `UPDATE redemptions SET state = 'rolled_back', settled_at = now() WHERE customer_id = 'one'`, "coupon/c", "the ledger disagrees with 1 of its"},
		{"a use lost", `DELETE FROM redemptions WHERE state = 'rolled_back'`, "coupon/c", "the ledger disagrees with 1 of its"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tx, err := owner.Begin(t.Context())
			require.NoError(t, err)
			defer tx.Rollback(context.WithoutCancel(t.Context()))
			for _, table := range []string{"fences", "items", "reservation_lines", "coupons", "redemptions", "ledger"} {
				_, err = tx.Exec(t.Context(), `ALTER TABLE `+table+` DISABLE TRIGGER USER`)
				require.NoError(t, err)
			}
			_, err = tx.Exec(t.Context(), tt.damage)
			require.NoError(t, err)
			rows, err := postgres.AuditIn(t.Context(), tx)
			require.NoError(t, err)
			for _, r := range rows {
				findings := strings.Join(r.Findings(), "; ")
				if string(r.Key) != tt.key {
					assert.Empty(t, findings, r.Key)
					continue
				}
				assert.Contains(t, findings, tt.finding)
				assert.False(t, r.OK())
			}
			assert.True(t, slices.ContainsFunc(rows, func(r domain.AuditRow) bool { return string(r.Key) == tt.key }))
		})
	}
}

// The order of the ledger is the order of the commits, also where the clock and the ids say otherwise: a transaction that has
// begun first may be the last to get the row.
func TestOrderOfTheLedger(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	early, late := w.grant(key), w.grant(key)
	conn := postgrestest.Connect(t, w.db.ServiceURL)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	began := query[time.Time](t, conn, `SELECT now()`)

	_, err = transact(t.Context(), w.store, []domain.Grant{early}, wait, hold(reservation(domain.Line{SKU: "a", Quantity: 1})))
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT present($1, $2, $3, $4, $5)`, key, late.Strategy, late.Epoch, late.Token, late.ID)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `
		INSERT INTO ledger (resource, entry, kind, strategy, epoch, token, grant_id, turn)
		SELECT resource, '00000000-0000-7000-8000-000000000000', 'restock', strategy, epoch, token, grant_id, turn
		  FROM fences WHERE resource = $1`, key)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))

	kinds := query[string](t, conn, `SELECT string_agg(kind, ' ' ORDER BY turn) FROM ledger`)
	assert.Equal(t, "create hold restock", kinds)
	assert.True(t, query[bool](t, conn, `SELECT written_at = $1 AND written_at < (SELECT written_at FROM ledger WHERE kind = 'hold') FROM ledger WHERE kind = 'restock'`, began))
	assert.Empty(t, w.audit(t, key).Findings())
}

// The audit goes on while requests have every connection of the pool, and writes nothing.
func TestAuditHasAConnectionOfItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	require.NoError(t, w.section(t, func(context.Context, domain.Tx) error { // has the only connection
		assert.Len(t, w.auditEach(t), 1)
		return nil
	}, key))
	stop := errors.New("enough")
	require.ErrorIs(t, w.store.AuditEach(t.Context(), func(domain.AuditRow) error { return stop }), stop)
}
