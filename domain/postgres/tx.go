package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"fencepost/domain"
)

// tx is the unit of work that sections see: every row is read once, changed in memory, and written with the commit.
type tx struct {
	store      *Store
	grants     []domain.Grant
	lockWait   time.Duration
	skipLocked bool

	pooled   *pgxpool.Conn         // nil while no transaction is open
	conn     *pgx.Conn             // of pooled
	xid      string                // the transaction's number, by which its fate can be asked for later
	evidence *evidence             // a row that is there if and only if the transaction has committed; nil if it wrote none
	waited   time.Duration         // for a connection, and for row locks
	failed   error                 // what broke the transaction for everybody in it
	turns    map[domain.Key]*int64 // of the fences to which a grant was presented; none where fencing is off
	skipped  map[domain.Key]bool   // grants that were not presented, because somebody else had locked the row

	items        map[string]*working[domain.Item]
	coupons      map[string]*working[domain.Coupon]
	reservations map[string]*working[domain.Reservation]
	redemptions  map[string]*working[domain.Redemption]
	uses         map[domain.Use]int64
	ledger       []ledgerRow
	answers      map[answerID][]answer
	undo         []func() // takes back what the section that is running has put, the last of it last
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

// evidence is a query that finds a row, or does not.
type evidence struct {
	sql  string
	args []any
}

func inLedger(key domain.Key, entry uuid.UUID) *evidence {
	return &evidence{`SELECT FROM ledger WHERE resource = $1 AND entry = $2`, []any{key, entry}}
}

// open takes a connection, begins a transaction, presents the grants, and reads what gather asks for. gather is called before
// the transaction begins, unless that draws a lock, and again when it has presented. What is asked for the first time is
// read in the round trip that presents; the rest costs one more.
func (t *tx) open(ctx context.Context, gather func(presented bool) reads) (err error) {
	began := time.Now()
	t.pooled, err = t.store.acquire(ctx, t.lockWait)
	t.waited += time.Since(began)
	if err != nil {
		return err
	}
	t.conn = t.pooled.Conn()
	if t.rowLocks() {
		began := time.Now()
		err = t.begin(ctx, reads{})
		t.waited += time.Since(began)
	} else {
		err = t.begin(ctx, gather(false))
	}
	if err != nil {
		return err
	}
	batch := &pgx.Batch{}
	if t.queueReads(batch, gather(true)); batch.Len() == 0 {
		return nil
	}
	if err := t.conn.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("reading: %w", domainError(ctx, err))
	}
	return nil
}

// reads is what the sections of a transaction are going to read.
type reads struct {
	domain.Reads
	answers []answerID
}

// nothing is to be read in advance.
func nothing(bool) reads { return reads{} }

func (t *tx) rowLocks() bool {
	return slices.ContainsFunc(t.grants, func(g domain.Grant) bool { return g.RowLock })
}

// run runs one section, unless it has an answer already or its row was skipped. What a section that fails has put is taken
// back, so that the others in the transaction never see it.
func (t *tx) run(ctx context.Context, section domain.Section) error {
	if slices.ContainsFunc(section.Keys, func(key domain.Key) bool { return t.skipped[key] }) {
		return domain.ErrRowLocked
	}
	if err := t.replay(section.Once); err != nil {
		return err
	}
	t.undo = t.undo[:0]
	err := section.Run(ctx, t)
	if err != nil {
		for _, undo := range slices.Backward(t.undo) {
			undo()
		}
	}
	if section.Once != nil && (err == nil || domain.Final(err)) {
		t.answer(slices.Min(section.Keys), section.Once, section.Once.Encode(section.Result(), err))
	}
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
	if t.rowLocks() {
		return step(ctx)
	}
	if len(t.ledger) > 0 {
		return errors.New("postgres: a slow step after something was put")
	}
	if _, err := t.commit(ctx, &pgx.Batch{}); err != nil { // nothing was written, so it does not matter whether the COMMIT arrived
		t.failed = plain(err)
		return t.failed
	}
	t.end(ctx)
	stepErr := step(ctx)
	if stepErr != nil && !domain.Final(stepErr) {
		return stepErr
	}
	// Also for a step whose refusal is final: it is an answer, which is kept for the request's key. The failure is not the
	// section's own error: a refusal by the fence has to be recorded and may be healed, and a transaction that the server aborted
	// is tried again.
	if t.failed = t.open(ctx, nothing); t.failed != nil {
		return t.failed
	}
	return stepErr
}

