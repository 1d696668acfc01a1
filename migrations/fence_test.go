package migrations_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

// The SQLSTATEs that these tests expect. Those of class FP are the fence's own; 00001_fence.sql says what each means.
const (
	staleToken   = "FP001"
	notInCharge  = "FP002"
	notPresented = "FP003"
	neverAllowed = "FP004"
	noToken      = "FP005"
	noResource   = "FP006"
	noPermission = "42501"
	uniqueKey    = "23505"
	foreignKey   = "23503"
	notNull      = "23502"
	checkFails   = "23514"
)

const (
	grantOfA   = "aaaaaaaa-0000-7000-8000-000000000005"
	otherGrant = "bbbbbbbb-0000-7000-8000-000000000005"
	nextGrant  = "cccccccc-0000-7000-8000-000000000006"
)

// fixture is what the attacks are made on. Redis is in charge of both scopes, in the second epoch, and token 5 was the last
// that wrote to item/a and to coupon/c. The resources called bare have a fence, but no row yet, so that a row can be
// inserted. Sent as one string, it is one transaction, in which create_fence counts as the presentation.
const fixture = `
	SELECT claim_authority('inventory', 'redis', 'server'), claim_authority('coupons', 'redis', 'server');
	SELECT raise_epoch('inventory', 1), raise_epoch('coupons', 1);

	SELECT create_fence('item/a', 'enforced', NULL, NULL, gen_random_uuid());
	INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/a', 'A', 10, 2, 0);
	INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at)
	VALUES ('item/a', '00000000-0000-7000-8000-00000000000a', 2, 'held', '', 'me', now(), now() + interval '1 hour');
	INSERT INTO ledger (resource, entry, kind, on_hand_delta, reserved_delta, strategy, epoch, token, grant_id, turn)
	SELECT resource, '00000000-0000-7000-8000-00000000001a', 'create', 10, 2, strategy, epoch, token, grant_id, turn
	  FROM fences WHERE resource = 'item/a';

	SELECT create_fence('coupon/c', 'enforced', NULL, NULL, gen_random_uuid());
	INSERT INTO coupons (resource, max_redemptions, redeemed) VALUES ('coupon/c', 10, 1);
	INSERT INTO redemptions (resource, redemption, customer_id, state, created_by, created_at)
	VALUES ('coupon/c', '00000000-0000-7000-8000-00000000000c', 'somebody', 'redeemed', 'me', now());

	SELECT create_fence('item/b', 'enforced', NULL, NULL, gen_random_uuid());
	INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/b', 'B', 10, 0, 0);
	SELECT create_fence('item/bare', 'enforced', NULL, NULL, gen_random_uuid());
	SELECT create_fence('coupon/bare', 'enforced', NULL, NULL, gen_random_uuid());

	SELECT create_fence('item/row', 'enforced', 'postgres', '', gen_random_uuid());
	INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/row', 'Row', 10, 0, 0);
	SELECT create_fence('item/none', 'enforced', 'none', '', gen_random_uuid());
	INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/none', 'None', 10, 0, 0);
	SELECT create_fence('item/local', 'enforced', 'local', '', gen_random_uuid());
	SELECT create_fence('item/off', 'off', 'none', '', gen_random_uuid());
	INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/off', 'Off', 10, 0, 0);
	INSERT INTO refusals (id, resource, reason, strategy, presented_epoch, presented_token, presented_grant, current_epoch, current_token, instance)
	VALUES (gen_random_uuid(), 'item/a', 'stale_fencing_token', 'redis', 1, 1, gen_random_uuid(), 1, 2, 'test')`

// fenced makes a database with the fixture in it.
func fenced(t *testing.T) postgrestest.Database {
	t.Helper()
	db := postgrestest.New(t)
	service := postgrestest.Connect(t, db.ServiceURL)
	must(t, service, fixture)
	must(t, service, `SELECT present('item/a', 'redis', 2, 5, '`+grantOfA+`')`)
	must(t, service, `SELECT present('coupon/c', 'redis', 2, 5, gen_random_uuid())`)
	return db
}

// next presents as the rightful next holder of the resource would.
func next(resource string) string {
	return `SELECT present('` + resource + `', strategy, epoch, token + 1, '` + nextGrant + `') FROM fences WHERE resource = '` + resource + `'`
}

// run sends the statement in the simple protocol, so that one string may hold several. What stands behind the first line
// of a COPY is its data.
func run(ctx context.Context, conn *pgx.Conn, sql string) error {
	if strings.HasPrefix(sql, "COPY") {
		command, data, _ := strings.Cut(sql, "\n")
		_, err := conn.PgConn().CopyFrom(ctx, strings.NewReader(data), command)
		return err
	}
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

func must(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	require.NoError(t, run(t.Context(), conn, sql), sql)
}

func state(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func value[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) (v T) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), sql, args...).Scan(&v), sql)
	return v
}

// snapshot is every row of every table that the fence is about, and what the fence is made of: tables, rights, triggers,
// functions.
func snapshot(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	var all []string
	for _, source := range []string{
		"public.items", "public.reservation_lines", "public.coupons", "public.redemptions", "public.ledger",
		"public.fences", "public.authorities", "public.refusals",
		`(SELECT relname, relowner, relacl, relrowsecurity, relhasrules FROM pg_class WHERE relnamespace = 'public'::regnamespace)`,
		`(SELECT tgrelid::regclass, tgname, tgfoid::regprocedure, tgenabled FROM pg_trigger WHERE NOT tgisinternal)`,
		`(SELECT oid::regprocedure, proowner, proacl, prosecdef, proconfig, md5(prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)`,
	} {
		rows, _ := conn.Query(t.Context(), `SELECT $1 || ' ' || r::text FROM `+source+` r ORDER BY 1`, source)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		all = append(all, lines...)
	}
	return all
}

