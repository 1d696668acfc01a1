package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"fencepost/domain"
)

// tx is the unit of work that fn sees: every row is read once, changed in memory, and written by flush.
type tx struct {
	store    *Store
	grants   []domain.Grant
	lockWait time.Duration

	pooled   *pgxpool.Conn // nil while no transaction is open
	conn     *pgx.Conn     // of pooled
	xid      string        // the transaction's number, by which its fate can be asked for later
	evidence *ledgerRow    // a row that is there if and only if the transaction has committed; nil if it wrote none
	waited   time.Duration // for presenting, and with that for row locks

	items        map[string]*working[domain.Item]
	coupons      map[string]*working[domain.Coupon]
	reservations map[string]*working[domain.Reservation]
	redemptions  map[string]*working[domain.Redemption]
	ledger       []ledgerRow
}

// working is a row's state as it was read and as it will be written.
type working[T any] struct {
	now    T
	stored bool // it was read from the table, so it is updated and not inserted
	dirty  bool
}

type ledgerRow struct {
	entry                                                uuid.UUID
	key                                                  domain.Key
	why                                                  domain.Entry
	onHandDelta, reservedDelta, soldDelta, redeemedDelta int64
}

// open takes a connection, begins a transaction, and presents the grants.
func (t *tx) open(ctx context.Context) (err error) {
	if t.pooled, err = t.store.acquire(ctx, t.lockWait); err != nil {
		return err
	}
	t.conn = t.pooled.Conn()
	began := time.Now()
	err = t.begin(ctx)
	t.waited += time.Since(began)
	return err
}

// end rolls back what is still open and gives the connection back. It may be called again.
func (t *tx) end(ctx context.Context) {
	if t.pooled == nil {
		return
	}
	t.rollback(ctx)
	t.pooled.Release() // destroys the connection if a transaction is open on it all the same
	t.pooled, t.conn = nil, nil
}

// Slow implements domain.Tx. The transaction ends before the step and a new one begins after it, so that no connection is
// held meanwhile. It presents the same grants, and the fence accepts them only if nobody newer has presented since: so what
// was read before the step still is what is stored. A row lock cannot be kept that way; it keeps its transaction open.
func (t *tx) Slow(ctx context.Context, step func(context.Context) error) error {
	if slices.ContainsFunc(t.grants, func(g domain.Grant) bool { return g.RowLock }) {
		return step(ctx)
	}
	if len(t.ledger) > 0 {
		return errors.New("postgres: a slow step after something was put")
	}
	if _, err := t.commit(ctx); err != nil { // nothing was written, so it does not matter whether the COMMIT arrived
		return plain(err)
	}
	t.end(ctx)
	if err := step(ctx); err != nil {
		return err
	}
	return t.open(ctx)
}

