package servers_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fencepost/cmd/lab/internal/servers"
)

func TestMain(m *testing.M) {
	servers.RunJanitor()
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, options servers.Options) *servers.Lab {
	t.Helper()
	lab, err := servers.Start(t.Context(), options)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, lab.Close())
		require.NoDirExists(t, lab.Dir())
	})
	return lab
}

// given leaves it to the laboratory in which the tests run to serve what a test does not look at: all variables but those
// that begin with one of private.
func given(private ...string) func(string) string {
	return func(variable string) string {
		if slices.ContainsFunc(private, func(prefix string) bool { return strings.HasPrefix(variable, prefix) }) {
			return ""
		}
		return os.Getenv(variable)
	}
}

func get(t *testing.T, lab *servers.Lab, name string) string {
	t.Helper()
	value := lab.Variable(name)
	require.NotEmpty(t, value, name)
	return value
}

func exec(t *testing.T, lab *servers.Lab, statement string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, get(t, lab, "FENCEPOST_OWNER_URL"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, statement)
	return err
}

func TestPostgresComesBackWithItsData(t *testing.T) {
	t.Parallel()
	lab := start(t, servers.Options{Getenv: given("FENCEPOST_DATABASE", "FENCEPOST_OWNER")})
	postgres := lab.Server(servers.Postgres)
	require.NoError(t, exec(t, lab, `CREATE TABLE kept (id int)`))

	require.NoError(t, postgres.Stop(t.Context()))
	require.Error(t, exec(t, lab, `SELECT`))
	require.NoError(t, postgres.Start(t.Context()))
	require.NoError(t, exec(t, lab, `INSERT INTO kept VALUES (1)`))

	require.NoError(t, postgres.Kill())
	require.Error(t, exec(t, lab, `SELECT`))
	require.NoError(t, postgres.Start(t.Context()))
	require.NoError(t, exec(t, lab, `INSERT INTO kept VALUES (2)`))

	require.NoError(t, postgres.Pause())
	require.ErrorIs(t, exec(t, lab, `SELECT`), context.DeadlineExceeded)
	require.NoError(t, postgres.Resume())
	require.NoError(t, exec(t, lab, `INSERT INTO kept VALUES (3)`))
	require.NoError(t, postgres.Pause()) // and the laboratory ends all the same

	select {
	case err := <-lab.Failed():
		t.Fatal("an end that was asked for counts as a failure:", err)
	default:
	}
}

func TestRedisForgetsUnlessToldOtherwise(t *testing.T) {
	t.Parallel()
	for name, appendOnly := range map[string]bool{"forgets": false, "remembers": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := start(t, servers.Options{Getenv: given("FENCEPOST_RED"), RedisAppendOnly: appendOnly})
			options, err := redis.ParseURL(get(t, lab, "FENCEPOST_REDIS_URL"))
			require.NoError(t, err)
			client := redis.NewClient(options)
			defer client.Close()
			require.NoError(t, client.Set(t.Context(), "key", "value", 0).Err())
			first := lab.Server("redis-1")
			require.NoError(t, first.Kill())
			require.NoError(t, first.Start(t.Context()))
			kept, err := client.Exists(t.Context(), "key").Result()
			require.NoError(t, err)
			require.Equal(t, appendOnly, kept == 1)
		})
	}
}

func TestZooKeeperComesBack(t *testing.T) {
	t.Parallel()
	lab := start(t, servers.Options{Getenv: given("FENCEPOST_ZOOKEEPER")})
	zookeeper := lab.Server(servers.ZooKeeper)
	require.NoError(t, zookeeper.Stop(t.Context()))
	require.NoError(t, zookeeper.Start(t.Context()))
	require.ErrorContains(t, zookeeper.Start(t.Context()), "running already")
}

// An ensemble survives the end of its leader, which comes back as one of the others, and a leader that is paused.
func TestEnsemble(t *testing.T) {
	t.Parallel()
	lab := start(t, servers.Options{Getenv: given()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	ensemble, err := lab.StartEnsemble(ctx)
	require.NoError(t, err)
	first, others, err := ensemble.Leader(ctx)
	require.NoError(t, err)
	require.Len(t, others, 2)
	t.Logf("started in %s", time.Since(began))

	began = time.Now()
	require.NoError(t, first.Kill())
	second, _, err := ensemble.Leader(ctx)
	require.NoError(t, err)
	require.NotSame(t, first, second)
	t.Logf("another leader %s after the kill", time.Since(began))
	require.NoError(t, first.Start(ctx))

	began = time.Now()
	require.NoError(t, second.Pause())
	third, _, err := ensemble.Leader(ctx)
	require.NoError(t, err)
	require.NotSame(t, second, third)
	t.Logf("another leader %s after the pause", time.Since(began))
	require.NoError(t, second.Resume())
	require.Equal(t, 2, strings.Count(ensemble.Addresses(), ","))
}

func TestAnUnexpectedEndIsAFailure(t *testing.T) {
	t.Parallel()
	lab := start(t, servers.Options{Getenv: given("FENCEPOST_RED")})
	require.NoError(t, syscall.Kill(lab.Server("redis-3").PID(), syscall.SIGKILL))
	require.ErrorContains(t, <-lab.Failed(), "redis-3 ended by itself (signal: killed)")
}

func TestAServerWhoseProgramIsMissing(t *testing.T) {
	t.Setenv("PATH", "")
	t.Setenv("JAVA_HOME", "")
	options := servers.Options{Prefixes: []string{t.TempDir()}}
	lab := start(t, options)
	var table strings.Builder
	require.NoError(t, lab.Table(&table))
	require.Equal(t, `SERVER     VERSION  ADDRESS  SOURCE
postgres   -        -        unavailable: run `+"`make deps`"+`
redis-1    -        -        unavailable: run `+"`make deps`"+`
redis-2    -        -        unavailable: run `+"`make deps`"+`
redis-3    -        -        unavailable: run `+"`make deps`"+`
redis-4    -        -        unavailable: run `+"`make deps`"+`
redis-5    -        -        unavailable: run `+"`make deps`"+`
zookeeper  -        -        unavailable: run `+"`make deps`"+`
`, table.String())
	require.Equal(t, []string{"FENCEPOST_AUTH=off"}, lab.Env())

	options.Require = []string{servers.Postgres, servers.ZooKeeper}
	_, err := servers.Start(t.Context(), options)
	require.EqualError(t, err, "postgres is needed and not there: run `make deps`\n"+
		"zookeeper is needed and not there: run `make deps`")
}

func TestACommandThatDoesNotBecomeReadyShowsItsLog(t *testing.T) {
	t.Parallel()
	lab := start(t, servers.Options{Getenv: given()})
	_, err := lab.Launch(t.Context(), servers.Command{
		Name: "hopeless", Path: "/bin/sh", Args: []string{"-c", "echo it is no use; exit 3"},
		Ready: func(context.Context) error { return context.DeadlineExceeded },
	})
	require.ErrorContains(t, err, "hopeless ended before it was ready")
	require.ErrorContains(t, err, "it is no use")
}