// unchanged shows only the rows that differ.
func unchanged(t *testing.T, conn *pgx.Conn, before []string) {
	t.Helper()
	var gone, came []string
	after := snapshot(t, conn)
	for _, row := range before {
		if !slices.Contains(after, row) {
			gone = append(gone, row)
		}
	}
	for _, row := range after {
		if !slices.Contains(before, row) {
			came = append(came, row)
		}
	}
	assert.Empty(t, gone, "gone or changed")
	assert.Empty(t, came, "new or changed")
}

// writes are changes of guarded state, each of which is right after a presentation for its resource and must be refused
// without one. The same list serves three tests, so that a refusal is known to come from the fence and not from a slip in
// the statement.
var writes = []struct{ name, resource, sql string }{
	{"update an item", "item/a", `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`},
	{"update an item to what it is", "item/a", `UPDATE items SET on_hand = on_hand WHERE resource = 'item/a'`},
	{"update a line", "item/a", `UPDATE reservation_lines SET state = 'confirmed', settled_at = now() WHERE resource = 'item/a'`},
	{"update a coupon", "coupon/c", `UPDATE coupons SET redeemed = 0 WHERE resource = 'coupon/c'`},
	{"update a redemption", "coupon/c", `UPDATE redemptions SET state = 'rolled_back', settled_at = now() WHERE resource = 'coupon/c'`},

	{"insert an item", "item/bare", `INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/bare', 'Bare', 1, 0, 0)`},
	{"insert a line", "item/a", `
		INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at)
		VALUES ('item/a', gen_random_uuid(), 1, 'held', '', 'me', now(), now())`},
	{"insert a coupon", "coupon/bare", `INSERT INTO coupons (resource, max_redemptions, redeemed) VALUES ('coupon/bare', 1, 0)`},
	{"insert a redemption", "coupon/c", `
		INSERT INTO redemptions (resource, redemption, customer_id, state, created_by, created_at)
		VALUES ('coupon/c', gen_random_uuid(), 'me', 'redeemed', 'me', now())`},
	{"insert into the ledger", "item/a", `
		INSERT INTO ledger (resource, entry, kind, on_hand_delta, strategy, epoch, token, grant_id, turn)
		VALUES ('item/a', gen_random_uuid(), 'restock', 1, 'redis', 2, 6, '` + nextGrant + `', 2)`},

	{"copy into items", "item/bare", "COPY items (resource, name, on_hand, reserved, sold) FROM STDIN CSV\nitem/bare,Bare,1,0,0\n"},
	{"copy into reservation_lines", "item/a", "COPY reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at)" +
		" FROM STDIN CSV\nitem/a,00000000-0000-7000-8000-0000000000c1,1,held,me,me,2026-01-01Z,2026-01-01Z\n"},
	{"copy into coupons", "coupon/bare", "COPY coupons (resource, max_redemptions, redeemed) FROM STDIN CSV\ncoupon/bare,1,0\n"},
	{"copy into redemptions", "coupon/c", "COPY redemptions (resource, redemption, customer_id, state, created_by, created_at)" +
		" FROM STDIN CSV\ncoupon/c,00000000-0000-7000-8000-0000000000c2,me,redeemed,me,2026-01-01Z\n"},
	{"copy into the ledger", "item/a", "COPY ledger (resource, entry, kind, strategy, epoch, token, grant_id, turn)" +
		" FROM STDIN CSV\nitem/a,00000000-0000-7000-8000-0000000000c3,restock,redis,2,6," + nextGrant + ",2\n"},

	{"insert on conflict do update", "item/a", `
		INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/a', 'A', 1, 0, 0)
		ON CONFLICT (resource) DO UPDATE SET on_hand = 9`},
	{"insert on conflict do nothing", "item/bare", `
		INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/bare', 'Bare', 1, 0, 0) ON CONFLICT DO NOTHING`},
	{"merge", "item/a", `
		MERGE INTO items i USING (VALUES ('item/a')) v (resource) ON i.resource = v.resource WHEN MATCHED THEN UPDATE SET on_hand = 9`},
	{"update from", "item/a", `
		UPDATE items i SET on_hand = 9 FROM fences f WHERE f.resource = i.resource AND i.resource = 'item/a'`},
	{"update inside a WITH", "item/a", `
		WITH changed AS (UPDATE items SET on_hand = 9 WHERE resource = 'item/a' RETURNING 1) SELECT * FROM changed`},
	{"update through a view", "item/a", `
		CREATE TEMP VIEW seen AS SELECT * FROM items; UPDATE seen SET on_hand = 9 WHERE resource = 'item/a'`},
	{"update through a cursor", "item/a", `
		DECLARE c CURSOR FOR SELECT * FROM items WHERE resource = 'item/a' FOR UPDATE; FETCH c; UPDATE items SET on_hand = 9 WHERE CURRENT OF c`},
	{"update in a prepared statement", "item/a", `
		PREPARE p AS UPDATE items SET on_hand = 9 WHERE resource = 'item/a'; EXECUTE p`},
	{"update under EXPLAIN ANALYZE", "item/a", `EXPLAIN ANALYZE UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`},
	{"update in a DO block", "item/a", `DO $$ BEGIN UPDATE items SET on_hand = 9 WHERE resource = 'item/a'; END $$`},
	{"update in a function of one's own", "item/a", `
		CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ UPDATE items SET on_hand = 9 WHERE resource = 'item/a' $$;
		SELECT pg_temp.f()`},
}

// TestPresentedWrites is the positive control of the attacks: as soon as the transaction has presented, the statements pass.
func TestPresentedWrites(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	for _, w := range writes {
		t.Run(w.name, func(t *testing.T) {
			service := postgrestest.Connect(t, db.ServiceURL)
			must(t, service, `BEGIN`)
			must(t, service, next(w.resource))
			must(t, service, w.sql)
			must(t, service, `ROLLBACK`)
		})
	}
}

