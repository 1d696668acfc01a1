package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"fencepost/domain"
)

// What was given out is counted from the rows of those who got it. The counters of items and coupons, which is what a
// broken lock corrupts, are only compared: drift is the largest disagreement. One statement, so that all of it is seen at
// one moment.
const verdictsSQL = `
WITH verdicts AS (
	SELECT i.resource,
	       l.added AS limit_, r.sold, r.held, greatest(r.sold + r.held - l.added, 0) AS oversold,
	       greatest(abs(i.reserved - r.held), abs(i.sold - r.sold), abs(i.on_hand + i.sold - l.added),
	                abs(i.reserved - l.reserved), abs(i.sold - l.sold), abs(i.on_hand - l.on_hand)) AS drift
	  FROM items i,
	       LATERAL (SELECT COALESCE(sum(on_hand_delta) FILTER (WHERE kind IN ('create', 'restock')), 0)::bigint AS added,
	                       COALESCE(sum(on_hand_delta), 0)::bigint AS on_hand,
	                       COALESCE(sum(reserved_delta), 0)::bigint AS reserved,
	                       COALESCE(sum(sold_delta), 0)::bigint AS sold
	                  FROM ledger WHERE resource = i.resource) l,
	       LATERAL (SELECT COALESCE(sum(quantity) FILTER (WHERE state = 'confirmed'), 0)::bigint AS sold,
	                       COALESCE(sum(quantity) FILTER (WHERE state = 'held'), 0)::bigint AS held
	                  FROM reservation_lines WHERE resource = i.resource) r
	 WHERE $1::text[] IS NULL OR i.resource = ANY($1)
	UNION ALL
	SELECT c.resource,
	       c.max_redemptions, r.used, 0, greatest(r.used - c.max_redemptions, 0),
	       greatest(abs(c.redeemed - r.used), abs(c.redeemed - l.redeemed))
	  FROM coupons c,
	       LATERAL (SELECT COALESCE(sum(redeemed_delta), 0)::bigint AS redeemed FROM ledger WHERE resource = c.resource) l,
	       LATERAL (SELECT count(*) FILTER (WHERE state = 'redeemed') AS used FROM redemptions WHERE resource = c.resource) r
	 WHERE $1::text[] IS NULL OR c.resource = ANY($1)
)`

const auditSQL = verdictsSQL + `
SELECT v.resource, v.limit_, v.sold, v.held, v.oversold, v.drift,
       (SELECT count(*) FROM refusals WHERE resource = v.resource), a.strategy, f.fencing, f.epoch, f.token
  FROM verdicts v JOIN fences f USING (resource) JOIN authorities a USING (scope)
 ORDER BY v.resource`

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
	if len(keys) == 0 {
		return nil, nil // NULL would be every resource
	}
	rows, _ := s.pool.Query(ctx, auditSQL, keys)
	audit, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a domain.AuditRow, err error) {
		err = row.Scan(&a.Key, &a.Limit, &a.Sold, &a.Held, &a.Oversold, &a.Drift,
			&a.Refused, &a.Strategy, &a.Fencing, &a.LastEpoch, &a.LastToken)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("auditing: %w", domainError(ctx, err))
	}
	if len(audit) < len(keys) {
		return nil, fmt.Errorf("one of %s: %w", keys, domain.ErrNotFound)
	}
	return audit, nil
}

const auditSumsSQL = verdictsSQL + `
SELECT f.fencing, sum(v.oversold)::bigint, sum(v.drift)::bigint
  FROM verdicts v JOIN fences f USING (resource)
 GROUP BY f.fencing`

// AuditSums is the audit of all resources in short, for who asks every minute. It reads as much as the audit does, so it uses
// no connection that a request could want, and asks the server to stop when ctx ends.
func (s *Store) AuditSums(ctx context.Context) (map[domain.Fencing]domain.AuditSum, error) {
	sums := map[domain.Fencing]domain.AuditSum{}
	var fencing domain.Fencing
	var sum domain.AuditSum
	rows, _ := s.health.Query(ctx, auditSumsSQL, nil)
	if _, err := pgx.ForEachRow(rows, []any{&fencing, &sum.Oversold, &sum.Drift}, func() error { sums[fencing] = sum; return nil }); err != nil {
		return nil, fmt.Errorf("auditing: %w", domainError(ctx, err))
	}
	return sums, nil
}
