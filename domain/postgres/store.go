// Package postgres is the store: the SQL of the use cases beside the functions that need it, and the transactions in which
// grants are presented to the fence.
//
// It promises that a transaction presents every grant before its first read, that what a section has put is written or not
// written as a whole, that a section uses one connection and never waits for a second one, and that an error says whether
// something was written. SQLSTATEs and driver errors stop here: what leaves is an error of package domain or a fault of ours.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"fencepost/domain"
)

// Options of a store.
type Options struct {
	MaxConns int32  // connections for requests; three more are kept for health checks and sweeps, and an audit opens one for itself
	Instance string // names this process in recorded refusals
	Log      *slog.Logger
	Traces   trace.TracerProvider // of what is done for requests; nil: nobody traces
}

// Store is one PostgreSQL database, reached as the service's role. It is safe for concurrent use.
type Store struct {
	pool *pgxpool.Pool
	// health has connections of its own: a pool that is drained by slow requests is busy, not broken.
	health *pgxpool.Pool
	// sweeps has one too: a sweep keeps its transaction open while sections take their connections from pool.
	sweeps   *pgxpool.Pool
	instance string
	log      *slog.Logger
}

// The server ends what this process cannot end any more, because it is paused or cut off: a holder of row locks that
// stopped in the middle of a transaction would otherwise keep everybody waiting for ever.
const (
	statementTimeout = 15 * time.Second
	idleTimeout      = 5 * time.Second // in a transaction, between two statements
)

// cancelGrace is how long the server is given to act on a cancelled query before the connection is given up.
const cancelGrace = 2 * time.Second