// TestNoTriggerNoFence is the negative control: without its triggers the same statements pass unpresented. It shows that it
// is the triggers that stop them, and that the attacks would notice if they did not.
func TestNoTriggerNoFence(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	owner := postgrestest.Connect(t, db.OwnerURL)
	for _, table := range []string{"items", "reservation_lines", "coupons", "redemptions", "ledger"} {
		must(t, owner, `DROP TRIGGER guard_insert ON `+table+`; DROP TRIGGER IF EXISTS guard_update ON `+table)
	}
	for _, w := range writes {
		t.Run(w.name, func(t *testing.T) {
			service := postgrestest.Connect(t, db.ServiceURL)
			must(t, service, `BEGIN`)
			must(t, service, w.sql)
			must(t, service, `ROLLBACK`)
		})
	}
	service := postgrestest.Connect(t, db.ServiceURL)
	must(t, service, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)
	assert.EqualValues(t, 9, value[int64](t, owner, `SELECT on_hand FROM items WHERE resource = 'item/a'`), "the write stays")
}

// An attack is made on a connection of its own. The statements before the last must pass; the last must be refused with
// the state, or, where the state is empty, may pass. Then everything is committed that can be, and nothing must have changed.
type attack struct {
	name  string
	given string // done before the state is noted down: what the attacker may do
	try   []string
	state string
}

const harmless = ""

