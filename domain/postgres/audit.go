package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"fencepost/domain"
)

// Which resources are audited. All of them includes those that only have rows left in other tables.
const (
	theseKeys = `SELECT unnest($1::text[]) AS resource`
	allKeys   = `SELECT resource FROM fences UNION SELECT resource FROM ledger
	           UNION SELECT resource FROM reservation_lines UNION SELECT resource FROM redemptions`
)

// auditSQL counts what was given out from the rows of those who got it. The counters of items and coupons, which is what a
// broken lock corrupts, are only compared: drift is the largest disagreement. It is one statement, so that all of it is
// seen at one moment, and goes from resource to resource, so that neither side keeps more than one of them in memory.
//
// The entries of a reservation or redemption must tell its whole story: which they are is written out, and compared.
//
// Writes have an order only where they were fenced. There turn puts them in order, and by that order (epoch, token) never
// goes back, and is never one grant's here and another's there.
func auditSQL(keys string) string {
	return `
SELECT k.resource, COALESCE(l.added, 0) + COALESCE(c.max_redemptions, 0), r.sold + u.used, r.held,
       greatest(r.sold + r.held - l.added, u.used - COALESCE(c.max_redemptions, 0), 0),
       greatest(abs(i.reserved - r.held), abs(i.sold - r.sold), abs(i.on_hand + i.sold - l.added),
                abs(i.reserved - l.reserved), abs(i.sold - l.sold), abs(i.on_hand - l.on_hand),
                abs(c.redeemed - u.used), abs(c.redeemed - l.redeemed), 0),
       lines.disagree + uses.disagree, customers.over, l.went_back,
       COALESCE(f.fencing = 'enforced'
                AND ((f.epoch, f.token) < (l.epoch, l.token) OR f.turn < l.turn OR f.epoch > a.epoch), false),
       f.resource IS NULL OR i.resource IS NULL AND c.resource IS NULL,
       (SELECT count(*) FROM refusals WHERE resource = k.resource),
       COALESCE(a.strategy, ''), COALESCE(f.fencing, ''), COALESCE(f.epoch, 0), COALESCE(f.token, 0)
  FROM (` + keys + `) k
  LEFT JOIN fences f ON f.resource = k.resource
  LEFT JOIN authorities a ON a.scope = f.scope
  LEFT JOIN items i ON i.resource = k.resource
  LEFT JOIN coupons c ON c.resource = k.resource,
  LATERAL (
	SELECT count(*) AS entries,
	       COALESCE(sum(on_hand_delta) FILTER (WHERE kind IN ('create', 'restock')), 0)::bigint AS added,
	       COALESCE(sum(on_hand_delta), 0)::bigint AS on_hand, COALESCE(sum(reserved_delta), 0)::bigint AS reserved,
	       COALESCE(sum(sold_delta), 0)::bigint AS sold, COALESCE(sum(redeemed_delta), 0)::bigint AS redeemed,
	       max(turn) AS turn, max(epoch) AS epoch, max(token) FILTER (WHERE epoch = newest) AS token,
	       count(*) FILTER (WHERE went_back) AS went_back
	  FROM (SELECT *, max(epoch) OVER () AS newest,
	               f.fencing = 'enforced' AND (
	                   turn IS NULL OR token IS NULL OR (epoch, token) < (lag(epoch) OVER w, lag(token) OVER w)
	                   OR grant_id <> lag(grant_id) OVER w
	                      AND (turn = lag(turn) OVER w OR (epoch, token) = (lag(epoch) OVER w, lag(token) OVER w))) AS went_back
	          FROM ledger WHERE resource = k.resource WINDOW w AS (ORDER BY turn, entry)) AS in_order) l,
  LATERAL (
	SELECT count(*) AS rows, COALESCE(sum(quantity) FILTER (WHERE state = 'confirmed'), 0)::bigint AS sold,
	       COALESCE(sum(quantity) FILTER (WHERE state = 'held'), 0)::bigint AS held
	  FROM reservation_lines WHERE resource = k.resource) r,
  LATERAL (
	SELECT count(*) AS rows, count(*) FILTER (WHERE state = 'redeemed') AS used FROM redemptions WHERE resource = k.resource) u,
  LATERAL (
	SELECT count(*) AS disagree
	  FROM (SELECT reservation AS reference, state, quantity FROM reservation_lines WHERE resource = k.resource) line
	  FULL JOIN (SELECT reference, string_agg(concat_ws(' ', kind, on_hand_delta, reserved_delta, sold_delta), ', ' ORDER BY kind) AS story
	               FROM ledger WHERE resource = k.resource AND kind IN ('hold', 'confirm', 'release', 'expire')
	              GROUP BY reference) told USING (reference)
	 WHERE story IS DISTINCT FROM format(CASE state
	           WHEN 'held'      THEN 'hold 0 %1$s 0'
	           WHEN 'confirmed' THEN 'confirm -%1$s -%1$s %1$s, hold 0 %1$s 0'
	           WHEN 'released'  THEN 'hold 0 %1$s 0, release 0 -%1$s 0'
	           WHEN 'expired'   THEN 'expire 0 -%1$s 0, hold 0 %1$s 0' END, quantity)) lines,
  LATERAL (
	SELECT count(*) AS disagree
	  FROM (SELECT redemption AS reference, state FROM redemptions WHERE resource = k.resource) redemption
	  FULL JOIN (SELECT reference, string_agg(concat_ws(' ', kind, redeemed_delta), ', ' ORDER BY kind) AS story
	               FROM ledger WHERE resource = k.resource AND kind IN ('redeem', 'rollback') GROUP BY reference) told USING (reference)
	 WHERE story IS DISTINCT FROM CASE state WHEN 'redeemed' THEN 'redeem 1' WHEN 'rolled_back' THEN 'redeem 1, rollback -1' END) uses,
  LATERAL (
	SELECT count(*) AS over
	  FROM (SELECT FROM redemptions WHERE resource = k.resource AND state = 'redeemed'
	         GROUP BY customer_id HAVING count(*) > c.per_customer_limit) too_many) customers
 WHERE f.resource IS NOT NULL OR l.entries + r.rows + u.rows > 0
 ORDER BY k.resource`
}

