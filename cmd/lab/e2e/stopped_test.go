package e2e_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/domain/postgres/pgproxy"
	"fencepost/domain/postgres/postgrestest"
)

// A holder that is stopped cannot look at its clock, but what it has already sent goes on. There are two moments at which that
// matters: its presentation is on the way, or its writes and the COMMIT are. Each is held back until the holder has been stopped
// for twice its term and somebody else has the lock; then it arrives.
//
// At every other moment the holder has something to send when it goes on, and looks at the lock before it does.
func TestStoppedHolder(t *testing.T) {
	leases := slices.DeleteFunc(fencing(t, start(t, 1, "postgres")[0].URL), func(s string) bool { return s == "postgres" })
	require.NotEmpty(t, leases)
	for _, strategy := range leases {
		t.Run(strategy, func(t *testing.T) { // its tests run side by side: they do not take the lead from each other
			for _, fencing := range []string{"enforced", "off"} {
				t.Run("late presentation, fencing "+fencing, func(t *testing.T) {
					t.Parallel()
					testLatePresentation(t, strategy, fencing)
				})
				t.Run("late write, fencing "+fencing, func(t *testing.T) {
					t.Parallel()
					testLateWrite(t, strategy, fencing)
				})
			}
		})
	}
}

// The holder's second transaction begins when another instance has sold the unit. PostgreSQL refuses it. With the fence off it
// lets the transaction begin, and nothing is left between the holder and its write but its own clock.
func testLatePresentation(t *testing.T, strategy, fencing string) {
	var read atomic.Bool // and committed, before the slow step
	s := stopHolder(t, strategy, fencing, "FENCEPOST_REVIEW_TIME=10ms", func(statement string) bool {
		if statement == "COMMIT" {
			read.Store(true)
		}
		return read.Load() && strings.HasPrefix(statement, "BEGIN")
	})
	sold, sale := reserveAside(t, s.next, s.item)
	await(t, "another instance has sold the unit", sold)
	require.Equal(t, http.StatusCreated, sale.status)
	s.awaitTwoTerms()
	s.letGo()
	state := "idle in transaction"
	if fencing == "enforced" {
		state += " (aborted)"
	}
	require.Eventually(t, func() bool { return s.session(t) == state }, patience, time.Millisecond, "want %s", state)
	require.NoError(t, s.holder.Resume())
	await(t, "the holder is through", s.over)
	t.Logf("%s, fencing %s: the stopped holder was answered %d %s", strategy, fencing, s.answer.status, s.answer.Code)
	if fencing == "off" {
		return
	}
	require.Equal(t, "stale_fencing_token", s.answer.Code)
	require.Equal(t, http.StatusConflict, s.answer.status)
	require.Len(t, reservations(t, s.item), 1, "the unit was sold once")
	requireLedgerAgrees(t, "item/"+s.item)
	var presented, current, newest int64
	require.NoError(t, judge.QueryRow(t.Context(), `
		SELECT presented_token, current_token, token FROM refusals JOIN fences USING (resource)
		WHERE resource = 'item/' || $1 AND reason = 'stale_fencing_token'`, s.item).Scan(&presented, &current, &newest))
	t.Logf("refused: token %d, the fence was at %d", presented, current)
	require.Less(t, presented, current)
	require.Equal(t, newest, current, "the token of the sale")
}

// The holder's writes and its COMMIT are on their way when the lock goes to another instance. That one waits at the fence, where
// the holder has presented, until they have arrived, and finds the unit sold. With the fence off it sells the unit, and then they
// arrive: it is sold twice.
func testLateWrite(t *testing.T, strategy, fencing string) {
	s := stopHolder(t, strategy, fencing, "FENCEPOST_REVIEW_TIME=0s", func(statement string) bool {
		return strings.HasPrefix(statement, "UPDATE items")
	})
	sold, sale := reserveAside(t, s.next, s.item)
	if fencing == "off" {
		await(t, "another instance has sold the unit", sold)
	} else {
		s.awaitBlocked(t)
	}
	s.awaitTwoTerms()
	s.letGo()
	await(t, "another instance is through", sold)
	require.Eventually(t, func() bool { return s.session(t) == "none" }, patience, time.Millisecond, "the transaction has ended")
	require.NoError(t, s.holder.Resume())
	await(t, "the holder is through", s.over)
	t.Logf("%s, fencing %s: the stopped holder was answered %d, the next one %d %s",
		strategy, fencing, s.answer.status, sale.status, sale.Code)
	require.Equal(t, http.StatusCreated, s.answer.status, "what was committed is acknowledged")
	if fencing == "off" {
		require.Equal(t, http.StatusCreated, sale.status)
		require.Len(t, reservations(t, s.item), 2, "without the fence, one unit must be sold twice")
		return
	}
	require.Equal(t, "out_of_stock", sale.Code)
	require.Len(t, reservations(t, s.item), 1, "the unit was sold once")
	requireLedgerAgrees(t, "item/"+s.item)
}