func attacks() []attack {
	const update = `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`
	presentA := func(strategy, epoch, token, grant string) []string {
		return []string{`BEGIN`, `SELECT present('item/a', ` + strategy + `, ` + epoch + `, ` + token + `, ` + grant + `)`}
	}
	var all []attack
	for _, w := range writes {
		all = append(all, attack{w.name + ", not presented", "", []string{w.sql}, notPresented})
	}
	for _, table := range []string{"items", "reservation_lines", "coupons", "redemptions", "ledger", "fences", "authorities", "refusals"} {
		presented := []string{`BEGIN`, next("item/a"), next("coupon/c")}
		denied := func(name, sql string) {
			all = append(all, attack{name + " " + table, "", append(presented[:3:3], sql), noPermission})
		}
		denied("delete from", `DELETE FROM `+table)
		denied("truncate", `TRUNCATE `+table+` CASCADE`)
		denied("drop", `DROP TABLE `+table+` CASCADE`)
		denied("lock", `LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE`)
		denied("disable the triggers of", `ALTER TABLE `+table+` DISABLE TRIGGER ALL`)
		denied("put a trigger on", `CREATE TRIGGER aaa BEFORE UPDATE ON `+table+` FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()`)
		denied("put a rule on", `CREATE RULE r AS ON UPDATE TO `+table+` DO INSTEAD NOTHING`)
		denied("add a column to", `ALTER TABLE `+table+` ADD COLUMN x int`)
		denied("index", `CREATE INDEX ON `+table+` ((1))`)
		denied("take over", `ALTER TABLE `+table+` OWNER TO fencepost_service`)
		// PostgreSQL only warns that nothing was granted.
		all = append(all, attack{"grant oneself everything on " + table, "", []string{`GRANT ALL ON ` + table + ` TO fencepost_service`}, harmless})
	}
	for _, table := range []string{"items", "reservation_lines", "coupons", "redemptions", "ledger"} {
		all = append(all,
			attack{"drop the guard of " + table, "", []string{`DROP TRIGGER guard_insert ON ` + table}, noPermission},
			attack{"replace the guard of " + table, "", []string{
				`CREATE OR REPLACE TRIGGER guard_insert BEFORE TRUNCATE ON ` + table + ` EXECUTE FUNCTION never()`,
			}, noPermission},
			attack{"change the key of " + table, "", []string{
				`BEGIN`, next("item/a"), next("item/b"), next("coupon/c"), next("coupon/bare"),
				`UPDATE ` + table + ` SET resource = replace(replace(resource, 'item/a', 'item/b'), 'coupon/c', 'coupon/bare')`,
			}, noPermission},
		)
	}
	return append(all, []attack{
		// Other resources.
		{"update every item after presenting for one", "", []string{`BEGIN`, next("item/a"), `UPDATE items SET on_hand = 9 WHERE resource LIKE 'item/_'`}, notPresented},
		{"update another item", "", []string{`BEGIN`, next("item/b"), update}, notPresented},
		{"insert a line of another item", "", []string{`BEGIN`, next("item/b"), writes[6].sql}, notPresented},
		{"insert into the ledger of another item", "", []string{`BEGIN`, next("item/b"), writes[9].sql}, notPresented},
		{"insert an item that has no fence", "", []string{
			`BEGIN`, next("item/a"),
			`INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ('item/ghost', 'Ghost', 1, 0, 0)`,
		}, foreignKey},
		{"insert into the ledger of nothing", "", []string{`INSERT INTO ledger (resource, entry, kind, strategy, epoch, grant_id) VALUES ('ghost', gen_random_uuid(), 'restock', '', 0, gen_random_uuid())`}, notPresented},

		{"insert into the ledger with the stamp of the transaction before", "", []string{`
			INSERT INTO ledger (resource, entry, kind, strategy, epoch, token, grant_id, turn)
			VALUES ('item/a', gen_random_uuid(), 'restock', 'redis', 2, 5, '` + grantOfA + `', 1)`}, notPresented},
		{"insert many lines, the last of another item", "", []string{`BEGIN`, next("item/a"), `
			INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at)
			SELECT CASE n WHEN 100 THEN 'item/b' ELSE 'item/a' END, gen_random_uuid(), 1, 'held', '', 'me', now(), now() FROM generate_series(1, 100) n`}, notPresented},

		// What is fixed when a row is made.
		{"rename an item", "", []string{`BEGIN`, next("item/a"), `UPDATE items SET name = 'B'`}, noPermission},
		{"enlarge a reservation", "", []string{`BEGIN`, next("item/a"), `UPDATE reservation_lines SET quantity = 9`}, noPermission},
		{"move a line to another reservation", "", []string{`BEGIN`, next("item/a"), `UPDATE reservation_lines SET reservation = gen_random_uuid()`}, noPermission},
		{"give a reservation to another caller", "", []string{`BEGIN`, next("item/a"), `UPDATE reservation_lines SET created_by = 'you'`}, noPermission},
		{"raise the limit of a coupon", "", []string{`BEGIN`, next("coupon/c"), `UPDATE coupons SET max_redemptions = 99`}, noPermission},
		{"give a redemption to another customer", "", []string{`BEGIN`, next("coupon/c"), `UPDATE redemptions SET customer_id = 'you'`}, noPermission},
		{"delete and insert again", "", []string{`BEGIN`, next("item/a"), `WITH gone AS (DELETE FROM items WHERE resource = 'item/a' RETURNING *) INSERT INTO items (resource, name, on_hand, reserved, sold) SELECT resource, name, 99, 0, 0 FROM gone`}, noPermission},
		{"edit the ledger", "", []string{`BEGIN`, next("item/a"), `UPDATE ledger SET on_hand_delta = 0`}, noPermission},

		// The fence and the authorities, past their functions.
		{"move a fence", "", []string{`UPDATE fences SET token = 99 WHERE resource = 'item/a'`}, noPermission},
		{"move a fence back", "", []string{`BEGIN`, next("item/a"), `UPDATE fences SET token = 1 WHERE resource = 'item/a'`}, noPermission},
		{"forge a presentation", "", []string{`UPDATE fences SET presented_in = pg_current_xact_id(), presented_at = now()`}, noPermission},
		{"switch fencing off", "", []string{`UPDATE fences SET fencing = 'off'`}, noPermission},
		{"insert a fence", "", []string{`INSERT INTO fences SELECT 'item/ghost', scope, 'off', epoch, token, grant_id, strategy, presented_in, presented_at FROM fences LIMIT 1`}, noPermission},
		{"replace a fence", "", []string{`INSERT INTO fences SELECT * FROM fences ON CONFLICT (resource) DO UPDATE SET fencing = 'off'`}, noPermission},
		{"copy into the fences", "", []string{"COPY fences FROM STDIN CSV\n"}, noPermission},
		{"lock the row of a fence", "", []string{`SELECT FROM fences FOR UPDATE`}, noPermission},
		{"create a fence again, without fencing", "", []string{`SELECT create_fence('item/a', 'off', NULL, NULL, gen_random_uuid())`}, uniqueKey},
		{"create a fence again, with a strategy", "", []string{`SELECT create_fence('item/a', 'off', 'none', '', gen_random_uuid())`}, uniqueKey},
		{"put a strategy in charge", "", []string{`UPDATE authorities SET strategy = 'none'`}, noPermission},
		{"raise an epoch by two", "", []string{`UPDATE authorities SET epoch = epoch + 2`}, noPermission},
		{"lower an epoch", "", []string{`UPDATE authorities SET epoch = 1`}, noPermission},
		{"insert an authority", "", []string{`INSERT INTO authorities VALUES ('item/a', 'none', '', 9)`}, noPermission},
		{"raise an epoch from an older one", "", []string{`SELECT raise_epoch('inventory', 1)`}, harmless},
		{"raise an epoch from a future one", "", []string{`SELECT raise_epoch('inventory', 3)`}, harmless},
		{"raise an epoch from nothing", "", []string{`SELECT raise_epoch('inventory', NULL)`}, harmless},
		{"raise the epoch of nothing", "", []string{`SELECT raise_epoch('item/ghost', 1)`}, harmless},
		{"claim what one is in charge of", "", []string{`SELECT claim_authority('inventory', 'redis', 'server')`}, harmless},
		{"claim what is not one's own to decide", "", []string{`SELECT claim_authority('inventory', 'redis', 'server', 'me')`}, checkFails},
		{"claim without a strategy", "", []string{`SELECT claim_authority('inventory', NULL, 'server')`}, notNull},
		{"claim against an operator's order", `SELECT claim_authority('coupons', 'redis', 'server', 'operator')`, []string{`SELECT claim_authority('coupons', 'zookeeper', 'ensemble')`}, harmless},
		{"take over with nothing but a fingerprint", "", []string{`SELECT claim_authority('inventory', 'zookeeper', 'ensemble', NULL)`}, harmless},
		{"claim a resource that follows its kind", "", []string{`SELECT claim_authority('item/a', 'redis', 'server', 'operator')`}, harmless},
		{"claim a resource that does not exist", "", []string{`SELECT claim_authority('item/ghost', 'redis', 'server', 'operator')`}, harmless},
		{"bring a fence under another scope", "", []string{`UPDATE fences SET scope = 'item/row' WHERE resource = 'item/a'`}, noPermission},
		{"switch a resource that does not exist", "", []string{`SELECT switch_resource('item/ghost', 'redis', 'server')`}, noResource},
		{"switch no resource", "", []string{`SELECT switch_resource(NULL, 'redis', 'server')`}, noResource},
		{"switch a scope as if it were a resource", "", []string{`SELECT switch_resource('inventory', 'redis', 'server')`}, noResource},
		{"switch a fenced resource to none", "", []string{`SELECT switch_resource('item/a', 'none', '')`}, noToken},
		{"switch a fenced resource of its own to local", "", []string{`SELECT switch_resource('item/row', 'local', '')`}, noToken},
		{"switch without a fingerprint", "", []string{`SELECT switch_resource('item/a', 'redis', NULL)`}, notNull},
		{"switch back what follows its kind", "", []string{`SELECT switch_resource('item/a', NULL, NULL)`}, harmless},
		{"switch to what is in charge", `SELECT switch_resource('item/row', 'postgres', '')`, []string{`SELECT switch_resource('item/row', 'postgres', '')`}, harmless},
		{"switch, and write as if that were a presentation", "", []string{`BEGIN`, `SELECT switch_resource('item/a', 'postgres', '')`, update}, notPresented},
		{"edit a refusal", "", []string{`UPDATE refusals SET presented_token = 99`}, noPermission},

		// Grants that are not in order.
		{"a negative token", "", presentA("'redis'", "2", "-1", "gen_random_uuid()"), noToken},
		{"the smallest token", "", presentA("'redis'", "2", "-9223372036854775808", "gen_random_uuid()"), noToken},
		{"token zero", "", presentA("'redis'", "2", "0", "gen_random_uuid()"), noToken},
		{"no token", "", presentA("'redis'", "2", "NULL", "gen_random_uuid()"), noToken},
		{"no grant", "", presentA("'redis'", "2", "6", "NULL"), noToken},
		{"no epoch", "", presentA("'redis'", "NULL", "6", "gen_random_uuid()"), notInCharge},
		{"no strategy", "", presentA("NULL", "2", "6", "gen_random_uuid()"), notInCharge},
		{"nothing at all", "", presentA("NULL", "NULL", "NULL", "NULL"), notInCharge},
		{"an equal token of another grant", "", presentA("'redis'", "2", "5", "'"+otherGrant+"'"), staleToken},
		{"a lower token", "", presentA("'redis'", "2", "4", "gen_random_uuid()"), staleToken},
		{"a lower token of the same grant", "", presentA("'redis'", "2", "4", "'"+grantOfA+"'"), staleToken},
		{"an older epoch", "", presentA("'redis'", "1", "9223372036854775807", "gen_random_uuid()"), notInCharge},
		{"an epoch to come", "", presentA("'redis'", "3", "6", "gen_random_uuid()"), notInCharge},
		{"the epoch of another scope", "", []string{`SELECT present('item/row', 'postgres', 2, 1, gen_random_uuid())`}, notInCharge},
		{"another strategy", "", presentA("'zookeeper'", "2", "6", "gen_random_uuid()"), notInCharge},
		{"none, where redis is in charge", "", presentA("'none'", "2", "6", "gen_random_uuid()"), notInCharge},
		{"none with an invented token", "", []string{`SELECT present('item/none', 'none', 1, 1, gen_random_uuid())`}, noToken},
		{"none without a token", "", []string{`SELECT present('item/none', 'none', 1, NULL, gen_random_uuid())`}, noToken},
		{"local with an invented token", "", []string{`SELECT present('item/local', 'local', 1, 1, gen_random_uuid())`}, noToken},
		{"a resource that does not exist", "", []string{`SELECT present('item/ghost', 'redis', 2, 1, gen_random_uuid())`}, noResource},
		{"no resource", "", []string{`SELECT present(NULL, 'redis', 2, 1, gen_random_uuid())`}, noResource},
		{"a row lock where redis is in charge", "", []string{`SELECT lock_row('item/a', 2, gen_random_uuid())`}, notInCharge},
		{"a row lock of an epoch to come", "", []string{`SELECT lock_row('item/row', 2, gen_random_uuid())`}, notInCharge},
		{"a row lock without an epoch", "", []string{`SELECT lock_row('item/row', NULL, gen_random_uuid())`}, notInCharge},
		{"a row lock without a grant", "", []string{`SELECT lock_row('item/row', 1, NULL)`}, noToken},
		{"a refusal that is swallowed", "", []string{
			`BEGIN`, `DO $$ BEGIN PERFORM present('item/a', 'redis', 2, 4, gen_random_uuid()); EXCEPTION WHEN OTHERS THEN NULL; END $$`, update,
		}, notPresented},
		{"a refused write that is swallowed", "", []string{`DO $$ BEGIN ` + update + `; EXCEPTION WHEN OTHERS THEN NULL; END $$`}, harmless},

		// Presentations that do not count.
		{"present in one transaction, write in the next", next("item/a"), []string{`BEGIN`, update}, notPresented},
		{"present in a savepoint that is rolled back", "", []string{`BEGIN`, `SAVEPOINT s`, next("item/a"), `ROLLBACK TO s`, update}, notPresented},
		{"present in a block that fails", "", []string{
			`BEGIN`, `DO $$ BEGIN PERFORM present('item/a', 'redis', 2, 6, gen_random_uuid()); RAISE 'no'; EXCEPTION WHEN OTHERS THEN NULL; END $$`, update,
		}, notPresented},
		{"present and go back", "", []string{`BEGIN`, next("item/a"), `ROLLBACK AND CHAIN`, update}, notPresented},

		// The session.
		{"replica mode", "", []string{`SET session_replication_role = replica`}, noPermission},
		{"replica mode, for one transaction", "", []string{`BEGIN`, `SELECT set_config('session_replication_role', 'replica', true)`}, noPermission},
		{"become the owner", "", []string{`SET ROLE fencepost_owner`}, noPermission},
		{"log in as the owner", "", []string{`SET SESSION AUTHORIZATION fencepost_owner`}, noPermission},
		{"make oneself a superuser", "", []string{`ALTER ROLE fencepost_service SUPERUSER`}, noPermission},
		{"join the owner", "", []string{`GRANT fencepost_owner TO fencepost_service`}, noPermission},
		{"join those who may write everything", "", []string{`GRANT pg_write_all_data TO fencepost_service`}, noPermission},

		// The names that the functions use.
		{"call the inner function", "", []string{`SELECT locked_fence('item/a', 'redis', 2, 6, true, true)`}, noPermission},
		{"call refuse", "", []string{`SELECT refuse('FP001', '', '', '', 0, 0, '', 0, 0, NULL)`}, noPermission},
		{"call the guard", "", []string{`SELECT guard_rows()`}, "0A000"}, // trigger functions can only be called as triggers
		{"replace present", "", []string{`CREATE OR REPLACE FUNCTION present(text, text, bigint, bigint, uuid) RETURNS text LANGUAGE sql AS $$ SELECT 'off' $$`}, noPermission},
		{"replace the guard", "", []string{`CREATE OR REPLACE FUNCTION guard_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`}, noPermission},
		{"overload present", "", []string{`CREATE FUNCTION present(text, text, int, int, uuid) RETURNS text LANGUAGE sql AS $$ SELECT 'off' $$`}, noPermission},
		{"change present", "", []string{`ALTER FUNCTION present SET search_path = pg_temp`}, noPermission},
		{"change lock_row", "", []string{`ALTER FUNCTION lock_row SET search_path = pg_temp`}, noPermission},
		{"drop present", "", []string{`DROP FUNCTION present`}, noPermission},
		{"create a table", "", []string{`CREATE TABLE public.x ()`}, noPermission},
		{"create a schema", "", []string{`CREATE SCHEMA mine`}, noPermission},
		{"create an operator", "", []string{`CREATE OPERATOR public.= (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)`}, noPermission},
		{"create a cast", "", []string{`CREATE CAST (text AS xid8) WITH INOUT AS IMPLICIT`}, "42501"},
		{"a temporary table called fences", "", []string{
			`CREATE TEMP TABLE fences AS SELECT * FROM public.fences`, `SET search_path = pg_temp, public`, `BEGIN`,
			`UPDATE fences SET fencing = 'off', presented_in = pg_current_xact_id(), presented_at = now()`, update,
		}, notPresented},
		{"a temporary table called authorities", "", []string{
			`CREATE TEMP TABLE authorities AS SELECT scope, 'none' AS strategy, fingerprint, epoch, since FROM public.authorities`,
			`SET search_path = pg_temp, public`, `SELECT present('item/a', 'none', 2, 6, gen_random_uuid())`,
		}, notInCharge},
		{"a temporary table called written", "", []string{`CREATE TEMP TABLE written AS SELECT * FROM public.items LIMIT 0`, `SET search_path = pg_temp, public`, update}, notPresented},
		{"a temporary table called items", "", []string{
			`CREATE TEMP TABLE items AS SELECT * FROM public.items`, `SET search_path = pg_temp, public`, update,
		}, harmless},
		{"temporary functions and operators", "", []string{
			`CREATE FUNCTION pg_temp.yes(xid8, xid8) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$`,
			`CREATE OPERATOR pg_temp.<> (FUNCTION = pg_temp.yes, LEFTARG = xid8, RIGHTARG = xid8)`,
			`CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT presented_at FROM public.fences WHERE resource = 'item/a' $$`,
			`SET search_path = pg_temp, pg_catalog, public`, update,
		}, notPresented},
	}...)
}

