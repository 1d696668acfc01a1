// Package lockingtest is the conformance suite: what every strategy of the table has to do on real servers, and what a
// strategy that excludes nobody must be seen to fail at. It is for tests alone.
//
// A node stands for an instance: it has its own connections, its own lock clients and its own memory of who is in charge.
// Nothing here sleeps to be right. A lease is lost when a test breaks it; a transaction is known to wait when PostgreSQL
// says that it waits.
package lockingtest

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/postgrestest"
	"fencepost/locking"
	"fencepost/locking/strategies"
)

const (
	// longTerm is a term that no test outlives: whoever waits for its end instead of the release has failed.
	longTerm = time.Minute
	// shortTerm is for the tests in which a renewal has to happen.
	shortTerm = 900 * time.Millisecond
	// deadline bounds every wait of the suite. It is never waited for when all is well.
	deadline = 20 * time.Second
)

// The tests, and which strategies each is for: one in which nobody waits cannot hand over, one whose lock ends with its
// transaction cannot outlive it.
var suite = []struct {
	name    string
	applies func(strategies.Traits) bool
	test    func(*testing.T, *world)
}{
	{"holders meet only without a lock", everybody, testHoldersMeet},
	{"read-modify-write sums up only under a lock", everybody, testSum},
	{"a lock of one process excludes nobody in another", oneProcess, testTwoProcesses},
	{"keys that share transactions lose no update", exclusive, testKeysShareTransactions},
	{"a locked row keeps only its own key waiting", fences, testLockedRow},
	{"a release lets the next in at once", exclusive, testHandOver},
	{"an error rolls back and releases", everybody, testErrorInSection},
	{"a panic rolls back and releases", everybody, testPanicInSection},
	{"a panic while the answer is made rolls back and releases", everybody, testPanicInAnswer},
	{"reversed and overlapping key sets do not deadlock", everybody, testManyKeys},
	{"a failed acquire of several keys gives back the first", exclusive, testPartialAcquire},
	{"tokens rise over release and a new process", fences, testTokensRise},
	{"tokens rise over expiry", expires, testTokensRiseOverExpiry},
	{"a broken lease stops the section", expires, testBrokenLease},
	{"a broken connection stops the section", rowLocks, testBrokenConnection},
	{"a paused holder's late write", expires, testPausedBeforeTransaction},
	{"a pause between read and write", expires, testPausedInTransaction},
	{"a pause in a slow step", expires, testPausedInSlowStep},
	{"a slow step keeps the others out", exclusive, testSlowStep},
	{"a wake between the successor's read and write", expires, testWakeBetweenReadAndWrite},
	{"a lost lease frees nobody else's lock", expires, testLostLease},
	{"the term of a vanished holder ends", expires, testVanishedHolder},
	{"a strategy without tokens is refused where fencing is enforced", unfenced, testUnfenced},
	{"a counter that has gone back is healed", fences, testHealing},
	{"a superseded instance is refused and not ready", fences, testSuperseded},
	{"an operator's order is followed by who can", fences, testOrder},
	{"an operator's order for one item", fences, testOrderForOne},
	{"an epoch of the scope is not taken for the item's own", fences, testEqualEpochs},
	{"orders under load lose no update", fences, testOrderUnderLoad},
}

func everybody(strategies.Traits) bool    { return true }
func exclusive(t strategies.Traits) bool  { return t.Exclusive }
func oneProcess(t strategies.Traits) bool { return t.Exclusive && !t.Distributed }
func expires(t strategies.Traits) bool    { return t.Expires }
func rowLocks(t strategies.Traits) bool   { return t.Exclusive && t.Fences && !t.Expires }
func fences(t strategies.Traits) bool     { return t.Fences }
func unfenced(t strategies.Traits) bool   { return !t.Fences }

// Instance is how each instance of a suite is set up.
type Instance struct {
	PoolSize int32 // connections to PostgreSQL
	MaxBatch int   // sections that may share a lock and a transaction
}

// Run holds one row of the table to its promises.
func Run(t *testing.T, row strategies.Strategy, config strategies.Config, instance Instance) {
	for _, s := range suite {
		if s.applies(row.Traits) {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				s.test(t, newWorld(t, row, config, instance))
			})
		}
	}
}