// The holder's term. Two of them must pass before PostgreSQL ends a transaction that is idle, which takes five seconds.
const stoppedTerm = 1500 * time.Millisecond

// stoppedHolder is an instance that was stopped while it has the lock of an item with one unit, with a message to PostgreSQL
// on its way; and an instance that wants the lock.
type stoppedHolder struct {
	holder, next *instances.Instance
	item         string
	over         <-chan struct{} // closed when the holder's request has been answered
	answer       *problem
	stoppedAt    time.Time
	letGo        func() // has the message arrive

	service *pgx.Conn // sees the sessions of its role
	name    string    // of the holder's sessions
}

// stopHolder stops the holder as soon as it has sent the statement that held says. What it sends after that waits as well.
func stopHolder(t *testing.T, strategy, fencing, review string, held func(statement string) bool) *stoppedHolder {
	t.Helper()
	name := uuid.NewString()
	through, err := url.Parse(variable(t, "FENCEPOST_DATABASE_URL"))
	require.NoError(t, err)
	query := through.Query()
	query.Set("application_name", name)
	through.RawQuery = query.Encode()

	var armed atomic.Bool // once the holder has started
	sent, letGo := make(chan struct{}), make(chan struct{})
	proxy := postgrestest.NewProxy(t, through.String(), func(_ *pgproxy.Proxy, r pgproxy.Request) pgproxy.Verdict {
		if armed.Load() && held(r.Statement) && armed.CompareAndSwap(true, false) {
			close(sent)
			<-letGo
		}
		return pgproxy.Pass
	})
	s := &stoppedHolder{
		letGo:   sync.OnceFunc(func() { close(letGo) }),
		service: postgrestest.Connect(t, variable(t, "FENCEPOST_DATABASE_URL")), name: name,
	}
	t.Cleanup(s.letGo)
	s.next = start(t, 1, strategy, "FENCEPOST_FENCING="+fencing, "FENCEPOST_LOCK_WAIT=12s")[0]
	s.item = createStock(t, s.next.URL, 1)
	// With one connection, the slow step ends and begins on the same one.
	s.holder = start(t, 1, strategy, "FENCEPOST_DATABASE_URL="+proxy.URL, "FENCEPOST_DATABASE_CONNS=1",
		"FENCEPOST_LEASE_TTL="+stoppedTerm.String(), review,
		"FENCEPOST_SWEEP_INTERVAL=1m", "FENCEPOST_AUDIT_INTERVAL=0")[0] // no sessions that have nothing to do with it
	armed.Store(true)
	s.over, s.answer = reserveAside(t, s.holder, s.item)
	await(t, "the message is on its way", sent)
	require.NoError(t, s.holder.Pause())
	s.stoppedAt = time.Now()
	return s
}

// awaitTwoTerms returns when the holder has been stopped for so long.
func (s *stoppedHolder) awaitTwoTerms() {
	time.Sleep(time.Until(s.stoppedAt.Add(2 * stoppedTerm))) // a pause is time that passes, and nothing tells its end
}

// session is what the holder's session is doing.
func (s *stoppedHolder) session(t *testing.T) (state string) {
	t.Helper()
	require.NoError(t, s.service.QueryRow(t.Context(), `
		SELECT COALESCE(max(state), 'none') FROM pg_stat_activity
		WHERE application_name = $1 AND state LIKE 'idle in transaction%'`, s.name).Scan(&state))
	return state
}

// awaitBlocked returns when a session waits for the holder's.
func (s *stoppedHolder) awaitBlocked(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() (blocked bool) {
		require.NoError(t, s.service.QueryRow(t.Context(), `
			SELECT EXISTS (SELECT FROM pg_stat_activity holder, pg_stat_activity waiter
			               WHERE holder.application_name = $1 AND holder.pid = ANY (pg_blocking_pids(waiter.pid)))`, s.name).Scan(&blocked))
		return blocked
	}, patience, time.Millisecond, "nobody waits for the holder's transaction")
}

func await(t *testing.T, what string, signal <-chan struct{}) {
	t.Helper()
	select {
	case <-signal:
	case <-time.After(patience):
		t.Fatalf("within %s not seen: %s", patience, what)
	}
}
