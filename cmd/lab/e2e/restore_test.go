package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain/postgres/postgrestest"
	"fencepost/migrations"
)

// What the README says of back-up and restore. A dump that is restored into another cluster, where transaction numbers begin
// anew, brings the fences and the guards with it; the lock server, which is ahead of them by then, goes on unnoticed; what was
// promised after the dump is gone, and the keys of those requests with it.
func TestRestoredBackup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	source := ownPostgres(ctx, t, nil)
	_, err := migrations.Up(ctx, source.Variable("FENCEPOST_OWNER_URL"), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	running := start(t, 1, "redis", databaseOf(source)...)
	sku := createStock(t, running[0].URL, 10)
	reserve := func(url, key string) reply {
		return keyed{"/v1/items/" + sku + "/reservations", key, `{"quantity":1}`}.sendOnce(ctx, http.DefaultClient, url)
	}
	before, after := uuid.NewString(), uuid.NewString()
	kept := reserve(running[0].URL, before)
	require.Equal(t, http.StatusCreated, kept.status, kept.body)

	dump := filepath.Join(t.TempDir(), "fencepost.dump")
	tool(t, source, "pg_dump", "--format=custom", "--file="+dump, "--dbname="+source.Variable("FENCEPOST_OWNER_URL"))
	lost := reserve(running[0].URL, after)
	require.Equal(t, http.StatusCreated, lost.status, lost.body)
	require.NoError(t, instances.Stop(ctx, running))

	target := ownPostgres(ctx, t, nil)
	restore := func(section string) {
		tool(t, target, "pg_restore", "--exit-on-error", "--section="+section, "--dbname="+target.Variable("FENCEPOST_OWNER_URL"), dump)
	}
	restore("pre-data")
	restore("data")
	service := postgrestest.Connect(t, target.Variable("FENCEPOST_DATABASE_URL"))
	lateWrite := func() error {
		_, err := service.Exec(ctx, `UPDATE items SET on_hand = on_hand WHERE resource = 'item/' || $1`, sku)
		return err
	}
	require.NoError(t, lateWrite(), "the negative control: tables without their triggers are not guarded")
	restore("post-data")
	var refusal *pgconn.PgError
	require.ErrorAs(t, lateWrite(), &refusal)
	require.Equal(t, "FP003", refusal.Code)
	require.NoError(t, service.Close(ctx))

	running = start(t, 1, "redis", databaseOf(target)...)
	again := reserve(running[0].URL, before)
	require.True(t, again.replayed, "%+v", again)
	require.Equal(t, kept.body, again.body)
	anew := reserve(running[0].URL, after)
	require.Equal(t, http.StatusCreated, anew.status, anew.body)
	require.False(t, anew.replayed, "nothing is known of what came after the dump")
	require.NotEqual(t, lost.body, anew.body)

	audit := exec.CommandContext(ctx, binary, "audit")
	audit.Env = append(append(os.Environ(), lab.Env()...), databaseOf(target)...)
	printed, err := audit.CombinedOutput()
	require.NoError(t, err, "%s", printed)

	// A dump is restored as a whole: into tables that are guarded already nothing can be copied, also where no foreign key is in
	// its way.
	tables := ownPostgres(ctx, t, nil)
	_, err = migrations.Up(ctx, tables.Variable("FENCEPOST_OWNER_URL"), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	err = runTool(t, tables, "pg_restore", "--data-only", "--exit-on-error", "--table=reservation_lines", "--dbname="+tables.Variable("FENCEPOST_OWNER_URL"), dump)
	require.ErrorContains(t, err, "has not presented")
}

// databaseOf makes an instance use that server.
func databaseOf(server *servers.OwnPostgres) []string {
	var env []string
	for _, name := range []string{"FENCEPOST_OWNER_URL", "FENCEPOST_DATABASE_URL"} {
		env = append(env, name+"="+server.Variable(name))
	}
	return env
}

// tool runs a program of the server's version.
func tool(t *testing.T, server *servers.OwnPostgres, program string, arguments ...string) {
	t.Helper()
	require.NoError(t, runTool(t, server, program, arguments...))
}

// runTool is tool for one that may fail, with what it has printed in the error. The folder of the server may have links to a
// few programs, which lead to the folder of all.
func runTool(t *testing.T, server *servers.OwnPostgres, program string, arguments ...string) error {
	t.Helper()
	postgres, err := filepath.EvalSymlinks(filepath.Join(server.Detail, "postgres"))
	require.NoError(t, err)
	output, err := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(postgres), program), arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, output)
	}
	return nil
}