// Open connects, and refuses a server that could lose or admit what the fence promises: weakened durability, a role that
// owns the tables or may build beside them, a schema that is not there.
func Open(ctx context.Context, url string, o Options) (*Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	config.MaxConns = max(o.MaxConns, 1)
	if config.ConnConfig.ValidateConnect == nil {
		// Of several hosts, or behind an address that moves, the one that takes writes: a standby would refuse every section,
		// and knows nothing of a COMMIT whose answer was lost a moment ago.
		config.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "fencepost " + o.Instance
	}
	// By default pgx drops the connection of a cancelled query at once and dials the next, while the server still works on
	// the first: under a storm of cancellations the server runs out of connections. Ask it to stop instead.
	config.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &canceller{conn: conn}
	}
	config.PrepareConn = usable
	s := &Store{instance: o.Instance, log: o.Log}
	healthConfig := config.Copy()
	if o.Traces != nil {
		config.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithTracerProvider(o.Traces), otelpgx.WithDisableConnectionDetailsInAttributes())
	}
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("preparing the connection pool: %w", err)
	}
	healthConfig.MaxConns = 2 // who asks for the reigns must not make the instance look dead
	if s.health, err = pgxpool.NewWithConfig(ctx, healthConfig); err != nil {
		s.pool.Close()
		return nil, fmt.Errorf("preparing the health connection: %w", err)
	}
	sweepConfig := healthConfig.Copy()
	sweepConfig.MaxConns = 1
	if s.sweeps, err = pgxpool.NewWithConfig(ctx, sweepConfig); err != nil {
		s.pool.Close()
		s.health.Close()
		return nil, fmt.Errorf("preparing the connection for sweeps: %w", err)
	}
	if err := s.check(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close waits for connections in use and closes all.
func (s *Store) Close() {
	s.pool.Close()
	s.health.Close()
	s.sweeps.Close()
}

// PoolStat is the state of the connections for requests.
func (s *Store) PoolStat() *pgxpool.Stat { return s.pool.Stat() }

// Ping asks the server for a sign of life, on a connection that requests cannot use up.
func (s *Store) Ping(ctx context.Context) error {
	err := s.health.Ping(ctx)
	if err != nil && ctx.Err() == nil {
		s.health.Reset() // after a restart of the server all connections from before are dead, and each would say so once
		err = s.health.Ping(ctx)
	}
	return plain(err)
}

func (s *Store) check(ctx context.Context) error {
	if err := s.Ping(ctx); err != nil {
		return err
	}
	var fsync, fullPageWrites, synchronousCommit, isolation string
	var migrated, owner, creator, writer bool
	err := s.health.QueryRow(ctx, `
		SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
		       current_setting('default_transaction_isolation'), to_regclass('public.ledger') IS NOT NULL,
		       COALESCE((SELECT pg_has_role(relowner, 'MEMBER') FROM pg_class WHERE oid = to_regclass('public.fences')), false),
		       has_schema_privilege('public', 'CREATE'),
		       COALESCE((SELECT bool_or(has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER'))
		                   FROM pg_class WHERE oid IN (to_regclass('public.fences'), to_regclass('public.authorities'))), false)`).
		Scan(&fsync, &fullPageWrites, &synchronousCommit, &isolation, &migrated, &owner, &creator, &writer)
	switch {
	case err != nil:
		return fmt.Errorf("checking the server: %w", plain(err))
	case fsync != "on" || fullPageWrites != "on" || synchronousCommit == "off":
		return fmt.Errorf("PostgreSQL may lose what it has acknowledged (fsync=%s, full_page_writes=%s, synchronous_commit=%s): switch all three on",
			fsync, fullPageWrites, synchronousCommit)
	case isolation != "read committed":
		// Statements that are transactions by themselves count what others have committed while they waited for their turn,
		// which a snapshot from before the wait does not show.
		return fmt.Errorf("transactions are %s by default, and have to be read committed: ALTER ROLE fencepost_service SET default_transaction_isolation = 'read committed'",
			isolation)
	case !migrated:
		return errors.New("the database has no Fencepost schema yet: run 'fencepost migrate' with FENCEPOST_OWNER_URL set")
	case owner:
		return errors.New("the role in FENCEPOST_DATABASE_URL owns the tables and could switch the fence off: connect as fencepost_service")
	case creator: // as its owner it could drop the tables, and anybody could slip a function between those of the fence
		return errors.New("the role in FENCEPOST_DATABASE_URL may create objects in the schema public and could get round the fence: REVOKE CREATE ON SCHEMA public")
	case writer: // pg_write_all_data, or a careless GRANT
		return errors.New("the role in FENCEPOST_DATABASE_URL may write to fences or authorities past the fence's functions: REVOKE that right")
	}
	return nil
}

// The longest that ending a transaction may take. It is not bound to the request: a COMMIT that is under way is awaited
// even when the caller is gone, because giving up on it would only make the outcome unknown.
const endTimeout = 5 * time.Second

// A transaction that the server aborted for the sake of others (deadlock, serialization) is tried again so many times.
const maxTries = 5

// Transact runs sections, one after the other, in a READ COMMITTED transaction that has presented the grants, in the given
// order, before anything else. lockWait bounds each wait for a row; with skipLocked, a fence's row that somebody else has
// locked is not waited for, and the sections for it fail with domain.ErrRowLocked. collect says which sections; they run again
// when the server aborted the transaction for the sake of others. The receipt has the grants with the tokens that row locks
// drew.
//
// outcomes has the error of each section: one that failed has changed nothing, and the others are committed without it. An
// err is everybody's: nothing was written, unless it is domain.ErrOutcomeUnknown.
func (s *Store) Transact(ctx context.Context, grants []domain.Grant, lockWait time.Duration, skipLocked bool, collect domain.Collect,
) (receipt domain.Receipt, outcomes []error, err error) {
	var sections []domain.Section
	known := 0 // so many of them the transaction has read for
	gather := func(presented bool) (wanted reads) {
		sections = append(sections, collect(presented)...)
		outcomes = make([]error, len(sections))
		for _, section := range sections[known:] {
			wanted.Reservations = append(wanted.Reservations, section.Reads.Reservations...)
			wanted.Redemptions = append(wanted.Redemptions, section.Reads.Redemptions...)
			wanted.Uses = append(wanted.Uses, section.Reads.Uses...)
			if once := section.Once; once != nil {
				wanted.answers = append(wanted.answers, answerID{once.Caller, once.Key})
			}
		}
		known = len(sections)
		return wanted
	}
	begin := func() *tx {
		known = 0
		return &tx{store: s, grants: slices.Clone(grants), lockWait: lockWait, skipLocked: skipLocked}
	}
	receipt, err = s.transact(ctx, begin, gather, func(ctx context.Context, t *tx) error {
		idle := true
		for i, section := range sections {
			outcomes[i] = t.run(ctx, section)
			if t.failed != nil {
				return t.failed
			}
			idle = idle && outcomes[i] != nil && (section.Once == nil || !domain.Final(outcomes[i]))
		}
		if idle {
			return errNothingToDo
		}
		return nil
	})
	if errors.Is(err, errNothingToDo) {
		err = nil
	}
	return receipt, outcomes, err
}

// errNothingToDo rolls a transaction back in which every section was refused and none of them leaves an answer: that costs
// the server no write.
var errNothingToDo = errors.New("no section of the transaction has anything to write")

// transact runs fn in a transaction; in a new one, which begin makes, when the server has aborted it for the sake of others.
func (s *Store) transact(ctx context.Context, begin func() *tx, gather func(presented bool) reads, fn func(context.Context, *tx) error,
) (receipt domain.Receipt, err error) {
	began := time.Now()
	var waited, gathering time.Duration
	timed := func(presented bool) reads {
		began := time.Now()
		defer func() { gathering += time.Since(began) }() // it may wait for somebody to come, and that is nobody's
		return gather(presented)
	}
	for try := 1; ; try++ {
		receipt, err = begin().transact(ctx, timed, fn)
		waited += receipt.LockWait
		if !aborted(err) || try == maxTries || pauseBeforeRetry(ctx, try) != nil {
			break
		}
	}
	receipt.LockWait, receipt.Database = waited, time.Since(began)-waited-gathering
	return receipt, err
}

func (t *tx) transact(ctx context.Context, gather func(presented bool) reads, fn func(context.Context, *tx) error) (receipt domain.Receipt, err error) {
	defer t.end(ctx) // also on a panic of fn
	defer func() { receipt.Grants, receipt.LockWait = t.grants, t.waited }()

	if err := t.open(ctx, gather); err != nil {
		return receipt, err
	}
	if err := fn(ctx, t); err != nil {
		return receipt, err
	}
	// The last look at the lock. From here on loss cannot stop the transaction any more, and need not: the fence's row is
	// ours until COMMIT, so nobody has read what this COMMIT changes.
	if ctx.Err() != nil {
		return receipt, context.Cause(ctx)
	}
	sent, err := t.commit(ctx, t.writes())
	if !sent {
		return receipt, err
	}
	t.end(ctx) // before asking for another: a section never holds one connection while it waits for the next
	return receipt, t.store.settle(ctx, t, err)
}

// acquire takes a connection. Waiting for one counts like waiting for a lock.
func (s *Store) acquire(ctx context.Context, wait time.Duration) (*pgxpool.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	conn, err := s.pool.Acquire(bounded)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		return nil, &domain.UnavailableError{Server: "PostgreSQL", Err: fmt.Errorf("no connection within %s: %w", wait, err)}
	}
	return conn, domainError(ctx, err)
}

