// Package postgrestest gives each test a database of its own. The schema is migrated once per process into a template;
// each test gets a copy, and the copy is dropped when the test ends, or emptied for the next one. It is for tests alone.
//
// With NewProxy a test can strike at a chosen message between a client and the server.
//
// It needs FENCEPOST_OWNER_URL and FENCEPOST_DATABASE_URL, as 'lab exec' sets them, and an owner who may create databases.
package postgrestest

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres"
	"fencepost/migrations"
)

// Database is a test's own database, with the schema and nothing in it.
type Database struct {
	OwnerURL   string
	ServiceURL string
	name       string
	kept       *kept // of one that is Reused; else nil
}

// New makes a database for the test.
func New(tb testing.TB) Database {
	tb.Helper()
	template, err := migrated()
	require.NoError(tb, err)
	return create(tb, template)
}

// Empty makes a database without a schema.
func Empty(tb testing.TB) Database {
	tb.Helper()
	return create(tb, "template0")
}

// Store opens a store on the database as the service's role, with a pool of the given size.
func (d Database) Store(tb testing.TB, maxConns int32) *postgres.Store {
	tb.Helper()
	if d.kept != nil {
		return d.kept.store(tb, d.ServiceURL, maxConns)
	}
	store, err := open(tb.Context(), d.ServiceURL, maxConns, tb.Name())
	require.NoError(tb, err)
	tb.Cleanup(store.Close)
	return store
}

func open(ctx context.Context, url string, maxConns int32, name string) (*postgres.Store, error) {
	return postgres.Open(ctx, url, postgres.Options{MaxConns: maxConns, Instance: name, Log: slog.New(slog.DiscardHandler)})
}

// Connect opens a single connection that is closed with the test.
func Connect(tb testing.TB, url string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), url)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close(context.WithoutCancel(tb.Context())) })
	return conn
}

// migrated makes the template that the tests of this process copy. It stays behind when the process ends, but the
// laboratory's server, on which it is, ends soon after.
var migrated = sync.OnceValues(func() (template string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	owner := os.Getenv("FENCEPOST_OWNER_URL")
	if owner == "" || os.Getenv("FENCEPOST_DATABASE_URL") == "" {
		return "", fmt.Errorf("FENCEPOST_OWNER_URL and FENCEPOST_DATABASE_URL are not set: run the tests with 'make test', or with 'go run ./cmd/lab exec -- go test ./...'")
	}
	conn, err := pgx.Connect(ctx, owner)
	if err != nil {
		return "", fmt.Errorf("connecting as the owner: %w", err)
	}
	defer conn.Close(ctx)
	template = "fencepost_template_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if _, err := conn.Exec(ctx, `CREATE DATABASE `+template); err != nil {
		return "", fmt.Errorf("creating the template: %w", err)
	}
	if _, err := migrations.Up(ctx, withDatabase(owner, template), slog.New(slog.DiscardHandler)); err != nil {
		return "", err
	}
	return template, nil
})

func create(tb testing.TB, template string) Database {
	tb.Helper()
	d, err := copyOf(tb.Context(), template)
	require.NoError(tb, err)
	// Not WITH (FORCE), which an owner may not use on the service's sessions. PostgreSQL waits some seconds for sessions that
	// are just ending; a test that has left one open fails here.
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), time.Minute)
		defer cancel()
		require.NoError(tb, execute(ctx, `DROP DATABASE `+d.name))
	})
	return d
}

func copyOf(ctx context.Context, template string) (Database, error) {
	name := "fencepost_test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return Database{
		name:       name,
		OwnerURL:   withDatabase(os.Getenv("FENCEPOST_OWNER_URL"), name),
		ServiceURL: withDatabase(os.Getenv("FENCEPOST_DATABASE_URL"), name),
	}, execute(ctx, `CREATE DATABASE `+name+` TEMPLATE `+template)
}

// execute runs a statement as the owner, in the database that the URL names.
func execute(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, os.Getenv("FENCEPOST_OWNER_URL"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

func withDatabase(raw, name string) string {
	u, err := url.Parse(raw)
	if err != nil {
		panic(fmt.Sprintf("postgrestest: the database URL cannot be read: %v", err))
	}
	u.Path = "/" + name
	return u.String()
}
