package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain/postgres/postgrestest"
)

// tail is a command that goes on, with a child, and whose processes can be recognised by the path in their arguments.
const tail = `touch "$TMPDIR/watched"; tail -f "$TMPDIR/watched" & echo started; wait`

func TestExecPassesTheExitCodeOn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		command string
		code    int
	}{
		"failure":        {`exit 7`, 7},
		"ended by TERM":  {`kill -TERM $$`, 128 + 15},
		"leaves a child": {strings.ReplaceAll(tail, "wait", "exit 3"), 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := labCommand(t, "exec", "--", "sh", "-c", test.command)
			require.NoError(t, lab.Start())
			require.Equal(t, test.code, lab.exitCode(), lab.stderr.String())
			lab.requireNothingLeft(t)
		})
	}
}

func TestExecSetsTheVariables(t *testing.T) {
	t.Parallel()
	lab := labCommand(t, "exec", "--", "env")
	out, err := lab.Output()
	require.NoError(t, err, lab.stderr.String())
	for _, variable := range []string{
		"FENCEPOST_DATABASE_URL=postgres://fencepost_service:", "FENCEPOST_OWNER_URL=postgres://fencepost_owner:",
		"FENCEPOST_REDIS_URL=redis://127.0.0.1:", "FENCEPOST_REDLOCK_URLS=redis://127.0.0.1:",
		"FENCEPOST_ZOOKEEPER_SERVERS=127.0.0.1:", "FENCEPOST_AUTH=off",
	} {
		require.Contains(t, string(out), "\n"+variable)
	}
}

// However the laboratory ends, everything ends with it: its servers, the command, and the command's children.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	const killed = -1 // it has no exit code then
	for name, test := range map[string]struct {
		signal syscall.Signal
		code   int
	}{
		"SIGINT":  {syscall.SIGINT, 130},
		"SIGTERM": {syscall.SIGTERM, 143},
		"SIGHUP":  {syscall.SIGHUP, 129},
		"SIGKILL": {syscall.SIGKILL, killed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := startLab(t, "started", "exec", "--", "sh", "-c", tail)
			// PostgreSQL and its backends, five Redis, ZooKeeper, and the command's own.
			require.Greater(t, len(lab.processes(t)), 8)
			require.NoError(t, lab.Process.Signal(test.signal))
			require.Equal(t, test.code, lab.exitCode(), lab.stderr.String())
			lab.requireNothingLeft(t)
		})
	}
}

func TestAnOrphanedLabEnds(t *testing.T) {
	t.Parallel()
	lab := labCommand(t, "exec", "--", "sh", "-c", tail)
	// The shell stands for `go run`, which SIGTERM ends without a word to the program that it runs.
	lab.Args = append([]string{"sh", "-c", `"$0" "$@" & wait`, lab.Path}, lab.Args[1:]...)
	shell, err := exec.LookPath("sh")
	require.NoError(t, err)
	lab.Path = shell
	lab.awaitLine(t, "started")
	require.NoError(t, lab.Process.Signal(syscall.SIGTERM))
	lab.requireNothingLeft(t)
}

func TestAFailedServerEndsTheLab(t *testing.T) {
	t.Parallel()
	lab := startLab(t, "started", "exec", "--", "sh", "-c", tail)
	for pid, command := range lab.processes(t) {
		if strings.Contains(command, "ZooKeeperServerMain") {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	require.Equal(t, 1, lab.exitCode())
	require.Contains(t, lab.stderr.String(), "zookeeper ended by itself (signal: killed)")
	lab.requireNothingLeft(t)
}

func TestTwoLabsSideBySide(t *testing.T) {
	t.Parallel()
	first := startLab(t, "started", "exec", "--", "sh", "-c", tail)
	second := startLab(t, "started", "exec", "--", "sh", "-c", tail)
	require.NoError(t, first.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 143, first.exitCode(), first.stderr.String())
	first.requireNothingLeft(t)
	require.Greater(t, len(second.processes(t)), 8)
	require.NoError(t, second.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 143, second.exitCode(), second.stderr.String())
	second.requireNothingLeft(t)
}

func TestAGivenAddressMustAnswer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	silent := listener.Addr().String() // takes connections and says nothing
	t.Cleanup(func() { listener.Close() })
	database := postgrestest.Empty(t)
	good := []string{ // of which the later ones count
		"FENCEPOST_REDIS_URL=" + os.Getenv("FENCEPOST_REDIS_URL"), "FENCEPOST_REDLOCK_URLS=" + os.Getenv("FENCEPOST_REDLOCK_URLS"),
		"FENCEPOST_ZOOKEEPER_SERVERS=" + os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"),
		"FENCEPOST_DATABASE_URL=" + database.ServiceURL, "FENCEPOST_OWNER_URL=" + database.OwnerURL,
	}
	for name, test := range map[string]struct {
		env     []string
		message string
	}{
		"redis":     {[]string{"FENCEPOST_REDIS_URL=redis://" + silent}, "unset FENCEPOST_REDIS_URL"},
		"redlock":   {[]string{"FENCEPOST_REDLOCK_URLS=redis://" + silent}, "unset FENCEPOST_REDLOCK_URLS"},
		"zookeeper": {[]string{"FENCEPOST_ZOOKEEPER_SERVERS=" + silent}, "FENCEPOST_ZOOKEEPER_SERVERS: no server answers"},
		"postgres": {[]string{
			"FENCEPOST_DATABASE_URL=postgres://u:secret@" + silent + "/d",
			"FENCEPOST_OWNER_URL=postgres://u:secret@" + silent + "/d",
		}, "unset it and FENCEPOST_OWNER_URL"},
		"half": {[]string{
			"FENCEPOST_DATABASE_URL=", "FENCEPOST_OWNER_URL=postgres://u:secret@" + silent + "/d",
		}, "FENCEPOST_DATABASE_URL is not"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := labCommand(t, "exec", "--", "true")
			lab.Env = slices.Concat(lab.Env, good, test.env)
			require.NoError(t, lab.Start())
			require.Equal(t, 1, lab.exitCode())
			require.Contains(t, lab.stderr.String(), test.message)
			require.NotContains(t, lab.stderr.String(), "secret")
			lab.requireNothingLeft(t)
		})
	}
}

func TestGivenServersAreUsedAndTheirDataIsSpared(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	given, err := servers.Start(ctx, servers.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, given.Close()) }()

	lab := labCommand(t, "exec", "--", "env")
	lab.Env = append(lab.Env, given.Env()...)
	out, err := lab.Output()
	require.NoError(t, err, lab.stderr.String())
	for _, variable := range given.Env() {
		require.Contains(t, string(out), variable+"\n")
	}
	require.NotContains(t, lab.stderr.String(), "private")

	owner, err := pgx.Connect(ctx, given.Variable("FENCEPOST_OWNER_URL"))
	require.NoError(t, err)
	_, err = owner.Exec(ctx, `CREATE TABLE precious (id int)`)
	require.NoError(t, err)
	require.NoError(t, owner.Close(ctx))
	lab = labCommand(t, "exec", "--", "true")
	lab.Env = append(lab.Env, given.Env()...)
	require.NoError(t, lab.Start())
	require.Equal(t, 1, lab.exitCode())
	require.Contains(t, lab.stderr.String(), "FENCEPOST_DATABASE_URL: the database has 1 tables")
}
