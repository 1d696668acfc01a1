package migrations_test

import (
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
	"fencepost/migrations"
)

var discard = slog.New(slog.DiscardHandler)

// files is how many migrations there are.
func files(t *testing.T) int {
	t.Helper()
	names, err := filepath.Glob("*.sql")
	require.NoError(t, err)
	return len(names)
}

// Five instances start on an empty database and all migrate it: one does, the others find it done.
func TestUpAtOnce(t *testing.T) {
	t.Parallel()
	db := postgrestest.Empty(t)
	var mu sync.Mutex
	var group sync.WaitGroup
	total := 0
	for range 5 {
		group.Go(func() {
			applied, err := migrations.Up(t.Context(), db.OwnerURL, discard)
			assert.NoError(t, err)
			mu.Lock()
			total += applied
			mu.Unlock()
		})
	}
	group.Wait()
	assert.Equal(t, files(t), total, "each migration is applied once")
	service := postgrestest.Connect(t, db.ServiceURL)
	must(t, service, fixture)
}

// What goes down comes up again, and leaves nothing of ours in between.
func TestDownAndUp(t *testing.T) {
	t.Parallel()
	db := postgrestest.Empty(t)
	_, err := migrations.Up(t.Context(), db.OwnerURL, discard)
	require.NoError(t, err)
	owner := postgrestest.Connect(t, db.OwnerURL)
	const ours = `SELECT count(*) FROM (
		SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'goose%'
		UNION ALL SELECT oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace) objects`
	require.NotZero(t, value[int64](t, owner, ours))
	must(t, postgrestest.Connect(t, db.ServiceURL), fixture) // data does not stand in the way

	pool, err := sql.Open("pgx", db.OwnerURL)
	require.NoError(t, err)
	defer pool.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, pool, os.DirFS("."))
	require.NoError(t, err)
	_, err = provider.DownTo(t.Context(), 0)
	require.NoError(t, err)
	assert.Zero(t, value[int64](t, owner, ours))

	applied, err := migrations.Up(t.Context(), db.OwnerURL, discard)
	require.NoError(t, err)
	assert.Equal(t, files(t), applied)
	must(t, postgrestest.Connect(t, db.ServiceURL), fixture)
}

// Migrating with the service's URL would make the service the owner of its own fence.
func TestUpAsTheService(t *testing.T) {
	t.Parallel()
	db := postgrestest.Empty(t)
	owner := postgrestest.Connect(t, db.OwnerURL)
	must(t, owner, `GRANT CREATE ON SCHEMA public TO fencepost_service`) // otherwise it could not even begin
	_, err := migrations.Up(t.Context(), db.ServiceURL, discard)
	require.ErrorContains(t, err, "can act as the owner fencepost_service")
	require.ErrorContains(t, err, "Run migrate as an owner of its own") // an error names its fix
	assert.False(t, value[bool](t, owner, `SELECT to_regclass('fences') IS NOT NULL`))
}

func TestUpCannotConnect(t *testing.T) {
	t.Parallel()
	_, err := migrations.Up(t.Context(), "postgres://nobody@127.0.0.1:1/nothing?sslmode=disable", discard)
	require.ErrorContains(t, err, "127.0.0.1:1")
}

// A key that was collated otherwise in one table than in the next would put their joins beyond the reach of an index.
func TestKeysAreInByteOrder(t *testing.T) {
	t.Parallel()
	conn := postgrestest.Connect(t, postgrestest.New(t).OwnerURL)
	const keys = `SELECT count(*) FROM information_schema.columns
		WHERE table_schema = 'public' AND column_name IN ('resource', 'scope') AND collation_name IS %s 'C'`
	assert.Positive(t, value[int](t, conn, fmt.Sprintf(keys, "NOT DISTINCT FROM")))
	assert.Zero(t, value[int](t, conn, fmt.Sprintf(keys, "DISTINCT FROM")))
}