// settle turns the error of a COMMIT that was sent into the truth. A reply that was lost does not mean that nothing was
// written: the server is asked what became of the transaction, on a connection that requests cannot use up.
//
// The transaction's number alone does not tell. A server that crashes before it has written the number down gives it to
// somebody else when it is back, and "committed" would be his. So it counts only if a row of the transaction's own is there.
func (s *Store) settle(ctx context.Context, t *tx, err error) error {
	if err == nil {
		return nil
	}
	if t.evidence == nil { // it has put nothing, so nothing can have been written
		return &domain.UnavailableError{Server: "PostgreSQL", Err: err}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	for {
		switch ended, askErr := s.ended(ctx, t.xid); {
		case askErr != nil: // the server is not back yet
		case ended:
			var written, standby bool
			askErr := s.health.QueryRow(ctx, `SELECT EXISTS (`+t.evidence.sql+`), pg_is_in_recovery()`, t.evidence.args...).Scan(&written, &standby)
			if askErr == nil && written {
				return nil
			}
			if askErr == nil && !standby {
				return &domain.UnavailableError{Server: "PostgreSQL", Err: fmt.Errorf("the transaction did not commit: %w", err)}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", domain.ErrOutcomeUnknown, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ended tells whether the transaction with this number is over. It is asked before its rows are looked for, and not
// together with them: one statement sees the rows as they were when it began. A standby does not know: it may be behind.
func (s *Store) ended(ctx context.Context, xid string) (bool, error) {
	var status *string
	err := s.health.QueryRow(ctx, `
		SELECT CASE WHEN pg_is_in_recovery() THEN 'in progress' ELSE pg_xact_status($1::text::xid8) END`, xid).Scan(&status)
	if sqlState(err) == stateInvalidParameter {
		return true, nil // "in the future": the server has crashed and has not given the number to anybody yet
	}
	return err == nil && (status == nil || *status != "in progress"), err
}

// RecordRefusal keeps what the fence turned away. It runs after the refused transaction has ended, because that one takes
// everything that it wrote with it.
func (s *Store) RecordRefusal(ctx context.Context, r domain.Refusal) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO refusals (id, resource, reason, strategy, presented_epoch, presented_token, presented_grant,
		                      current_epoch, current_token, current_grant, instance)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		newUUID(), r.Grant.Key, r.Reason, r.Grant.Strategy, r.Grant.Epoch, r.Grant.Token, r.Grant.ID,
		r.CurrentEpoch, r.CurrentToken, pgtype.UUID{Bytes: r.CurrentGrant, Valid: r.CurrentGrant != domain.GrantID{}}, s.instance)
	return plain(err)
}

const authorityColumns = `scope, strategy, fingerprint, epoch, since, decided_by`

func scanAuthority(row pgx.CollectableRow) (a domain.Authority, err error) {
	err = row.Scan(&a.Scope, &a.Strategy, &a.Fingerprint, &a.Epoch, &a.Since, &a.DecidedBy)
	return a, err
}

// one returns the only row of a query; domain.ErrNotFound if there is none.
func one[T any](ctx context.Context, s *Store, scan pgx.RowToFunc[T], what, sql string, args ...any) (T, error) {
	rows, _ := s.pool.Query(ctx, sql, args...) // CollectOneRow returns the query's error
	v, err := pgx.CollectOneRow(rows, scan)
	if err != nil {
		return v, readError(ctx, what, err)
	}
	return v, nil
}

// Authority is the one in charge of the resource; domain.ErrNotFound if there is no such resource.
func (s *Store) Authority(ctx context.Context, key domain.Key) (domain.Authority, error) {
	return one(ctx, s, scanAuthority, string(key),
		`SELECT `+authorityColumns+` FROM authorities WHERE scope = (SELECT scope FROM fences WHERE resource = $1)`, key)
}

// AuthorityOf is the one in charge of the scope.
func (s *Store) AuthorityOf(ctx context.Context, scope domain.Scope) (domain.Authority, error) {
	return one(ctx, s, scanAuthority, "the authority of "+string(scope),
		`SELECT `+authorityColumns+` FROM authorities WHERE scope = $1`, scope)
}

// ClaimAuthority puts the strategy in charge of the scope, with a new epoch unless it already is, and returns who is in
// charge then: an operator's order outranks the configuration. With by empty only the fingerprint changes, and only while the
// strategy is in charge.
func (s *Store) ClaimAuthority(ctx context.Context, scope domain.Scope, strategy, fingerprint string, by domain.Decider) (domain.Authority, error) {
	return one(ctx, s, scanAuthority, "the authority of "+string(scope),
		`SELECT `+authorityColumns+` FROM claim_authority($1, $2, $3, NULLIF($4, '')) WHERE scope IS NOT NULL`, scope, strategy, fingerprint, by)
}

// SwitchResource puts the strategy in charge of the one resource; without a strategy, the authority of its kind.
func (s *Store) SwitchResource(ctx context.Context, key domain.Key, strategy, fingerprint string) (domain.Authority, error) {
	return one(ctx, s, scanAuthority, "the authority of "+string(key),
		`SELECT `+authorityColumns+` FROM switch_resource($1, NULLIF($2, ''), $3)`, key, strategy, fingerprint)
}

// Fenced tells whether fencing is enforced for the resource of this name, or for any of the scope.
func (s *Store) Fenced(ctx context.Context, scope domain.Scope) (bool, error) {
	return one(ctx, s, pgx.RowTo[bool], "the fencing of "+string(scope),
		`SELECT EXISTS (SELECT FROM fences WHERE (resource = $1 OR scope = $1) AND fencing = 'enforced')`, scope)
}

// RaiseEpoch begins a new reign of the same authority, unless the epoch is not from any more.
func (s *Store) RaiseEpoch(ctx context.Context, scope domain.Scope, from int64) (domain.Authority, error) {
	return one(ctx, s, scanAuthority, "the authority of "+string(scope),
		`SELECT `+authorityColumns+` FROM raise_epoch($1, $2) WHERE scope IS NOT NULL`, scope, from)
}

// Reigns lists the authorities of the two shared scopes. It is asked whenever somebody wants to know whether an instance is ready,
// so it costs the same however many resources there are.
func (s *Store) Reigns(ctx context.Context) ([]domain.Authority, error) {
	rows, _ := s.health.Query(ctx, `SELECT `+authorityColumns+` FROM authorities WHERE scope IN ('inventory', 'coupons') ORDER BY scope`)
	shared, err := pgx.CollectRows(rows, scanAuthority)
	if err != nil {
		return nil, fmt.Errorf("reading the authorities: %w", domainError(ctx, err))
	}
	return shared, nil
}

// OwnReigns counts, per strategy, the resources that have an authority of their own.
func (s *Store) OwnReigns(ctx context.Context) (map[string]int64, error) {
	own := map[string]int64{}
	// A resource that went back to the authority of its kind has left its own behind: the fence says whom it follows.
	rows, _ := s.health.Query(ctx, `
		SELECT a.strategy, count(*) FROM authorities a JOIN fences f ON (f.resource, f.scope) = (a.scope, a.scope) GROUP BY a.strategy`)
	var strategy string
	var count int64
	_, err := pgx.ForEachRow(rows, []any{&strategy, &count}, func() error { own[strategy] = count; return nil })
	if err != nil {
		return nil, fmt.Errorf("counting the authorities: %w", domainError(ctx, err))
	}
	return own, nil
}