// TestAttacks tries every way round the fence as the service's role.
func TestAttacks(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	owner := postgrestest.Connect(t, db.OwnerURL)
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			attacker := postgrestest.Connect(t, db.ServiceURL)
			if a.given != "" {
				must(t, attacker, a.given)
			}
			before := snapshot(t, owner)
			last := len(a.try) - 1
			for _, sql := range a.try[:last] {
				must(t, attacker, sql)
			}
			err := run(t.Context(), attacker, a.try[last])
			assert.Equal(t, a.state, state(err), "%s: %v", a.try[last], err)
			_ = run(t.Context(), attacker, `COMMIT`) // with luck, something is left to commit
			unchanged(t, owner, before)
		})
	}
}

// A schema of the service's own is a slip of the administrator's, and PostgreSQL finds the operators in it when it comes
// first in the search path. The guard must not use them.
func TestOwnSchemaDoesNotFoolTheGuard(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	owner := postgrestest.Connect(t, db.OwnerURL)
	must(t, owner, `CREATE SCHEMA mine; GRANT ALL ON SCHEMA mine TO fencepost_service`)
	before := snapshot(t, owner)

	service := postgrestest.Connect(t, db.ServiceURL)
	must(t, service, `
		CREATE FUNCTION mine.yes(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
		CREATE FUNCTION mine.yes(xid8, xid8) RETURNS boolean LANGUAGE sql AS 'SELECT true';
		CREATE FUNCTION mine.yes(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT true';
		CREATE FUNCTION mine.no(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
		CREATE FUNCTION mine.no(xid8, xid8) RETURNS boolean LANGUAGE sql AS 'SELECT false';
		CREATE FUNCTION mine.no(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT false';
		CREATE OPERATOR mine.= (FUNCTION = mine.yes, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR mine.= (FUNCTION = mine.yes, LEFTARG = xid8, RIGHTARG = xid8);
		CREATE OPERATOR mine.= (FUNCTION = mine.yes, LEFTARG = timestamptz, RIGHTARG = timestamptz);
		CREATE OPERATOR mine.<> (FUNCTION = mine.no, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR mine.<> (FUNCTION = mine.no, LEFTARG = xid8, RIGHTARG = xid8);
		CREATE OPERATOR mine.<> (FUNCTION = mine.no, LEFTARG = timestamptz, RIGHTARG = timestamptz);
		SET search_path = mine, pg_catalog, public`)
	for _, w := range writes {
		err := run(t.Context(), service, w.sql)
		assert.Equal(t, notPresented, state(err), "%s: %v", w.name, err)
	}
	unchanged(t, owner, before)
}