func scanAudit(row pgx.CollectableRow) (a domain.AuditRow, err error) {
	err = row.Scan(&a.Key, &a.Limit, &a.Sold, &a.Held, &a.Oversold, &a.Drift, &a.Disagree, &a.OverLimit, &a.WentBack,
		&a.Behind, &a.Missing, &a.Refused, &a.Strategy, &a.Fencing, &a.LastEpoch, &a.LastToken)
	return a, err
}

// Resources lists the keys of all items and coupons: at most limit of those after the key.
func (s *Store) Resources(ctx context.Context, after domain.Key, limit int64) ([]domain.Key, error) {
	rows, _ := s.pool.Query(ctx, `SELECT resource FROM fences WHERE resource > $1 ORDER BY resource LIMIT $2`, after, limit)
	keys, err := pgx.CollectRows(rows, pgx.RowTo[domain.Key])
	if err != nil {
		return nil, fmt.Errorf("listing the resources: %w", domainError(ctx, err))
	}
	return keys, nil
}

// Audit compares, for each of the resources, what was given out with what there ever was.
func (s *Store) Audit(ctx context.Context, keys ...domain.Key) ([]domain.AuditRow, error) {
	rows, _ := s.pool.Query(ctx, auditSQL(theseKeys), keys)
	audit, err := pgx.CollectRows(rows, scanAudit)
	if err != nil {
		return nil, fmt.Errorf("auditing: %w", domainError(ctx, err))
	}
	for _, key := range keys {
		if !slices.ContainsFunc(audit, func(row domain.AuditRow) bool { return row.Key == key }) {
			return nil, fmt.Errorf("%s: %w", key, domain.ErrNotFound)
		}
	}
	return audit, nil
}

// AuditEach audits all resources, and tells of each as it comes. It sees the database at one moment, on a connection that no
// request needs, however long it takes.
func (s *Store) AuditEach(ctx context.Context, each func(domain.AuditRow) error) error {
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connecting for the audit: %w", domainError(ctx, err))
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.Begin(ctx) // rolled back with the connection's end
	if err != nil {
		return fmt.Errorf("beginning the audit: %w", domainError(ctx, err))
	}
	// To compile the statement takes PostgreSQL a second or more, every time, and it runs for milliseconds in a small shop.
	if _, err := tx.Exec(ctx, `SET LOCAL jit = off`); err != nil {
		return fmt.Errorf("preparing the audit: %w", domainError(ctx, err))
	}
	rows, _ := tx.Query(ctx, auditSQL(allKeys)) // rows has the query's error
	defer rows.Close()
	for rows.Next() {
		row, err := scanAudit(rows)
		if err != nil {
			return fmt.Errorf("auditing: %w", err)
		}
		if err := each(row); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("auditing: %w", domainError(ctx, err))
	}
	return nil
}

// AuditSums is the audit of all resources in short, for who asks every minute. What has lost its fence counts as enforced.
func (s *Store) AuditSums(ctx context.Context) (map[domain.Fencing]domain.AuditSum, error) {
	sums := map[domain.Fencing]domain.AuditSum{}
	err := s.AuditEach(ctx, func(r domain.AuditRow) error {
		fencing := r.Fencing
		if fencing == "" {
			fencing = domain.FencingEnforced
		}
		sum := sums[fencing]
		sum.Oversold += r.Oversold
		sum.Drift += r.Drift
		if !r.OK() {
			sum.Off++
		}
		sums[fencing] = sum
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sums, nil
}
