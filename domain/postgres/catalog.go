package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"fencepost/domain"
)

const (
	selectItemViews = `
		SELECT substr(resource, 6), i.name, i.on_hand, i.reserved, i.sold, a.strategy, f.fencing, f.epoch, f.token
		  FROM items i JOIN fences f USING (resource) JOIN authorities a USING (scope)`
	selectItemView   = selectItemViews + ` WHERE i.resource = $1`
	selectCouponView = `
		SELECT substr(resource, 8), c.max_redemptions, c.per_customer_limit, c.valid_from, c.valid_until, c.redeemed,
		       a.strategy, f.fencing, f.epoch, f.token
		  FROM coupons c JOIN fences f USING (resource) JOIN authorities a USING (scope)
		 WHERE c.resource = $1`
)

func scanItem(row pgx.CollectableRow) (v domain.ItemView, err error) {
	err = row.Scan(&v.SKU, &v.Name, &v.OnHand, &v.Reserved, &v.Sold, &v.Fence.Strategy, &v.Fence.Fencing, &v.Fence.Epoch, &v.Fence.Token)
	return v, err
}

// Items lists items by resource: at most limit of those after the key.
func (s *Store) Items(ctx context.Context, after domain.Key, limit int64) ([]domain.ItemView, error) {
	rows, _ := s.pool.Query(ctx, selectItemViews+` WHERE i.resource > $1 ORDER BY i.resource LIMIT $2`, after, limit)
	items, err := pgx.CollectRows(rows, scanItem)
	if err != nil {
		return nil, fmt.Errorf("listing the items: %w", domainError(ctx, err))
	}
	return items, nil
}

// Item finds one item.
func (s *Store) Item(ctx context.Context, sku string) (domain.ItemView, error) {
	return one(ctx, s, scanItem, "item "+sku, selectItemView, domain.ItemKey(sku))
}

// Coupon finds one coupon.
func (s *Store) Coupon(ctx context.Context, code string) (domain.CouponView, error) {
	return one(ctx, s, scanCoupon, "coupon "+code, selectCouponView, domain.CouponKey(code))
}

func scanCoupon(row pgx.CollectableRow) (v domain.CouponView, err error) {
	var limit pgtype.Int8
	var from, until pgtype.Timestamptz
	err = row.Scan(&v.Code, &v.MaxRedemptions, &limit, &from, &until, &v.Redeemed,
		&v.Fence.Strategy, &v.Fence.Fencing, &v.Fence.Epoch, &v.Fence.Token)
	v.PerCustomerLimit, v.ValidFrom, v.ValidUntil = limit.Int64, utc(from), utc(until)
	return v, err
}

// Reservation finds one reservation by its id.
func (s *Store) Reservation(ctx context.Context, id string) (domain.Reservation, error) {
	return byID(ctx, s, reservations, "reservation", domain.ReservationPrefix, selectReservations, id)
}

// Redemption finds one redemption by its id.
func (s *Store) Redemption(ctx context.Context, id string) (domain.Redemption, error) {
	return byID(ctx, s, redemptions, "redemption", domain.RedemptionPrefix, selectRedemptions, id)
}

func byID[T any](ctx context.Context, s *Store, collect func(pgx.Rows) ([]T, error), what, prefix, sql, id string) (none T, err error) {
	if !strings.HasPrefix(id, prefix) {
		return none, fmt.Errorf("%s %q: %w", what, id, domain.ErrNotFound)
	}
	rows, _ := s.pool.Query(ctx, sql, idsOf([]string{id})) // collect returns the query's error
	found, err := collect(rows)
	if err == nil && len(found) == 0 {
		err = pgx.ErrNoRows
	}
	if err != nil {
		return none, readError(ctx, what+" "+id, err)
	}
	return found[0], nil
}

const selectReservations = `
	SELECT reservation, substr(resource, 6), quantity, state, customer_id, created_by, created_at, expires_at, settled_at,
	       tied.redemptions, tied.codes
	  FROM reservation_lines l,
	       LATERAL (SELECT array_agg(redemption ORDER BY redemption) AS redemptions,
	                       array_agg(substr(resource, 8) ORDER BY redemption) AS codes
	                  FROM redemptions WHERE reservation = l.reservation AND state = 'redeemed') tied
	 WHERE reservation = ANY($1::uuid[]) ORDER BY reservation, resource`

// reservations puts the lines of each reservation together.
func reservations(rows pgx.Rows) (found []domain.Reservation, err error) {
	var r domain.Reservation
	var id uuid.UUID
	var line domain.Line
	var settled pgtype.Timestamptz
	var redemptions []uuid.UUID
	var codes []string
	_, err = pgx.ForEachRow(rows, []any{
		&id, &line.SKU, &line.Quantity, &r.State, &r.CustomerID, &r.CreatedBy, &r.CreatedAt, &r.ExpiresAt, &settled,
		&redemptions, &codes,
	}, func() error {
		r.ID = domain.ReservationPrefix + id.String()
		if n := len(found); n > 0 && found[n-1].ID == r.ID {
			found[n-1].Lines = append(found[n-1].Lines, line)
			return nil
		}
		next := r
		next.CreatedAt, next.ExpiresAt, next.SettledAt = r.CreatedAt.UTC(), r.ExpiresAt.UTC(), utc(settled)
		next.Lines = []domain.Line{line}
		for i, redemption := range redemptions {
			next.Tied = append(next.Tied, domain.TiedUse{Redemption: domain.RedemptionPrefix + redemption.String(), Code: codes[i]})
		}
		found = append(found, next)
		return nil
	})
	return found, err
}