// TestOwner shows how far the fence holds against a mistake of the owner's, who could also drop it.
func TestOwner(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	owner := postgrestest.Connect(t, db.OwnerURL)
	before := snapshot(t, owner)
	refuse := func(want, sql string) {
		err := run(t.Context(), owner, sql)
		assert.Equal(t, want, state(err), "%s: %v", sql, err)
	}
	for _, w := range writes {
		refuse(notPresented, w.sql)
	}
	for _, table := range []string{"items", "reservation_lines", "coupons", "redemptions", "ledger"} {
		refuse(neverAllowed, `DELETE FROM `+table)
		refuse(neverAllowed, `TRUNCATE `+table+` CASCADE`)
	}
	refuse(neverAllowed, `TRUNCATE fences CASCADE`)
	refuse(neverAllowed, `TRUNCATE refusals`)
	refuse(neverAllowed, `TRUNCATE authorities CASCADE`) // which would reach the fences
	refuse(neverAllowed, `UPDATE items SET resource = 'item/bare' WHERE resource = 'item/a'`)
	refuse(neverAllowed, `UPDATE items SET resource = NULL WHERE resource = 'item/a'`)
	refuse(neverAllowed, `UPDATE ledger SET on_hand_delta = 0`)
	refuse(neverAllowed, `UPDATE fences SET token = token - 1 WHERE resource = 'item/a'`)
	refuse(neverAllowed, `UPDATE fences SET epoch = epoch - 1, token = 99 WHERE resource = 'item/a'`)
	refuse(neverAllowed, `UPDATE fences SET fencing = 'off' WHERE resource = 'item/a'`)
	refuse(neverAllowed, `UPDATE fences SET resource = 'item/z' WHERE resource = 'item/bare'`)
	refuse(foreignKey, `DELETE FROM fences WHERE resource = 'item/a'`) // a fence outlives its resource
	refuse(foreignKey, `DELETE FROM authorities WHERE scope = 'inventory'`)
	// Only a superuser may switch to replica mode, so the mode itself cannot be tried here. The catalogue tells which
	// triggers it would silence.
	refuse(noPermission, `SET session_replication_role = replica`)
	unchanged(t, owner, before)
}

