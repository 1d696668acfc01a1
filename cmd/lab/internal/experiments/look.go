package experiments

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// await receives what a channel brings.
func await[T any](ctx context.Context, what string, from <-chan T) (T, error) {
	select {
	case v := <-from:
		return v, nil
	case <-ctx.Done():
		return *new(T), context.Cause(ctx)
	case <-time.After(patience):
		return *new(T), fmt.Errorf("within %s not seen: %s", patience, what)
	}
}

// until waits for something to be so.
func until(ctx context.Context, what string, so func() (bool, error)) error {
	deadline := time.After(patience)
	for {
		if seen, err := so(); seen || err != nil {
			return err
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-deadline:
			return fmt.Errorf("within %s not seen: %s", patience, what)
		}
	}
}

// ask runs a query for one row on the run's database.
func (r *Run) ask(ctx context.Context, sql string, args []any, into ...any) error {
	return r.database.Use(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, sql, args...).Scan(into...) })
}

// sold is how many units of the item the database has given out.
func (r *Run) sold(ctx context.Context, sku string) (n int64, err error) {
	err = r.ask(ctx, `
		SELECT COALESCE(sum(quantity), 0)::bigint FROM reservation_lines
		WHERE resource = 'item/' || $1 AND state IN ('held', 'confirmed')`, []any{sku}, &n)
	return n, err
}

// refusals are those of an item that the service has recorded, the oldest first.
func (r *Run) refusals(ctx context.Context, sku string) (all []recorded, err error) {
	err = r.database.Use(ctx, func(conn *pgx.Conn) error {
		rows, _ := conn.Query(ctx, `
			SELECT presented_epoch || '.' || presented_token, current_epoch || '.' || current_token, refused_at
			FROM refusals WHERE resource = 'item/' || $1 ORDER BY refused_at`, sku)
		all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[recorded])
		return err
	})
	return all, err
}

// recorded is a refusal with epoch and token of what was presented, and of the fence.
type recorded struct {
	Presented, Current string
	At                 time.Time
}