// world is one test's database with a few items in it, and the strategy under test.
type world struct {
	t        *testing.T
	row      strategies.Strategy
	config   strategies.Config
	instance Instance
	db       postgrestest.Database
	observer *pgx.Conn // the owner: looks at the database without using an instance's pool
	mu       sync.Mutex
}

func newWorld(t *testing.T, row strategies.Strategy, config strategies.Config, instance Instance) *world {
	db, owner := postgrestest.Reused(t)
	return newWorldIn(t, db, owner, row, config, instance)
}

func newWorldIn(t *testing.T, db postgrestest.Database, owner *pgx.Conn, row strategies.Strategy, config strategies.Config, instance Instance) *world {
	config.LeaseTTL = longTerm
	config.Log = slog.New(slog.DiscardHandler)
	return &world{t: t, row: row, config: config, instance: instance, db: db, observer: owner}
}

// node is an instance.
type node struct {
	*locking.Guard
	store   *postgres.Store
	backend *locking.Backend
	watch   watch
}

// watch keeps the events of a node.
type watch struct {
	mu     sync.Mutex
	events []domain.Event
}

func (w *watch) observe(e domain.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// of returns the events of a kind, in their order.
func (w *watch) of(kind domain.EventKind) (events []domain.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Kind == kind {
			events = append(events, e)
		}
	}
	return events
}

// node starts an instance. change may alter its backend before the guard is made, or replace the guard's database.
func (w *world) node(change ...func(*locking.Backend, *locking.Database)) *node {
	w.t.Helper()
	backends, err := strategies.Open(w.config)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = backends.Close() })
	store := w.db.Store(w.t, w.instance.PoolSize)
	n := &node{store: store}
	for _, b := range backends {
		if b.Name == w.row.Name {
			n.backend = b
		}
	}
	var database locking.Database = store
	for _, f := range change {
		f(n.backend, &database)
	}
	n.Guard = locking.NewGuard(database, backends, locking.Options{
		LockWait: deadline, MaxBatch: w.instance.MaxBatch, MaxQueue: 1000, Log: w.config.Log, Observe: n.watch.observe,
		MaxTransactions: max(int(w.instance.PoolSize)/4, 1),
	})
	w.t.Cleanup(n.Wait) // before the servers are left
	// Again if need be, as whoever runs instances starts one again: servers that are electing a leader have no answer yet.
	w.eventually("the instance has started", func() bool {
		err = n.Claim(w.t.Context(), map[domain.Scope]string{
			domain.ScopeInventory: w.row.Name, domain.ScopeCoupons: w.row.Name,
		})
		return !errors.Is(err, domain.ErrUnavailable)
	})
	require.NoError(w.t, err)
	return n
}

// peer starts another instance that shares n's lock: by itself if the lock reaches other processes; otherwise it stands
// for another goroutine of n's process.
func (w *world) peer(n *node) *node {
	w.t.Helper()
	if w.row.Traits.Distributed || !w.row.Traits.Exclusive {
		return w.node()
	}
	return w.node(func(b *locking.Backend, _ *locking.Database) { b.Locker = n.backend.Locker })
}

// pair starts two instances that share a lock.
func (w *world) pair() (*node, *node) {
	w.t.Helper()
	n := w.node()
	return n, w.peer(n)
}

// fencing is what the strategy can do.
func (w *world) fencing() domain.Fencing {
	if w.row.Traits.Fences {
		return domain.FencingEnforced
	}
	return domain.FencingOff
}

// item makes an item with nothing in stock. Names are unique, because all tests share the lock servers.
func (w *world) item(n *node, fencing domain.Fencing) domain.Key {
	w.t.Helper()
	sku := uuid.NewString()
	_, err := n.store.CreateItem(w.t.Context(), domain.Item{SKU: sku, Name: w.t.Name()}, domain.LockSpec{Fencing: fencing}, nil)
	require.NoError(w.t, err)
	return domain.ItemKey(sku)
}

// stock is what is really stored.
func (w *world) stock(key domain.Key) (onHand int64) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	require.NoError(w.t, w.observer.QueryRow(w.t.Context(), `SELECT on_hand FROM items WHERE resource = $1`, key).Scan(&onHand))
	return onHand
}