// Replica mode silences ordinary triggers. Those of the fence are ALWAYS triggers, on every guarded table.
func TestGuardsAreAlwaysOn(t *testing.T) {
	t.Parallel()
	owner := postgrestest.Connect(t, postgrestest.New(t).OwnerURL)
	rows, _ := owner.Query(t.Context(), `
		SELECT concat_ws(' ', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger WHERE NOT tgisinternal`)
	triggers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	want := []string{"fences guard_fence A", "fences guard_never A", "refusals guard_never A", "ledger guard_insert A", "ledger guard_never A"}
	for _, table := range []string{"items", "reservation_lines", "coupons", "redemptions"} {
		want = append(want, table+" guard_insert A", table+" guard_update A", table+" guard_never A")
	}
	assert.ElementsMatch(t, want, triggers)
}

// A ledger entry carries the grant that was presented, in the turn in which it was, and no other.
func TestLedgerIsStampedWithTheGrant(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	service := postgrestest.Connect(t, db.ServiceURL)
	for _, c := range []struct{ name, strategy, epoch, token, grant, turn, want string }{
		{"another strategy", "zookeeper", "2", "6", otherGrant, "2", notPresented},
		{"another epoch", "redis", "1", "6", otherGrant, "2", notPresented},
		{"another token", "redis", "2", "5", otherGrant, "2", notPresented},
		{"another grant", "redis", "2", "6", grantOfA, "2", notPresented},
		{"the turn before", "redis", "2", "6", otherGrant, "1", notPresented},
		{"no turn", "redis", "2", "6", otherGrant, "NULL", notPresented},
		{"no token", "redis", "2", "NULL", otherGrant, "2", notPresented},
		{"what was presented", "redis", "2", "6", otherGrant, "2", harmless},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, service, `BEGIN`)
			assert.EqualValues(t, 2, value[int64](t, service, `SELECT present('item/a', 'redis', 2, 6, $1)`, otherGrant))
			err := run(t.Context(), service, fmt.Sprintf(`
				INSERT INTO ledger (resource, entry, kind, on_hand_delta, strategy, epoch, token, grant_id, turn)
				VALUES ('item/a', gen_random_uuid(), 'restock', 1, '%s', %s, %s, '%s', %s)`, c.strategy, c.epoch, c.token, c.grant, c.turn))
			assert.Equal(t, c.want, state(err), "%v", err)
			must(t, service, `ROLLBACK`)
		})
	}
}

