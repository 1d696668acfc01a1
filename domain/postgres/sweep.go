package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"fencepost/domain"
)

const (
	sweepLimit = 256 // holds in one sweep
	slotLimit  = 4   // of the 16 slots, so that others find work as well
)

// A hold belongs to the slot of its first item. The oldest are chosen first, and the slots after their oldest hold, so that
// a busy slot does not keep the others waiting.
const selectDue = `
WITH due AS MATERIALIZED (
	SELECT l.reservation, l.expires_at, hashtext(l.resource) & 15 AS slot
	  FROM reservation_lines l
	 WHERE l.state = 'held' AND l.expires_at <= $1 AND l.resource <> ALL($2::text[]) AND 'rsv_' || l.reservation <> ALL($2)
	   AND NOT EXISTS (SELECT FROM reservation_lines o
	                    WHERE o.reservation = l.reservation AND o.resource < l.resource)
	 ORDER BY l.expires_at LIMIT 16 * $3::bigint
), mine AS MATERIALIZED (
	SELECT slot FROM sweep_slots s JOIN (SELECT slot, min(expires_at) AS oldest FROM due GROUP BY slot) d USING (slot)
	 ORDER BY oldest LIMIT $4 FOR UPDATE OF s SKIP LOCKED
)
SELECT reservation FROM due JOIN mine USING (slot) ORDER BY expires_at LIMIT $3::bigint`

// Sweep calls expire with holds that are due at now, unless there are none, and keeps the sweeps of others from the same items
// until it returns. expire must be done within idleTimeout, or others get them as well; that is waste and no harm. except
// names what to leave alone: keys of items, and ids of reservations.
//
// found is how many holds there were, and next the time at which the next one is due; zero if there is none.
//
// What is locked goes free when this process ends, however it ends. The connection is the sweeps' own, because the sections
// that expire runs need connections too, and one that waits for another while it holds one could wait for ever.
func (s *Store) Sweep(ctx context.Context, now time.Time, except []string, expire func([]domain.Reservation)) (found int, next time.Time, err error) {
	// One message: a process that is stopped between two would leave a transaction that nothing ends.
	begin := fmt.Sprintf(`BEGIN; SET LOCAL statement_timeout = '%s'; SET LOCAL idle_in_transaction_session_timeout = '%s'`,
		milliseconds(statementTimeout), milliseconds(idleTimeout))
	tx, err := s.sweeps.BeginTx(ctx, pgx.TxOptions{BeginQuery: begin})
	if err != nil {
		return 0, next, fmt.Errorf("beginning a sweep: %w", domainError(ctx, err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		_ = tx.Rollback(ctx) // it has written nothing; what fails here has closed the connection
	}()
	due, next, err := s.due(ctx, tx, now, except)
	if err != nil {
		return 0, next, fmt.Errorf("looking for holds that are due: %w", domainError(ctx, err))
	}
	if len(due) > 0 {
		expire(due)
	}
	return len(due), next, nil
}

func (s *Store) due(ctx context.Context, tx pgx.Tx, now time.Time, except []string) (due []domain.Reservation, next time.Time, err error) {
	if except == nil {
		except = []string{} // nil would be NULL, and nothing is unlike that
	}
	var ids []uuid.UUID
	batch := &pgx.Batch{}
	batch.Queue(`SELECT expires_at FROM reservation_lines WHERE state = 'held' AND expires_at > $1 ORDER BY expires_at LIMIT 1`, now).
		QueryRow(func(row pgx.Row) error {
			if err := row.Scan(&next); !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			return nil
		})
	batch.Queue(selectDue, now, except, sweepLimit, slotLimit).Query(func(rows pgx.Rows) (err error) {
		ids, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		return err
	})
	if err = tx.SendBatch(ctx, batch).Close(); err != nil || len(ids) == 0 {
		return nil, next, err
	}
	rows, _ := tx.Query(ctx, selectReservations, ids) // reservations returns the query's error
	due, err = reservations(rows)
	return due, next, err
}
