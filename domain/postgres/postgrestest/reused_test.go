package postgrestest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A row in every table that the service writes.
const used = `
	SELECT claim_authority('inventory', 'redis', 'server'), claim_authority('coupons', 'redis', 'server');
	SELECT create_fence('item/a', 'enforced', NULL, NULL, gen_random_uuid()), create_fence('coupon/c', 'enforced', NULL, NULL, gen_random_uuid());
	INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/a', 'A', 10, 2, 0);
	INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at)
	VALUES ('item/a', gen_random_uuid(), 2, 'held', '', 'me', now(), now() + interval '1 hour');
	INSERT INTO coupons (resource, max_redemptions, redeemed) VALUES ('coupon/c', 10, 1);
	INSERT INTO redemptions (resource, redemption, customer_id, state, created_by, created_at)
	VALUES ('coupon/c', gen_random_uuid(), 'somebody', 'redeemed', 'me', now());
	INSERT INTO ledger (resource, entry, kind, on_hand_delta, strategy, epoch, token, grant_id, turn)
	SELECT resource, gen_random_uuid(), 'create', 10, strategy, epoch, token, grant_id, turn FROM fences WHERE resource = 'item/a';
	INSERT INTO refusals (id, resource, reason, strategy, presented_epoch, presented_token, presented_grant, current_epoch, current_token, instance)
	VALUES (gen_random_uuid(), 'item/a', 'stale_fencing_token', 'redis', 1, 1, gen_random_uuid(), 1, 2, 'test');
	INSERT INTO answers (resource, caller, key, fingerprint, status, location) VALUES ('item/a', 'me', 'k', sha256(''), 201, '');
	INSERT INTO api_keys (id, name, role, digest) VALUES (gen_random_uuid(), 'me', 'admin', sha256(''));
	INSERT INTO request_quotas VALUES ('me', now(), 1, 1);
	INSERT INTO coupon_guesses VALUES ('me', now());
	INSERT INTO hold_leases VALUES ('me', gen_random_uuid(), 1, now());
	SELECT FROM sweep_slots FOR UPDATE`

// contents are the rows of every table.
func contents(t *testing.T, owner *pgx.Conn) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, table := range list(t, owner, `SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'`) {
		all[table] = list(t, owner, `SELECT t::text FROM `+table+` t ORDER BY 1`)
	}
	return all
}

// triggers are all of them, those of the foreign keys too, with their state.
func triggers(t *testing.T, owner *pgx.Conn) []string {
	t.Helper()
	return list(t, owner, `
		SELECT concat_ws(' ', tgrelid::regclass, CASE WHEN tgisinternal THEN tgfoid::regproc::text ELSE tgname::text END, tgtype, tgenabled)
		  FROM pg_trigger ORDER BY 1`)
}

func list(t *testing.T, owner *pgx.Conn, sql string) []string {
	t.Helper()
	rows, err := owner.Query(t.Context(), sql)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return all
}

// What a test has written is not there for the next one, and what the migrations have made still is.
func TestEmptiedIsLikeNew(t *testing.T) {
	t.Parallel()
	fresh := Connect(t, New(t).OwnerURL)
	rows, guards := contents(t, fresh), triggers(t, fresh)

	d, err := take(t.Context())
	require.NoError(t, err)
	defer d.owner.Close(context.WithoutCancel(t.Context()))
	service, err := pgx.Connect(t.Context(), d.ServiceURL)
	require.NoError(t, err)
	defer service.Close(context.WithoutCancel(t.Context()))
	_, err = service.Exec(t.Context(), used)
	require.NoError(t, err)
	for table, rows := range contents(t, d.owner) {
		require.NotEmpty(t, rows, "nothing shows that %s is emptied: give it a row", table)
	}

	require.ErrorContains(t, d.empty(t.Context(), time.Millisecond), "left sessions open in its database: fencepost_service")
	require.NoError(t, service.Close(t.Context()))
	require.NoError(t, d.empty(t.Context(), time.Minute))
	assert.Equal(t, rows, contents(t, d.owner))
	assert.Equal(t, guards, triggers(t, d.owner))
}

// One after the other have the same database, and each has it to himself. Not parallel: another test could take one meanwhile.
func TestReused(t *testing.T) {
	names := map[string]bool{}
	for range 3 {
		t.Run("", func(t *testing.T) {
			one, _ := Reused(t)
			other, _ := Reused(t)
			require.NotEqual(t, one, other)
			names[one.OwnerURL], names[other.OwnerURL] = true, true
		})
	}
	assert.Len(t, names, 2)

	// A server that is started again ends the sessions that were kept.
	for url := range names {
		_, err := Connect(t, url).Exec(t.Context(), `
			SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
			 WHERE datname = current_database() AND usename IS NOT NULL AND pid <> pg_backend_pid()`)
		require.NoError(t, err)
	}
	t.Run("", func(t *testing.T) {
		_, owner := Reused(t)
		require.NoError(t, owner.Ping(t.Context()))
	})
}
