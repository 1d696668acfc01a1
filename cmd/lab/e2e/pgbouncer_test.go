package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/load"
	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain/postgres/postgrestest"
)

const pgbouncerFile = "../../../deploy/pgbouncer.ini"

// startPooler runs the shipped file with the laboratory's addresses and few connections, and returns the URL of the service's
// database behind it.
func startPooler(t *testing.T, connections int) string {
	t.Helper()
	direct, err := url.Parse(variable(t, "FENCEPOST_DATABASE_URL"))
	require.NoError(t, err)
	address, err := lab.FreeAddress()
	require.NoError(t, err)
	host, port, _ := strings.Cut(address, ":")
	folder, err := os.MkdirTemp(lab.Dir(), "pgbouncer-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(folder, 0o755)) // it does not run as root
	users, password := filepath.Join(folder, "userlist.txt"), ""
	password, _ = direct.User.Password()
	require.NoError(t, os.WriteFile(users, fmt.Appendf(nil, "%q %q\n", direct.User.Username(), password), 0o644))

	shipped, err := os.ReadFile(pgbouncerFile)
	require.NoError(t, err)
	text := string(shipped)
	for line, mine := range map[string]string{
		"fencepost = host=postgres port=5432\n":     fmt.Sprintf("%s = host=%s port=%s\n", strings.Trim(direct.Path, "/"), direct.Hostname(), direct.Port()),
		"listen_addr = *\n":                         "listen_addr = " + host + "\n",
		"listen_port = 6432\n":                      "listen_port = " + port + "\n",
		"auth_file = /etc/pgbouncer/userlist.txt\n": "auth_file = " + users + "\n",
		"default_pool_size = 20\n":                  fmt.Sprintf("default_pool_size = %d\n", connections),
	} {
		require.Equal(t, 1, strings.Count(text, line), line)
		text = strings.Replace(text, line, mine, 1)
	}
	file := filepath.Join(folder, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	pooled := *direct
	pooled.Host = address
	command := servers.Command{
		Name: "pgbouncer", Path: program("pgbouncer"), Args: []string{file},
		Ready: func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, pooled.String())
			if err != nil {
				return err
			}
			return conn.Close(ctx)
		},
	}
	if os.Geteuid() == 0 {
		command.Args = []string{"-u", "nobody", file}
	}
	process, err := lab.Launch(t.Context(), command)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, process.Stop(context.WithoutCancel(t.Context()))) })
	return pooled.String()
}

// Three instances with more connections than PostgreSQL has for them share those through PgBouncer, one transaction after the
// other. The control: a statement that was prepared on one of them is not there on the next.
func TestPooler(t *testing.T) {
	const connections = 4
	pooled := startPooler(t, connections)
	shipped, err := os.ReadFile(pgbouncerFile)
	require.NoError(t, err)
	parameter := regexp.MustCompile(`FENCEPOST_DATABASE_URL=\S+(\?\S+)`).FindSubmatch(shipped)
	require.NotNil(t, parameter)
	parameters := string(parameter[1])
	if strings.Contains(pooled, "?") {
		parameters = "&" + parameters[1:]
	}
	for _, strategy := range []string{"postgres", "redis"} { // row locks, and leases
		t.Run(strategy, func(t *testing.T) {
			running := start(t, 3, strategy, "FENCEPOST_DATABASE_URL="+pooled+parameters, fmt.Sprintf("FENCEPOST_DATABASE_CONNS=%d", 2*connections))
			race := load.Options{Instances: urls(running), Limit: 100, Buyers: 64, Requests: 300, Timeout: patience}
			report, err := load.Run(t.Context(), race)
			require.NoError(t, err)
			require.True(t, report.OK, "%+v", report)
			require.Equal(t, map[string]int{"created": 100, "out_of_stock": 200}, report.Outcomes)
			requireLedgerAgrees(t, report.Resource)

			var sessions int
			require.NoError(t, judge.QueryRow(t.Context(),
				`SELECT count(*) FROM pg_stat_activity WHERE usename = 'fencepost_service' AND datname = current_database()`).Scan(&sessions))
			require.LessOrEqual(t, sessions, connections)
			open := 0
			for _, instance := range running {
				open += connectionsOf(t, instance.URL)
			}
			require.Greater(t, open, connections, "nothing was shared")
		})
	}

	version, err := exec.CommandContext(t.Context(), program("pgbouncer"), "--version").Output()
	require.NoError(t, err)
	minor := regexp.MustCompile(`1\.(\d+)`).FindSubmatch(version)
	require.NotNil(t, minor, string(version))
	if n, _ := strconv.Atoi(string(minor[1])); n >= 21 {
		return // it can follow prepared statements
	}
	first, second := postgrestest.Connect(t, pooled), postgrestest.Connect(t, pooled)
	_, err = first.Prepare(t.Context(), "mine", `SELECT 1`)
	require.NoError(t, err)
	tx, err := second.Begin(t.Context()) // has the session meanwhile
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT 1`)
	require.NoError(t, err)
	_, err = first.Exec(t.Context(), "mine")
	require.ErrorContains(t, err, `prepared statement "mine" does not exist`)
	require.NoError(t, tx.Rollback(t.Context()))
}

// connectionsOf is how many connections for requests an instance has open.
func connectionsOf(t *testing.T, url string) (n int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/metrics", nil)
	require.NoError(t, err)
	response, err := alone.RoundTrip(request)
	require.NoError(t, err)
	defer response.Body.Close()
	metrics, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	for _, match := range regexp.MustCompile(`(?m)^fencepost_db_connections_(?:idle|in_use) (\d+)$`).FindAllSubmatch(metrics, -1) {
		more, err := strconv.Atoi(string(match[1]))
		require.NoError(t, err)
		n += more
	}
	return n
}
