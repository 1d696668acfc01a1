package bench

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"fencepost/cmd/lab/internal/databases"
)

// database is one database of the laboratory's PostgreSQL.
type database struct{ databases.Database }

// sums are what the database says of some items. They are equal, unless somebody has worked on a stale read or has lost
// what was written.
type sums struct {
	taken  int64 // by the counters
	rows   int64 // reserved units
	ledger int64 // by the ledger; a peer has none, so its rows count twice
}

// oursSQL counts by the service's tables. What is held is reserved; what is sold has left the stock.
const oursSQL = `
SELECT (SELECT coalesce(sum($2 - on_hand + reserved), 0)::bigint FROM items WHERE resource = ANY ($1)),
       (SELECT coalesce(sum(quantity), 0)::bigint FROM reservation_lines WHERE resource = ANY ($1) AND state IN ('held', 'confirmed')),
       (SELECT coalesce(sum(reserved_delta - on_hand_delta), 0)::bigint FROM ledger WHERE resource = ANY ($1) AND kind <> 'create')`

const peersSQL = `
SELECT (SELECT coalesce(sum($2 - stock), 0)::bigint FROM peers.items WHERE sku = ANY ($1)),
       (SELECT coalesce(sum(quantity), 0)::bigint FROM peers.reservations WHERE sku = ANY ($1)),
       (SELECT coalesce(sum(quantity), 0)::bigint FROM peers.reservations WHERE sku = ANY ($1))`

// check compares the database's sums with what the clients were told: created of them have an answer, and unanswered have
// hung up and do not know.
func (d database) check(ctx context.Context, ours bool, skus []string, created, unanswered int) error {
	query, keys := peersSQL, skus
	if ours {
		query, keys = oursSQL, resources(skus)
	}
	var s sums
	err := d.Use(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, query, keys, int64(stock)).Scan(&s.taken, &s.rows, &s.ledger)
	})
	if err != nil {
		return fmt.Errorf("count what was reserved: %w", err)
	}
	if s.taken != s.rows || s.ledger != s.rows || s.rows < int64(created) || s.rows > int64(created+unanswered) {
		return wrongError(fmt.Sprintf("the answers are wrong: clients were told of %d reservations (%d more hung up), and the database "+
			"has %d units reserved, %d taken from stock and %d in the ledger", created, unanswered, s.rows, s.taken, s.ledger))
	}
	return nil
}

func resources(skus []string) []string {
	keys := make([]string, len(skus))
	for i, sku := range skus {
		keys[i] = "item/" + sku
	}
	return keys
}

// addPeerItems puts items on sale for the peers.
func (d database) addPeerItems(ctx context.Context, skus []string) error {
	return d.Exec(ctx, `INSERT INTO peers.items SELECT unnest($1::text[]), $2`, skus, int64(stock))
}

const (
	storedItems = 1000 // that the stored reservations are of
	storedChunk = 250_000
)

func storedSKUs() []string {
	skus := make([]string, storedItems)
	for i := range skus {
		skus[i] = fmt.Sprintf("stored-%d", i)
	}
	return skus
}

// load stores n confirmed reservations of items that exist, round and round, as years of selling would have left them. It
// does not go through the guards, which would take hours; the audit finds nothing wrong with them all the same. Their ids
// grow with time as those of the service do, and are older.
func (d database) load(ctx context.Context, n int, progress func(loaded int)) error {
	const id = `('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid`
	const numbers = ` FROM generate_series($1::bigint, $2) n`
	inserts := []string{
		`INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at, settled_at)
		 SELECT 'item/stored-' || n % $3, ` + id + `, 1, 'confirmed', 'stored', 'bench', now(), now(), now()` + numbers,
		`INSERT INTO ledger (resource, entry, kind, reference, on_hand_delta, sold_delta, strategy, epoch, grant_id)
		 SELECT 'item/stored-' || n % $3, ` + id + `, 'confirm', ` + id + `, -1, 1, 'postgres', 1, ` + id + numbers,
		`INSERT INTO peers.reservations (id, sku, quantity)
		 SELECT ` + id + `, 'stored-' || n % $3, 1` + numbers,
	}
	err := d.Use(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := guards(ctx, tx, "DISABLE"); err != nil {
				return err
			}
			for first := 0; first < n; first += storedChunk {
				last := min(first+storedChunk, n) - 1
				for _, insert := range inserts {
					if _, err := tx.Exec(ctx, insert, first, last, storedItems); err != nil {
						return err
					}
				}
				progress(last + 1)
			}
			_, err := tx.Exec(ctx, `UPDATE items SET on_hand = on_hand - $1, sold = $1 WHERE resource = ANY ($2)`,
				n/storedItems, resources(storedSKUs()))
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `UPDATE peers.items SET stock = stock - $1 WHERE sku = ANY ($2)`, n/storedItems, storedSKUs())
			if err != nil {
				return err
			}
			return guards(ctx, tx, "ENABLE ALWAYS")
		})
	})
	if err != nil {
		return fmt.Errorf("store %d reservations: %w", n, err)
	}
	// Or the server would do it by itself, during the measurements.
	return d.Exec(ctx, `VACUUM (ANALYZE) items, reservation_lines, ledger, peers.items, peers.reservations`)
}

func guards(ctx context.Context, tx pgx.Tx, action string) error {
	for table, trigger := range map[string]string{"items": "guard_update", "reservation_lines": "guard_insert", "ledger": "guard_insert"} {
		if _, err := tx.Exec(ctx, `ALTER TABLE `+table+` `+action+` TRIGGER `+trigger); err != nil {
			return err
		}
	}
	return nil
}