// waitUntilBlocked returns when a transaction of this database waits for a row, or stop is closed.
func (w *world) waitUntilBlocked(stop <-chan struct{}) {
	w.t.Helper()
	w.eventually("a transaction waits for a row", func() bool {
		select {
		case <-stop:
			return true
		default:
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		var waiting bool
		require.NoError(w.t, w.observer.QueryRow(w.t.Context(), `
			SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			                WHERE a.datname = current_database() AND NOT l.granted)`).Scan(&waiting))
		return waiting
	})
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for began := time.Now(); !ok(); {
		if time.Since(began) > deadline {
			w.t.Fatalf("within %s: not seen: %s", deadline, what)
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

// add is the read-modify-write that every test uses: one more unit in stock.
func add(ctx context.Context, tx domain.Tx, key domain.Key) error {
	item, err := tx.Item(ctx, key.Name())
	if err != nil {
		return err
	}
	if err := item.Restock(1); err != nil {
		return err
	}
	tx.PutItem(item, domain.Entry{Kind: domain.EntryRestock})
	return nil
}

// do runs fn as a section.
func (n *node) do(ctx context.Context, keys []domain.Key, fn func(context.Context, domain.Tx) error) (domain.Receipt, error) {
	return n.Do(ctx, domain.Section{Keys: keys, Run: fn})
}

// addTo adds one unit in a section of its own.
func (n *node) addTo(ctx context.Context, keys ...domain.Key) (domain.Receipt, error) {
	return n.do(ctx, keys, func(ctx context.Context, tx domain.Tx) error {
		for _, key := range keys {
			if err := add(ctx, tx, key); err != nil {
				return err
			}
		}
		return nil
	})
}

// canEnter asserts that a peer of n gets in without waiting for anybody's term to end.
func (w *world) canEnter(n *node, key domain.Key) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), deadline/2)
	defer cancel()
	_, err := w.peer(n).addTo(ctx, key)
	require.NoError(w.t, err)
}

// breaker is a lease strategy whose lock an operator can take away.
type breaker interface {
	Break(ctx context.Context, key domain.Key) (bool, error)
}

// breakLock takes the lock away from its holder, as the end of the term would.
func (w *world) breakLock(n *node, key domain.Key) {
	w.t.Helper()
	locker := n.backend.Locker
	if p, ok := locker.(*pausing); ok {
		locker = p.Locker
	}
	b, ok := locker.(breaker)
	require.True(w.t, ok, "a strategy whose locks expire must let a test break them")
	held, err := b.Break(w.t.Context(), key)
	require.NoError(w.t, err)
	require.True(w.t, held, "there must be a lock to break")
}

// pausing stops a holder right after it got the lock, as a long garbage collection would.
type pausing struct {
	locking.Locker
	acquired chan struct{} // closed when the lock is held
	resume   chan struct{}
	once     atomic.Bool
}

func (p *pausing) Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
	lease, err := p.Locker.Acquire(ctx, key, id)
	if err == nil && p.once.CompareAndSwap(false, true) {
		close(p.acquired)
		<-p.resume
	}
	return lease, err
}

// pausingNode is an instance whose first holder pauses.
func (w *world) pausingNode(change ...func(*locking.Backend, *locking.Database)) (*node, *pausing) {
	w.t.Helper()
	p := &pausing{acquired: make(chan struct{}), resume: make(chan struct{})}
	change = append(change, func(b *locking.Backend, _ *locking.Database) {
		p.Locker = b.Locker
		b.Locker = p
	})
	return w.node(change...), p
}

// async runs f beside the test; the channel is closed when it has returned, with its error stored.
func async(f func() error) (done <-chan struct{}, result *error) {
	finished, err := make(chan struct{}), new(error)
	go func() {
		defer close(finished)
		*err = f()
	}()
	return finished, err
}

// await waits for a signal of the test.
func (w *world) await(what string, signal <-chan struct{}) {
	w.t.Helper()
	select {
	case <-signal:
	case <-time.After(deadline):
		w.t.Fatalf("within %s: not seen: %s", deadline, what)
	}
}