// begin opens the transaction, presents the grants, and only then reads: their items and coupons, and what else is asked
// for. It is one round trip: the server runs the statements one after the other, and each sees what was committed before it
// began.
func (t *tx) begin(ctx context.Context, wanted reads) error {
	batch := &pgx.Batch{}
	batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED`)
	// For this transaction only: behind a pooler the session belongs to others as well. Every row is looked up by its key, so
	// one plan is good for all: without the last two, a statement that takes arrays would be planned anew each time, which
	// costs more than to run it, and one that was planned while a table was small would go on reading it whole.
	batch.Queue(`SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
	                    set_config('idle_in_transaction_session_timeout', $3, true), pg_current_xact_id()::text,
	                    set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true)`,
		milliseconds(max(t.lockWait, time.Millisecond)), milliseconds(statementTimeout), milliseconds(idleTimeout)).
		QueryRow(func(row pgx.Row) error { return row.Scan(nil, nil, nil, &t.xid, nil, nil) })
	t.queuePresentation(batch)
	t.queueResources(batch)
	t.queueReads(batch, wanted)

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

// queuePresentation presents the grants, in their order, and notes the turns. Row locks draw their tokens there.
func (t *tx) queuePresentation(batch *pgx.Batch) {
	for i := range t.grants {
		g := &t.grants[i]
		presented := func(row pgx.Row) error {
			var turn, token *int64
			if err := row.Scan(&turn, &token); err != nil {
				return err
			}
			switch {
			case turn == nil:
				put(&t.skipped, g.Key, true)
				return nil
			case *turn > 0: // it is fenced
				put(&t.turns, g.Key, turn)
			}
			if g.RowLock {
				g.Token = domain.Token(*token)
			}
			return nil
		}
		id := pgtype.UUID{Bytes: g.ID, Valid: true}
		if g.RowLock {
			batch.Queue(`SELECT turn, token FROM lock_row($1, $2, $3, $4)`, g.Key, g.Epoch, id, !t.skipLocked).QueryRow(presented)
		} else {
			batch.Queue(`SELECT present($1, $2, $3, $4, $5, $6), $4`, g.Key, g.Strategy, g.Epoch, nullToken(g.Token), id, !t.skipLocked).
				QueryRow(presented)
		}
	}
}

// nullToken is NULL for a grant without one.
func nullToken(token domain.Token) *int64 {
	if token == 0 {
		return nil
	}
	n := int64(token)
	return &n
}

// queueResources reads the items and coupons of the grants.
func (t *tx) queueResources(batch *pgx.Batch) {
	var items, coupons []domain.Key
	for _, g := range t.grants {
		switch g.Key.Kind() {
		case domain.KindItem:
			items = append(items, g.Key)
		case domain.KindCoupon:
			coupons = append(coupons, g.Key)
		}
	}
	if len(items) > 0 {
		batch.Queue(selectItems, items).Query(t.scanItems)
	}
	if len(coupons) > 0 {
		batch.Queue(selectCoupons, coupons).Query(t.scanCoupons)
	}
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

// commit sends what is to be written and the COMMIT in one round trip, and waits for the answer, whatever happens to the
// request or the lock meanwhile. sent is false if the transaction certainly did not commit: the server skips everything
// after a statement that failed.
//
// When the wait is over the connection is cut. It is not a context that ends: pgx would ask the server to cancel, and a
// COMMIT that waits for a synchronous standby takes that as leave to go without it and answers that all is well.
func (t *tx) commit(ctx context.Context, batch *pgx.Batch) (sent bool, err error) {
	ctx = context.WithoutCancel(ctx)
	socket := t.conn.PgConn().Conn()
	timer := time.AfterFunc(t.lockWait+endTimeout, func() { _ = socket.SetDeadline(time.Now()) })
	defer func() {
		if !timer.Stop() {
			_ = t.conn.Close(ctx) // its deadline has passed, for whoever would use it next as well
		}
	}()
	var tag pgconn.CommandTag
	batch.Queue(`COMMIT`).Exec(func(answer pgconn.CommandTag) error {
		tag = answer
		return nil
	})
	err = t.conn.SendBatch(ctx, batch).Close()
	switch {
	case err == nil && tag.String() == "COMMIT":
		return true, nil
	case err == nil: // the server answers ROLLBACK when the transaction had failed before
		return false, fmt.Errorf("committing: the server answered %s", tag)
	case sqlState(err) != "" && !t.conn.IsClosed() && t.conn.PgConn().TxStatus() != 'T': // the server refused, and says so
		return false, fmt.Errorf("writing: %w", plain(err))
	}
	return true, fmt.Errorf("committing: %w", err)
}

func (t *tx) queueReads(batch *pgx.Batch, wanted reads) {
	if len(wanted.Reservations) > 0 {
		batch.Queue(selectReservations, idsOf(wanted.Reservations)).Query(t.scanReservations)
	}
	if len(wanted.Redemptions) > 0 {
		batch.Queue(selectRedemptions, idsOf(wanted.Redemptions)).Query(t.scanRedemptions)
	}
	if len(wanted.Uses) > 0 {
		t.queueUses(batch, wanted.Uses)
	}
	if len(wanted.answers) > 0 {
		t.queueAnswers(batch, wanted.answers)
	}
}

const selectItems = `SELECT substr(resource, 6), name, on_hand, reserved, sold FROM items WHERE resource = ANY($1)`

func (t *tx) scanItems(rows pgx.Rows) error {
	var item domain.Item
	_, err := pgx.ForEachRow(rows, []any{&item.SKU, &item.Name, &item.OnHand, &item.Reserved, &item.Sold}, func() error {
		put(&t.items, item.SKU, &working[domain.Item]{now: item, stored: true})
		return nil
	})
	return err
}

func (t *tx) Item(ctx context.Context, sku string) (domain.Item, error) {
	return load(ctx, t, &t.items, "item", sku, t.scanItems, selectItems, []domain.Key{domain.ItemKey(sku)})
}

func (t *tx) PutItem(item domain.Item, why domain.Entry) {
	was := t.items[item.SKU].now
	t.note(ledgerRow{
		entry: newUUID(), key: domain.ItemKey(item.SKU), why: why,
		onHandDelta: item.OnHand - was.OnHand, reservedDelta: item.Reserved - was.Reserved, soldDelta: item.Sold - was.Sold,
	})
	change(t, &t.items, item.SKU, item)
}

func (t *tx) Reservation(ctx context.Context, id string) (domain.Reservation, error) {
	return load(ctx, t, &t.reservations, "reservation", id, t.scanReservations, selectReservations, idsOf([]string{id}))
}

func (t *tx) scanReservations(rows pgx.Rows) error {
	found, err := reservations(rows)
	for _, r := range found {
		put(&t.reservations, r.ID, &working[domain.Reservation]{now: r, stored: true})
	}
	return err
}

func (t *tx) PutReservation(r domain.Reservation) { change(t, &t.reservations, r.ID, r) }

const selectCoupons = `
	SELECT substr(resource, 8), max_redemptions, COALESCE(per_customer_limit, 0), valid_from, valid_until, redeemed FROM coupons WHERE resource = ANY($1)`

func (t *tx) scanCoupons(rows pgx.Rows) error {
	var c domain.Coupon
	var from, until pgtype.Timestamptz
	_, err := pgx.ForEachRow(rows, []any{&c.Code, &c.MaxRedemptions, &c.PerCustomerLimit, &from, &until, &c.Redeemed}, func() error {
		c.ValidFrom, c.ValidUntil = utc(from), utc(until)
		put(&t.coupons, c.Code, &working[domain.Coupon]{now: c, stored: true})
		return nil
	})
	return err
}

func (t *tx) Coupon(ctx context.Context, code string) (domain.Coupon, error) {
	return load(ctx, t, &t.coupons, "coupon", code, t.scanCoupons, selectCoupons, []domain.Key{domain.CouponKey(code)})
}

func (t *tx) PutCoupon(c domain.Coupon, why domain.Entry) {
	t.note(ledgerRow{entry: newUUID(), key: domain.CouponKey(c.Code), why: why, redeemedDelta: c.Redeemed - t.coupons[c.Code].now.Redeemed})
	change(t, &t.coupons, c.Code, c)
}

// CustomerUses counts what is stored and what this transaction is about to add.
func (t *tx) CustomerUses(ctx context.Context, code, customer string) (int64, error) {
	use := domain.Use{Code: code, Customer: customer}
	if _, known := t.uses[use]; !known {
		batch := &pgx.Batch{}
		t.queueUses(batch, []domain.Use{use})
		if err := t.conn.SendBatch(ctx, batch).Close(); err != nil {
			return 0, t.readError(ctx, "the uses of coupon "+code, err)
		}
	}
	uses := t.uses[use]
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

func (t *tx) queueUses(batch *pgx.Batch, uses []domain.Use) {
	var keys []domain.Key
	var customers []string
	for _, u := range uses {
		put(&t.uses, u, 0) // what has no rows is not in the answer
		keys, customers = append(keys, domain.CouponKey(u.Code)), append(customers, u.Customer)
	}
	batch.Queue(`
		SELECT substr(resource, 8), customer_id, count(*) FROM redemptions
		 WHERE (resource, customer_id) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND state = 'redeemed'
		 GROUP BY resource, customer_id`, keys, customers).Query(func(rows pgx.Rows) error {
		var use domain.Use
		var count int64
		_, err := pgx.ForEachRow(rows, []any{&use.Code, &use.Customer, &count}, func() error {
			t.uses[use] = count
			return nil
		})
		return err
	})
}

func (t *tx) Redemption(ctx context.Context, id string) (domain.Redemption, error) {
	return load(ctx, t, &t.redemptions, "redemption", id, t.scanRedemptions, selectRedemptions, idsOf([]string{id}))
}

func (t *tx) scanRedemptions(rows pgx.Rows) error {
	found, err := redemptions(rows)
	for _, r := range found {
		put(&t.redemptions, r.ID, &working[domain.Redemption]{now: r, stored: true})
	}
	return err
}

func (t *tx) PutRedemption(r domain.Redemption) { change(t, &t.redemptions, r.ID, r) }

// load returns a row as the section sees it, and asks the server for one that was not read yet.
func load[T any](ctx context.Context, t *tx, m *map[string]*working[T], what, id string, scan func(pgx.Rows) error, sql string, arg any,
) (none T, err error) {
	if (*m)[id] == nil {
		rows, _ := t.conn.Query(ctx, sql, arg) // scan returns the query's error
		if err := scan(rows); err != nil {
			return none, t.readError(ctx, what+" "+id, err)
		}
	}
	w := (*m)[id]
	if w == nil {
		return none, fmt.Errorf("%s %s: %w", what, id, domain.ErrNotFound)
	}
	return w.now, nil
}

// change puts a row's new state, in a way that can be undone.
func change[T any](t *tx, m *map[string]*working[T], id string, now T) {
	was := (*m)[id]
	next := working[T]{now: now, dirty: true, stored: was != nil && was.stored}
	put(m, id, &next)
	t.undo = append(t.undo, func() {
		if was == nil {
			delete(*m, id)
		} else {
			(*m)[id] = was
		}
	})
}

// note adds to the ledger, in a way that can be undone.
func (t *tx) note(row ledgerRow) {
	t.ledger = append(t.ledger, row)
	t.undo = append(t.undo, func() { t.ledger = t.ledger[:len(t.ledger)-1] })
}

// readError says what a failed read means: the transaction has failed, and with it everybody who is in it.
func (t *tx) readError(ctx context.Context, what string, err error) error {
	t.failed = readError(ctx, what, err)
	return t.failed
}

// writes is what was put: the new absolute states, then what was taken of them, then the ledger. However many sections and
// keys there were, it is one statement for each table.
func (t *tx) writes() *pgx.Batch {
	batch := &pgx.Batch{}
	t.queueItems(batch)
	t.queueCoupons(batch)
	queueReservations(batch, t.reservations)
	queueRedemptions(batch, t.redemptions)
	t.queueLedger(batch)
	t.insertAnswers(batch)
	return batch
}

func (t *tx) queueItems(batch *pgx.Batch) {
	var keys []domain.Key
	var onHand, reserved, sold []int64
	for _, sku := range slices.Sorted(maps.Keys(t.items)) {
		if w := t.items[sku]; w.dirty {
			keys = append(keys, domain.ItemKey(sku))
			onHand, reserved, sold = append(onHand, w.now.OnHand), append(reserved, w.now.Reserved), append(sold, w.now.Sold)
		}
	}
	switch len(keys) {
	case 0:
	case 1:
		batch.Queue(`UPDATE items SET on_hand = $2, reserved = $3, sold = $4 WHERE resource = $1`, keys[0], onHand[0], reserved[0], sold[0])
	default:
		batch.Queue(`UPDATE items AS i SET on_hand = new.on_hand, reserved = new.reserved, sold = new.sold
			  FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (resource, on_hand, reserved, sold)
			 WHERE i.resource = new.resource`, keys, onHand, reserved, sold)
	}
}

func (t *tx) queueCoupons(batch *pgx.Batch) {
	var keys []domain.Key
	var redeemed []int64
	for _, code := range slices.Sorted(maps.Keys(t.coupons)) {
		if w := t.coupons[code]; w.dirty {
			keys, redeemed = append(keys, domain.CouponKey(code)), append(redeemed, w.now.Redeemed)
		}
	}
	if len(keys) > 0 {
		batch.Queue(`UPDATE coupons AS c SET redeemed = new.redeemed
			  FROM unnest($1::text[], $2::bigint[]) AS new (resource, redeemed)
			 WHERE c.resource = new.resource`, keys, redeemed)
	}
}

// grantOf is what the ledger says of a change. On a fenced resource PostgreSQL refuses anything but what was really presented.
func (t *tx) grantOf(key domain.Key) domain.Grant {
	for _, g := range t.grants {
		if g.Key == key {
			return g
		}
	}
	return domain.Grant{Key: key}
}

// settled counts what a change of states has changed. A row that is not there any more as it was read undoes the whole
// transaction, as a serialization failure: it is run again, and reads what the row has become. Under the fence it cannot
// happen.
const settled = `SELECT expect_rows(count(*), $1) FROM settled`

var insertLines = into("reservation_lines", "resource text", "reservation uuid", "quantity bigint", "state text", "customer_id text",
	"created_by text", "created_at timestamptz", "expires_at timestamptz", "settled_at timestamptz")

func queueReservations(batch *pgx.Batch, reservations map[string]*working[domain.Reservation]) {
	var added, changed struct {
		keys              []domain.Key
		ids               []pgtype.UUID
		quantities        []int64
		states            []domain.ReservationState
		customers, makers []string
		created, expires  []time.Time
		settled           []*time.Time
	}
	for _, id := range slices.Sorted(maps.Keys(reservations)) {
		w := reservations[id]
		if !w.dirty {
			continue
		}
		rows := &added
		if w.stored {
			rows = &changed
		}
		for _, line := range w.now.Lines {
			rows.keys, rows.ids = append(rows.keys, domain.ItemKey(line.SKU)), append(rows.ids, idOf(id))
			rows.quantities, rows.states = append(rows.quantities, line.Quantity), append(rows.states, w.now.State)
			rows.customers, rows.makers = append(rows.customers, w.now.CustomerID), append(rows.makers, w.now.CreatedBy)
			rows.created, rows.expires = append(rows.created, w.now.CreatedAt), append(rows.expires, w.now.ExpiresAt)
			rows.settled = append(rows.settled, nullTime(w.now.SettledAt))
		}
	}
	if len(added.keys) > 0 {
		insertLines.queue(batch, added.keys, added.ids, added.quantities, added.states, added.customers, added.makers, added.created, added.expires, added.settled)
	}
	if len(changed.keys) > 0 {
		batch.Queue(`
			WITH settled AS (
				UPDATE reservation_lines AS r SET state = new.state, settled_at = new.settled_at
				  FROM unnest($2::text[], $3::uuid[], $4::text[], $5::timestamptz[]) AS new (resource, reservation, state, settled_at)
				 WHERE r.resource = new.resource AND r.reservation = new.reservation AND r.state = 'held' RETURNING 1)
			`+settled, len(changed.keys), changed.keys, changed.ids, changed.states, changed.settled)
	}
}

var insertRedemptions = into("redemptions", "resource text", "redemption uuid", "customer_id text", "reservation uuid", "state text",
	"created_by text", "created_at timestamptz", "settled_at timestamptz")

func queueRedemptions(batch *pgx.Batch, redemptions map[string]*working[domain.Redemption]) {
	var added, changed struct {
		keys              []domain.Key
		ids, reservations []pgtype.UUID
		states            []domain.RedemptionState
		customers, makers []string
		created           []time.Time
		settled           []*time.Time
	}
	for _, id := range slices.Sorted(maps.Keys(redemptions)) {
		w := redemptions[id]
		if !w.dirty {
			continue
		}
		rows := &added
		if w.stored {
			rows = &changed
		}
		rows.keys, rows.ids = append(rows.keys, domain.CouponKey(w.now.Code)), append(rows.ids, idOf(id))
		rows.reservations, rows.states = append(rows.reservations, idOf(w.now.ReservationID)), append(rows.states, w.now.State)
		rows.customers, rows.makers = append(rows.customers, w.now.CustomerID), append(rows.makers, w.now.CreatedBy)
		rows.created, rows.settled = append(rows.created, w.now.CreatedAt), append(rows.settled, nullTime(w.now.SettledAt))
	}
	if len(added.keys) > 0 {
		insertRedemptions.queue(batch, added.keys, added.ids, added.customers, added.reservations, added.states, added.makers, added.created, added.settled)
	}
	if len(changed.keys) > 0 {
		batch.Queue(`
			WITH settled AS (
				UPDATE redemptions AS r SET state = new.state, settled_at = new.settled_at
				  FROM unnest($2::text[], $3::uuid[], $4::text[], $5::timestamptz[]) AS new (resource, redemption, state, settled_at)
				 WHERE r.resource = new.resource AND r.redemption = new.redemption AND r.state = 'redeemed' RETURNING 1)
			`+settled, len(changed.keys), changed.keys, changed.ids, changed.states, changed.settled)
	}
}

var insertLedger = into("ledger", "resource text", "entry uuid", "kind text", "reference uuid", "on_hand_delta bigint",
	"reserved_delta bigint", "sold_delta bigint", "redeemed_delta bigint", "strategy text", "epoch bigint", "token bigint",
	"grant_id uuid", "turn bigint")

func (t *tx) queueLedger(batch *pgx.Batch) {
	if len(t.ledger) == 0 {
		return
	}
	t.evidence = inLedger(t.ledger[0].key, t.ledger[0].entry)
	var (
		keys                           []domain.Key
		entries, references            []pgtype.UUID
		kinds                          []domain.EntryKind
		onHand, reserved, sold, redeem []int64
		strategies                     []string
		epochs                         []int64
		tokens, turns                  []*int64
		grants                         []pgtype.UUID
	)
	for _, row := range t.ledger {
		keys, kinds = append(keys, row.key), append(kinds, row.why.Kind)
		entries = append(entries, pgtype.UUID{Bytes: row.entry, Valid: true})
		references = append(references, idOf(row.why.Reference))
		onHand, reserved = append(onHand, row.onHandDelta), append(reserved, row.reservedDelta)
		sold, redeem = append(sold, row.soldDelta), append(redeem, row.redeemedDelta)
		g := t.grantOf(row.key)
		strategies, epochs = append(strategies, g.Strategy), append(epochs, g.Epoch)
		tokens, grants = append(tokens, nullToken(g.Token)), append(grants, pgtype.UUID{Bytes: g.ID, Valid: true})
		turns = append(turns, t.turns[row.key])
	}
	insertLedger.queue(batch, keys, entries, kinds, references, onHand, reserved, sold, redeem, strategies, epochs, tokens, grants, turns)
}

// insert is an INSERT of any number of rows. A single one, which is what a cold item has, comes as values: to make it of arrays
// costs the server as much again as to write it.
type insert struct{ one, many string }

// into makes the INSERT into the columns, of which each has its name and type.
func into(table string, columns ...string) insert {
	var names, values, arrays []string
	for i, column := range columns {
		name, kind, _ := strings.Cut(column, " ")
		names = append(names, name)
		values = append(values, fmt.Sprintf("$%d::%s", i+1, kind))
		arrays = append(arrays, values[i]+"[]")
	}
	start := `INSERT INTO ` + table + ` (` + strings.Join(names, ", ") + `) `
	return insert{start + `VALUES (` + strings.Join(values, ", ") + `)`, start + `SELECT * FROM unnest(` + strings.Join(arrays, ", ") + `)`}
}

// queue takes a slice for each column.
func (i insert) queue(batch *pgx.Batch, columns ...any) {
	if reflect.ValueOf(columns[0]).Len() > 1 {
		batch.Queue(i.many, columns...)
		return
	}
	row := make([]any, len(columns))
	for n, values := range columns {
		row[n] = reflect.ValueOf(values).Index(0).Interface()
	}
	batch.Queue(i.one, row...)
}

// idOf is the UUID behind a prefixed id; NULL if there is none, which is also what an id that cannot exist finds.
func idOf(id string) pgtype.UUID {
	_, text, _ := strings.Cut(id, "_")
	u, err := uuid.Parse(text)
	return pgtype.UUID{Bytes: u, Valid: err == nil && u.String() == text} // one way to write an id, not several
}

// idsOf leaves out what cannot be the id of anything.
func idsOf(ids []string) []pgtype.UUID {
	uuids := make([]pgtype.UUID, 0, len(ids))
	for _, id := range ids {
		if u := idOf(id); u.Valid {
			uuids = append(uuids, u)
		}
	}
	return uuids
}

func put[K comparable, T any](m *map[K]T, key K, v T) {
	if *m == nil {
		*m = map[K]T{}
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
