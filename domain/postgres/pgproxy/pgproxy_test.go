package pgproxy_test

import (
	"context"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/pgproxy"
	"fencepost/domain/postgres/postgrestest"
)

// A message is held back until it is let go; meanwhile the server has not seen it. An error of the server is told.
func TestProxy(t *testing.T) {
	t.Parallel()
	database := postgrestest.Empty(t)
	held, let := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var refused []pgproxy.Error
	p, err := pgproxy.Start(database.OwnerURL, pgproxy.Watch{
		Judge: func(_ *pgproxy.Proxy, r pgproxy.Request) pgproxy.Verdict {
			if r.Statement == `INSERT INTO things VALUES ($1)` && r.Mentions("late") {
				close(held)
				<-let
			}
			return pgproxy.Pass
		},
		Refused: func(e pgproxy.Error) {
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, e)
		},
	})
	require.NoError(t, err)
	t.Cleanup(p.Close)
	through := postgrestest.Connect(t, p.URL)
	_, err = through.Exec(t.Context(), `CREATE TABLE things (name text PRIMARY KEY)`)
	require.NoError(t, err)
	insert := func(ctx context.Context, name string) error {
		_, err := through.Exec(ctx, `INSERT INTO things VALUES ($1)`, name)
		return err
	}
	require.NoError(t, insert(t.Context(), "early"))
	done := make(chan error, 1)
	go func() { done <- insert(t.Context(), "late") }()
	<-held
	past := postgrestest.Connect(t, database.OwnerURL)
	require.Equal(t, []string{"early"}, things(t, past))
	close(let)
	require.NoError(t, <-done)
	require.Equal(t, []string{"early", "late"}, things(t, past))

	require.Error(t, insert(t.Context(), "early"))
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []pgproxy.Error{{SQLState: "23505", Detail: "Key (name)=(early) already exists."}}, refused)
}

// A request to cancel does not go where the sessions go that come later.
func TestCancelGoesToTheFirst(t *testing.T) {
	t.Parallel()
	database := postgrestest.Empty(t)
	p, err := pgproxy.Start(database.OwnerURL, pgproxy.Watch{Judge: func(*pgproxy.Proxy, pgproxy.Request) pgproxy.Verdict { return pgproxy.Pass }})
	require.NoError(t, err)
	t.Cleanup(p.Close)
	server, err := url.Parse(database.OwnerURL)
	require.NoError(t, err)
	p.Route(server.Host, "127.0.0.1:1")
	first, past := postgrestest.Connect(t, p.URL), postgrestest.Connect(t, database.OwnerURL)
	_, err = pgx.Connect(t.Context(), p.URL)
	require.Error(t, err, "nobody is there")

	done := make(chan error, 1)
	go func() {
		_, err := first.Exec(t.Context(), `SELECT pg_sleep(60)`)
		done <- err
	}()
	require.Eventually(t, func() (sleeps bool) {
		err := past.QueryRow(t.Context(),
			`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')`).Scan(&sleeps)
		return err == nil && sleeps
	}, 30*time.Second, time.Millisecond)
	require.NoError(t, first.PgConn().CancelRequest(t.Context()))
	var canceled *pgconn.PgError
	require.ErrorAs(t, <-done, &canceled)
	require.Equal(t, "57014", canceled.Code)
}

func things(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	rows, _ := conn.Query(ctx, `SELECT name FROM things ORDER BY name`)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}