const selectRedemptions = `
	SELECT redemption, substr(resource, 8), customer_id, reservation, state, created_by, created_at, settled_at
	  FROM redemptions WHERE redemption = ANY($1::uuid[])`

func redemptions(rows pgx.Rows) ([]domain.Redemption, error) {
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r domain.Redemption, err error) {
		var id uuid.UUID
		var reservation pgtype.UUID
		var settled pgtype.Timestamptz
		err = row.Scan(&id, &r.Code, &r.CustomerID, &reservation, &r.State, &r.CreatedBy, &r.CreatedAt, &settled)
		if reservation.Valid {
			r.ReservationID = domain.ReservationPrefix + reservation.String()
		}
		r.ID = domain.RedemptionPrefix + id.String()
		r.CreatedAt, r.SettledAt = r.CreatedAt.UTC(), utc(settled)
		return r, err
	})
}

// CreateItem makes the item, its fence and its first ledger entry.
func (s *Store) CreateItem(ctx context.Context, item domain.Item, lock domain.LockSpec, once *domain.Once) (domain.ItemView, error) {
	key := domain.ItemKey(item.SKU)
	return create(ctx, s, key, key, lock, once, item.OnHand, func(batch *pgx.Batch) {
		batch.Queue(`INSERT INTO items (resource, name, on_hand, reserved, sold) VALUES ($1, $2, $3, 0, 0)`, key, item.Name, item.OnHand)
	}, scanItem, selectItemView)
}

// CreateCoupon makes the coupon, its fence and its first ledger entry.
func (s *Store) CreateCoupon(ctx context.Context, c domain.Coupon, lock domain.LockSpec, once *domain.Once) (domain.CouponView, error) {
	key := domain.CouponKey(c.Code)
	return create(ctx, s, key, codesToBe, lock, once, 0, func(batch *pgx.Batch) {
		batch.Queue(`
			INSERT INTO coupons (resource, max_redemptions, per_customer_limit, valid_from, valid_until, redeemed)
			VALUES ($1, $2, NULLIF($3::bigint, 0), $4, $5, 0)`,
			key, c.MaxRedemptions, c.PerCustomerLimit, nullTime(c.ValidFrom), nullTime(c.ValidUntil))
	}, scanCoupon, selectCouponView)
}

// codesToBe has the answers to all who made coupons. Where the service makes the code, twins of one request come with a code
// each, and meet at nothing but the primary key of their answers: so that must not be the code's.
const codesToBe = domain.Key(domain.KindCoupon) + "/"

// create needs no lock: nobody can hold one for what does not exist, and the fence's primary key lets one creator win. What
// was made is read back before the COMMIT, so that nothing can fail after it. A twin of the same request that has won
// meanwhile has left its answer, under the key that answers says.
func create[V any](ctx context.Context, s *Store, key, answers domain.Key, lock domain.LockSpec, once *domain.Once, stock int64,
	insert func(*pgx.Batch), scan pgx.RowToFunc[V], readBack string,
) (view V, err error) {
	gather := func(presented bool) (wanted reads) {
		if once != nil && !presented {
			wanted.answers = []answerID{{once.Caller, once.Key}}
		}
		return wanted
	}
	try := func() error {
		begin := func() *tx { return &tx{store: s, lockWait: endTimeout} }
		_, err := s.transact(ctx, begin, gather, func(ctx context.Context, t *tx) error {
			if err := t.replay(once); err != nil {
				return err
			}
			entry := newUUID()
			t.evidence = inLedger(key, entry)
			batch := &pgx.Batch{}
			batch.Queue(`SELECT create_fence($1, $2, NULLIF($3, ''), $4, $5)`, key, lock.Fencing, lock.Strategy, lock.Fingerprint, newUUID())
			insert(batch)
			// The ledger's stamp is the fence's, also where fencing is off and PostgreSQL would not insist on it.
			batch.Queue(`
				INSERT INTO ledger (resource, entry, kind, on_hand_delta, strategy, epoch, token, grant_id, turn)
				SELECT resource, $2, 'create', $3, strategy, epoch, token, grant_id, CASE fencing WHEN 'enforced' THEN turn END
				  FROM fences WHERE resource = $1`,
				key, entry, stock)
			batch.Queue(readBack, key).Query(func(rows pgx.Rows) (err error) {
				view, err = pgx.CollectOneRow(rows, scan)
				return err
			})
			if err := t.conn.SendBatch(ctx, batch).Close(); sqlState(err) == stateUnique {
				return fmt.Errorf("%s: %w", key, domain.ErrAlreadyExists)
			} else if err != nil {
				return domainError(ctx, err)
			}
			if once != nil {
				t.answer(answers, once, once.Encode(view, nil))
			}
			return nil
		})
		return err
	}
	err = try()
	if once != nil && errors.Is(err, domain.ErrAlreadyExists) {
		err = try()
	}
	if err != nil {
		return view, fmt.Errorf("creating %s: %w", key, err)
	}
	return view, nil
}

func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