// The transaction's number alone is no proof that it presented: after a restore into a new cluster the numbers start again.
// The owner plays the restored row here.
func TestPresentationIsTiedToNumberAndStart(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	owner, service := postgrestest.Connect(t, db.OwnerURL), postgrestest.Connect(t, db.ServiceURL)
	for _, c := range []struct{ name, in, at, want string }{
		{"the number, another start", "$1", "$2 - interval '1 microsecond'", notPresented},
		{"the start, another number", "($1::text::bigint + 1)::text::xid8", "$2", notPresented},
		{"both", "$1", "$2", harmless}, // so the two above fail for the reason they are meant to
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, service, `BEGIN`)
			var xid, start string
			require.NoError(t, service.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text, now()::text`).Scan(&xid, &start))
			in, at := strings.ReplaceAll(c.in, "$1", "'"+xid+"'"), strings.ReplaceAll(c.at, "$2", "'"+start+"'::timestamptz")
			must(t, owner, `UPDATE fences SET presented_in = `+in+`, presented_at = `+at+` WHERE resource = 'item/a'`)
			err := run(t.Context(), service, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)
			assert.Equal(t, c.want, state(err), "%v", err)
			must(t, service, `ROLLBACK`)
		})
	}
}

// A counter that was driven to its end, by a fault or by malice, is healed by the next epoch.
func TestLargestTokenIsHealedByTheNextEpoch(t *testing.T) {
	t.Parallel()
	const largest = "9223372036854775807"
	db := fenced(t)
	service := postgrestest.Connect(t, db.ServiceURL)
	must(t, service, `SELECT present('item/row', 'postgres', 1, `+largest+`, gen_random_uuid())`)
	assert.Equal(t, staleToken, state(run(t.Context(), service, `SELECT lock_row('item/row', 1, gen_random_uuid())`)))
	assert.Equal(t, staleToken, state(run(t.Context(), service, `SELECT present('item/row', 'postgres', 1, `+largest+`, gen_random_uuid())`)))

	assert.EqualValues(t, 2, value[int64](t, service, `SELECT epoch FROM raise_epoch('item/row', 1)`))
	must(t, service, `BEGIN`)
	assert.EqualValues(t, 1, value[int64](t, service, `SELECT token FROM lock_row('item/row', 2, gen_random_uuid())`))
	must(t, service, `UPDATE items SET on_hand = 9 WHERE resource = 'item/row'`)
	must(t, service, `COMMIT`)
	assert.EqualValues(t, 9, value[int64](t, service, `SELECT on_hand FROM items WHERE resource = 'item/row'`))

	// The same for a lease, whose tokens come from elsewhere.
	must(t, service, `SELECT present('item/a', 'redis', 2, `+largest+`, gen_random_uuid())`)
	assert.Equal(t, staleToken, state(run(t.Context(), service, `SELECT present('item/a', 'redis', 2, 7, gen_random_uuid())`)))
	must(t, service, `SELECT raise_epoch('inventory', 2)`)
	must(t, service, `BEGIN`)
	must(t, service, `SELECT present('item/a', 'redis', 3, 7, gen_random_uuid())`)
	must(t, service, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)
	must(t, service, `COMMIT`)
}

// The rightful holder may come again, in a later transaction or in the same one; a token is drawn once per grant.
func TestSameGrantPresentsAgain(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	service := postgrestest.Connect(t, db.ServiceURL)
	must(t, service, `BEGIN`)
	must(t, service, `SELECT present('item/a', 'redis', 2, 5, '`+grantOfA+`')`)
	must(t, service, `SELECT present('item/a', 'redis', 2, 5, '`+grantOfA+`')`)
	must(t, service, `UPDATE items SET on_hand = 9 WHERE resource = 'item/a'`)
	must(t, service, `COMMIT`)

	for range 2 {
		assert.EqualValues(t, 1, value[int64](t, service, `SELECT token FROM lock_row('item/row', 1, $1)`, grantOfA))
	}
	assert.EqualValues(t, 2, value[int64](t, service, `SELECT token FROM lock_row('item/row', 1, $1)`, otherGrant))
}

// The detail of a refusal is for programs: what was presented and what stands, with numbers that no reader rounds.
func TestRefusalTellsBothTokens(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	service := postgrestest.Connect(t, db.ServiceURL)
	must(t, service, `SELECT present('item/a', 'redis', 2, 9007199254740993, '`+grantOfA+`')`)
	err := run(t.Context(), service, `SELECT present('item/a', 'redis', 2, 6, gen_random_uuid())`)
	assert.Equal(t, map[string]any{
		"resource":           "item/a",
		"presented_strategy": "redis", "presented_epoch": "2", "presented_token": "6",
		"current_strategy": "redis", "current_epoch": "2", "current_token": "9007199254740993", "current_grant": grantOfA,
	}, detail(t, err))

	err = run(t.Context(), service, `SELECT present('item/a', 'zookeeper', 1, 7, gen_random_uuid())`)
	assert.Equal(t, map[string]any{
		"resource":           "item/a",
		"presented_strategy": "zookeeper", "presented_epoch": "1", "presented_token": "7",
		"current_strategy": "redis", "current_epoch": "2", "current_token": "9007199254740993", "current_grant": grantOfA,
	}, detail(t, err))
}

func detail(t *testing.T, err error) (d map[string]any) {
	t.Helper()
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.NoError(t, json.Unmarshal([]byte(pg.Detail), &d), fmt.Sprintf("%s: %s", pg.Message, pg.Detail))
	return d
}

// authority is who is in charge of a resource, as an instance reads it.
func authority(t *testing.T, conn *pgx.Conn, resource string) (scope string, epoch int64) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(),
		`SELECT scope, a.epoch FROM fences f JOIN authorities a USING (scope) WHERE resource = $1`, resource).Scan(&scope, &epoch))
	return scope, epoch
}

// A resource that leaves a scope takes no grant of that scope along, and its epoch rises with every step, whichever of the
// two scopes has had more reigns.
func TestSwitchResource(t *testing.T) {
	t.Parallel()
	db := fenced(t)
	service := postgrestest.Connect(t, db.ServiceURL)
	last := int64(2)
	for _, step := range []struct{ given, to, scope string }{
		{"", `'zookeeper', 'ensemble'`, "item/a"},
		{"", `'redis', 'server'`, "item/a"}, // within the scope of its own
		{"", `NULL, NULL`, "inventory"},
		{"", `'redis', 'server'`, "item/a"}, // it has had an authority of its own before
		{`SELECT raise_epoch('inventory', 5), raise_epoch('inventory', 6), raise_epoch('inventory', 7), raise_epoch('inventory', 8)`, `NULL, NULL`, "inventory"},
		{`SELECT raise_epoch('item/a', 6), raise_epoch('item/a', 7), raise_epoch('item/a', 8), raise_epoch('item/a', 9)`, `'postgres', ''`, "item/a"},
	} {
		if step.given != "" {
			must(t, service, step.given)
		}
		before, old := authority(t, service, "item/a")
		must(t, service, `SELECT switch_resource('item/a', `+step.to+`)`)
		scope, epoch := authority(t, service, "item/a")
		assert.Equal(t, step.scope, scope)
		assert.Greater(t, epoch, last)
		assert.Greater(t, epoch, old)
		last = epoch
		must(t, service, fmt.Sprintf(`SELECT present('item/a', strategy, epoch, 1, gen_random_uuid()) FROM authorities WHERE scope = '%s'`, scope))
		if before != scope {
			err := run(t.Context(), service, fmt.Sprintf(`SELECT present('item/a', strategy, epoch, 99, gen_random_uuid()) FROM authorities WHERE scope = '%s'`, before))
			assert.Equal(t, notInCharge, state(err), "a grant of the scope that it has left: %v", err)
		}
	}
	assert.Equal(t, "inventory", value[string](t, service, `SELECT scope FROM fences WHERE resource = 'item/b'`), "the others stay")
}

// Not even the owner can bring a fence under an authority that is not its own or its kind's, or whose epoch is not larger.
func TestScopeOfAFence(t *testing.T) {
	t.Parallel()
	owner := postgrestest.Connect(t, fenced(t).OwnerURL)
	must(t, owner, `
		INSERT INTO authorities (scope, strategy, fingerprint, epoch, decided_by)
		VALUES ('item/a', 'redis', 'server', 2, 'operator'), ('item/b', 'redis', 'server', 3, 'operator')`)
	for _, c := range []struct{ name, set, resource, want string }{
		{"another resource's authority", `scope = 'item/b'`, "item/a", neverAllowed},
		{"another kind's authority", `scope = 'coupons'`, "item/a", neverAllowed},
		{"an epoch that is not larger", `scope = 'item/a'`, "item/a", neverAllowed},
		{"together with the token", `scope = 'item/b', token = 1`, "item/b", neverAllowed},
		{"together with a presentation", `scope = 'item/b', presented_in = pg_current_xact_id()`, "item/b", neverAllowed},
		{"its own authority, with a larger epoch", `scope = 'item/b'`, "item/b", harmless},
		{"back, although the epoch is smaller", `scope = 'inventory'`, "item/b", neverAllowed},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := run(t.Context(), owner, `UPDATE fences SET `+c.set+` WHERE resource = '`+c.resource+`'`)
			assert.Equal(t, c.want, state(err), "%v", err)
		})
	}
}