// begin opens the transaction and presents the grants, in one round trip.
func (t *tx) begin(ctx context.Context) error {
	batch := &pgx.Batch{}
	batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED`)
	// For this transaction only: behind a pooler the session belongs to others as well.
	batch.Queue(`SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
	                    set_config('idle_in_transaction_session_timeout', $3, true)`,
		milliseconds(max(t.lockWait, time.Millisecond)), milliseconds(statementTimeout), milliseconds(idleTimeout))
	for i := range t.grants {
		g := &t.grants[i]
		if g.RowLock {
			batch.Queue(`SELECT lock_row($1, $2, $3)`, g.Key, g.Epoch, g.ID).QueryRow(func(row pgx.Row) error {
				var token *int64
				if err := row.Scan(&token); err != nil {
					return err
				}
				if token != nil {
					g.Token = domain.Token(*token)
				}
				return nil
			})
			continue
		}
		batch.Queue(`SELECT present($1, $2, $3, NULLIF($4::bigint, 0), $5)`, g.Key, g.Strategy, g.Epoch, int64(g.Token), g.ID)
	}
	batch.Queue(`SELECT pg_current_xact_id()::text`).QueryRow(func(row pgx.Row) error { return row.Scan(&t.xid) })

	if err := t.conn.SendBatch(ctx, batch).Close(); err != nil {
		err = domainError(ctx, err)
		var refused *domain.RefusedError
		if errors.As(err, &refused) {
			for _, g := range t.grants {
				if g.Key == refused.Refusal.Grant.Key {
					refused.Refusal.Grant.ID = g.ID
				}
			}
		}
		return fmt.Errorf("beginning the transaction: %w", err)
	}
	return nil
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }

// rollback ends a transaction that must not commit. Its context is not the request's: a rollback that is cancelled leaves
// the fence's row locked until the server notices. If it fails, releasing the connection closes it.
func (t *tx) rollback(ctx context.Context) {
	if t.conn.IsClosed() || t.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if _, err := t.conn.Exec(ctx, `ROLLBACK`); err != nil {
		t.store.log.Warn("rolling back failed; the connection is dropped", "error", err)
	}
}

// commit sends COMMIT and waits for the answer, whatever happens to the request or the lock meanwhile. sent is false if the
// transaction certainly did not commit.
//
// When the wait is over the connection is cut. It is not a context that ends: pgx would ask the server to cancel, and a
// COMMIT that waits for a synchronous standby takes that as leave to go without it and answers that all is well.
func (t *tx) commit(ctx context.Context) (sent bool, err error) {
	ctx = context.WithoutCancel(ctx)
	socket := t.conn.PgConn().Conn()
	timer := time.AfterFunc(endTimeout, func() { _ = socket.SetDeadline(time.Now()) })
	defer func() {
		if !timer.Stop() {
			_ = t.conn.Close(ctx) // its deadline has passed, for whoever would use it next as well
		}
	}()
	tag, err := t.conn.Exec(ctx, `COMMIT`)
	switch {
	case err == nil && tag.String() == "COMMIT":
		return true, nil
	case err == nil: // the server answers ROLLBACK when the transaction had failed before
		return false, fmt.Errorf("committing: the server answered %s", tag)
	case sqlState(err) != "" && t.conn.PgConn().TxStatus() == 'I': // the server refused, and says so
		return false, fmt.Errorf("committing: %w", plain(err))
	}
	return true, fmt.Errorf("committing: %w", err)
}

func (t *tx) Item(ctx context.Context, sku string) (domain.Item, error) {
	if w, ok := t.items[sku]; ok {
		return w.now, nil
	}
	item := domain.Item{SKU: sku}
	err := t.conn.QueryRow(ctx, `SELECT name, on_hand, reserved, sold FROM items WHERE resource = $1`, domain.ItemKey(sku)).
		Scan(&item.Name, &item.OnHand, &item.Reserved, &item.Sold)
	if err != nil {
		return item, readError(ctx, "item "+sku, err)
	}
	put(&t.items, sku, &working[domain.Item]{now: item, stored: true})
	return item, nil
}

func (t *tx) PutItem(item domain.Item, why domain.Entry) {
	w := t.items[item.SKU]
	t.ledger = append(t.ledger, ledgerRow{
		entry: newUUID(), key: domain.ItemKey(item.SKU), why: why,
		onHandDelta: item.OnHand - w.now.OnHand, reservedDelta: item.Reserved - w.now.Reserved, soldDelta: item.Sold - w.now.Sold,
	})
	w.now, w.dirty = item, true
}

func (t *tx) Reservation(ctx context.Context, id string) (domain.Reservation, error) {
	if w, ok := t.reservations[id]; ok {
		return w.now, nil
	}
	r, err := reservation(ctx, t.conn, id)
	if err != nil {
		return r, err
	}
	put(&t.reservations, id, &working[domain.Reservation]{now: r, stored: true})
	return r, nil
}

func (t *tx) PutReservation(r domain.Reservation) {
	w, known := t.reservations[r.ID]
	put(&t.reservations, r.ID, &working[domain.Reservation]{now: r, dirty: true, stored: known && w.stored})
}

func (t *tx) Coupon(ctx context.Context, code string) (domain.Coupon, error) {
	if w, ok := t.coupons[code]; ok {
		return w.now, nil
	}
	c := domain.Coupon{Code: code}
	var limit pgtype.Int8
	var from, until pgtype.Timestamptz
	err := t.conn.QueryRow(ctx, `
		SELECT max_redemptions, per_customer_limit, valid_from, valid_until, redeemed FROM coupons WHERE resource = $1`,
		domain.CouponKey(code)).Scan(&c.MaxRedemptions, &limit, &from, &until, &c.Redeemed)
	if err != nil {
		return c, readError(ctx, "coupon "+code, err)
	}
	c.PerCustomerLimit, c.ValidFrom, c.ValidUntil = limit.Int64, utc(from), utc(until)
	put(&t.coupons, code, &working[domain.Coupon]{now: c, stored: true})
	return c, nil
}

func (t *tx) PutCoupon(c domain.Coupon, why domain.Entry) {
	w := t.coupons[c.Code]
	t.ledger = append(t.ledger, ledgerRow{entry: newUUID(), key: domain.CouponKey(c.Code), why: why, redeemedDelta: c.Redeemed - w.now.Redeemed})
	w.now, w.dirty = c, true
}

// CustomerUses counts what is stored and what this transaction is about to add.
func (t *tx) CustomerUses(ctx context.Context, code, customer string) (int64, error) {
	var uses int64
	err := t.conn.QueryRow(ctx, `
		SELECT count(*) FROM redemptions WHERE resource = $1 AND customer_id = $2 AND state = 'redeemed'`,
		domain.CouponKey(code), customer).Scan(&uses)
	if err != nil {
		return 0, readError(ctx, "the uses of coupon "+code, err)
	}
	for _, w := range t.redemptions {
		if w.dirty && w.now.Code == code && w.now.CustomerID == customer {
			switch {
			case !w.stored && w.now.State == domain.Redeemed:
				uses++
			case w.stored && w.now.State == domain.RolledBack:
				uses--
			}
		}
	}
	return uses, nil
}

func (t *tx) Redemption(ctx context.Context, id string) (domain.Redemption, error) {
	if w, ok := t.redemptions[id]; ok {
		return w.now, nil
	}
	r, err := redemption(ctx, t.conn, id)
	if err != nil {
		return r, err
	}
	put(&t.redemptions, id, &working[domain.Redemption]{now: r, stored: true})
	return r, nil
}

func (t *tx) PutRedemption(r domain.Redemption) {
	w, known := t.redemptions[r.ID]
	put(&t.redemptions, r.ID, &working[domain.Redemption]{now: r, dirty: true, stored: known && w.stored})
}

// flush writes what was put, in one round trip: the new absolute states in the byte order of their keys, then what was
// taken of them, then the ledger.
func (t *tx) flush(ctx context.Context) error {
	batch := &pgx.Batch{}
	for _, sku := range slices.Sorted(maps.Keys(t.items)) {
		if w := t.items[sku]; w.dirty {
			batch.Queue(`UPDATE items SET on_hand = $2, reserved = $3, sold = $4 WHERE resource = $1`,
				domain.ItemKey(sku), w.now.OnHand, w.now.Reserved, w.now.Sold)
		}
	}
	for _, code := range slices.Sorted(maps.Keys(t.coupons)) {
		if w := t.coupons[code]; w.dirty {
			batch.Queue(`UPDATE coupons SET redeemed = $2 WHERE resource = $1`, domain.CouponKey(code), w.now.Redeemed)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(t.reservations)) {
		if w := t.reservations[id]; w.dirty {
			queueReservation(batch, w.now, w.stored)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(t.redemptions)) {
		if w := t.redemptions[id]; w.dirty {
			queueRedemption(batch, w.now, w.stored)
		}
	}
	slices.SortStableFunc(t.ledger, func(a, b ledgerRow) int { return cmp.Compare(a.key, b.key) })
	if len(t.ledger) > 0 {
		t.evidence = &t.ledger[0]
	}
	for _, row := range t.ledger {
		queueLedger(batch, row, t.grantOf(row.key))
	}
	if batch.Len() == 0 {
		return nil
	}
	if err := t.conn.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("writing: %w", domainError(ctx, err))
	}
	return nil
}

// grantOf is what the ledger says of a change. On a fenced resource PostgreSQL replaces it by what was really presented.
func (t *tx) grantOf(key domain.Key) domain.Grant {
	for _, g := range t.grants {
		if g.Key == key {
			return g
		}
	}
	return domain.Grant{Key: key}
}

// exactlyOne makes the change of a state conditional on the state: a row that is not there any more as it was read undoes
// the whole transaction. Under the fence it cannot happen.
func exactlyOne(what string) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		n := 0
		for rows.Next() {
			n++
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if n != 1 {
			return fmt.Errorf("%s was settled by somebody else meanwhile: %w", what, domain.ErrWrongState)
		}
		return nil
	}
}

func queueReservation(batch *pgx.Batch, r domain.Reservation, stored bool) {
	lines := slices.SortedFunc(slices.Values(r.Lines), func(a, b domain.Line) int { return cmp.Compare(a.SKU, b.SKU) })
	for _, line := range lines {
		if stored {
			batch.Queue(`
				UPDATE reservation_lines SET state = $3, settled_at = $4
				WHERE resource = $1 AND reservation = $2 AND state = 'held' RETURNING 1`,
				domain.ItemKey(line.SKU), idOf(r.ID), r.State, r.SettledAt).Query(exactlyOne("reservation " + r.ID))
			continue
		}
		batch.Queue(`
			INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at, settled_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			domain.ItemKey(line.SKU), idOf(r.ID), line.Quantity, r.State, r.CustomerID, r.CreatedBy, r.CreatedAt, r.ExpiresAt, nullTime(r.SettledAt))
	}
}

func queueRedemption(batch *pgx.Batch, r domain.Redemption, stored bool) {
	if stored {
		batch.Queue(`
			UPDATE redemptions SET state = $3, settled_at = $4
			WHERE resource = $1 AND redemption = $2 AND state = 'redeemed' RETURNING 1`,
			domain.CouponKey(r.Code), idOf(r.ID), r.State, r.SettledAt).Query(exactlyOne("redemption " + r.ID))
		return
	}
	batch.Queue(`
		INSERT INTO redemptions (resource, redemption, customer_id, reservation, state, created_by, created_at, settled_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		domain.CouponKey(r.Code), idOf(r.ID), r.CustomerID, idOf(r.ReservationID), r.State, r.CreatedBy, r.CreatedAt, nullTime(r.SettledAt))
}

func queueLedger(batch *pgx.Batch, row ledgerRow, g domain.Grant) {
	batch.Queue(`
		INSERT INTO ledger (resource, entry, kind, reference, on_hand_delta, reserved_delta, sold_delta, redeemed_delta,
		                    strategy, epoch, token, grant_id)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULLIF($11::bigint, 0), $12)`,
		row.key, row.entry, row.why.Kind, idOf(row.why.Reference),
		row.onHandDelta, row.reservedDelta, row.soldDelta, row.redeemedDelta,
		g.Strategy, g.Epoch, int64(g.Token), g.ID)
}

// idOf is the UUID behind a prefixed id; NULL if there is none, which is also what an id that cannot exist finds.
func idOf(id string) pgtype.UUID {
	_, text, _ := strings.Cut(id, "_")
	u, err := uuid.Parse(text)
	return pgtype.UUID{Bytes: u, Valid: err == nil && len(text) == 36}
}

func put[T any](m *map[string]T, key string, v T) {
	if *m == nil {
		*m = map[string]T{}
	}
	(*m)[key] = v
}

func readError(ctx context.Context, what string, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%s: %w", what, domain.ErrNotFound)
	}
	return fmt.Errorf("reading %s: %w", what, domainError(ctx, err))
}

// utc is a stored time, zero for NULL.
func utc(t pgtype.Timestamptz) time.Time {
	if !t.Valid {
		return time.Time{}
	}
	return t.Time.UTC()
}
