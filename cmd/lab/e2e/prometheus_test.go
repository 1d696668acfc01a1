package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/load"
	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain/postgres/postgrestest"
	"fencepost/migrations"
)

const (
	prometheusFolder = "../../../deploy/prometheus"
	dashboardFile    = "../../../deploy/grafana/dashboards/fencepost.json"
)

// The shipped configuration, alerts, and the tests of the alerts are what Prometheus takes them for. The control: its tool finds
// an alert whose bound has moved.
func TestPromtool(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	require.NoError(t, os.CopyFS(folder, os.DirFS(prometheusFolder)))
	promtool := func(arguments ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), program("promtool"), arguments...)
		cmd.Dir = folder
		output, err := cmd.CombinedOutput()
		return string(output), err
	}
	for _, arguments := range [][]string{
		{"check", "config", "--syntax-only", "prometheus.yml"}, {"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"},
	} {
		output, err := promtool(arguments...)
		require.NoError(t, err, output)
	}

	rules, err := os.ReadFile(filepath.Join(folder, "rules.yml"))
	require.NoError(t, err)
	tests, err := os.ReadFile(filepath.Join(folder, "rules_test.yml"))
	require.NoError(t, err)
	alerts := regexp.MustCompile(`(?s)- alert: (\w+)\n.*? ([><]) ([0-9.]+)\n`).FindAllStringSubmatchIndex(string(rules), -1)
	require.Len(t, alerts, strings.Count(string(rules), "- alert:"))
	const ruleFiles = "rule_files: [rules.yml]\n"
	require.Contains(t, string(tests), ruleFiles)
	changes := map[string]string{} // by the file that has to fail
	for _, at := range alerts {
		name, bound := string(rules[at[2]:at[3]]), string(rules[at[6]:at[7]])
		assert.Contains(t, string(tests), `{alertname="`+name+`",alertstate="firing",`)
		for _, moved := range []string{"1000000", "-1"} { // it is silent when it should not be, and the other way round
			if string(rules[at[4]:at[5]]) == "<" {
				moved = map[string]string{"1000000": "-1", "-1": "1000000"}[moved]
			}
			worse := string(rules[:at[6]]) + moved + string(rules[at[7]:])
			file := fmt.Sprintf("%d.yml", len(changes))
			testFile := "test-" + file
			changes[testFile] = fmt.Sprintf("%s compares with %s instead of %s", name, moved, bound)
			require.NoError(t, os.WriteFile(filepath.Join(folder, file), []byte(worse), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(folder, testFile),
				[]byte(strings.Replace(string(tests), ruleFiles, "rule_files: ["+file+"]\n", 1)), 0o600))
		}
	}
	output, err := promtool(slices.Concat([]string{"test", "rules"}, slices.Sorted(maps.Keys(changes)))...) // its start takes longer than a test
	require.Error(t, err, output)
	told := strings.Split(output, "Unit Testing:")[1:]
	require.Len(t, told, len(changes), output)
	for _, verdict := range told {
		file := strings.Fields(verdict)[0]
		require.Contains(t, verdict, "FAILED", "nobody has noticed that %s", changes[file])
	}
}

// Prometheus watches three instances with the shipped files. As long as all is well no alert is active. Then a lock server forgets,
// a holder is slow, PostgreSQL keeps a connection waiting, the owner damages a row, another strategy takes over and an instance is
// killed: every alert that such things should cause is active, and no query of the alerts and the dashboard is without data.
func TestPrometheus(t *testing.T) {
	t.Parallel() // beside such as share no server with it: it empties Redis
	database := ownPostgres(t.Context(), t, nil)
	ownerURL := database.Variable("FENCEPOST_OWNER_URL")
	_, err := migrations.Up(t.Context(), ownerURL, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	owner := postgrestest.Connect(t, ownerURL)
	env := []string{"FENCEPOST_DATABASE_URL=" + database.Variable("FENCEPOST_DATABASE_URL"), "FENCEPOST_AUDIT_INTERVAL=200ms"}
	fast := start(t, 1, "redis", env...)[0]
	keyed := start(t, 1, "redis", append(env, "FENCEPOST_AUTH=keys")...)[0]
	// Each section takes so long that its lease needs an extension, and everything shares one connection. Whoever waits for that
	// gives up later than Prometheus needs to see it.
	slow := start(t, 1, "redis", append(env, "FENCEPOST_REVIEW_TIME=400ms", "FENCEPOST_LEASE_TTL=600ms",
		"FENCEPOST_MAX_BATCH=1", "FENCEPOST_DATABASE_CONNS=1", "FENCEPOST_LOCK_WAIT=12s")...)[0]
	p := startPrometheus(t, []*instances.Instance{fast, keyed, slow}, makeKey(t, env))

	sale := load.Options{Instances: []string{fast.URL}, Limit: 50, Buyers: 8, Requests: 100, Timeout: patience}
	report, err := load.Run(t.Context(), sale)
	require.NoError(t, err)
	require.True(t, report.OK, "%+v", report)
	p.until(t, "three instances are up", `sum(up) == 3`)
	p.until(t, "an instance has audited", `time() - max(fencepost_audit_timestamp_seconds) < 60`)
	p.until(t, "the sale was seen", `sum(fencepost_sections_total{outcome="committed"}) >= 50`)
	p.untilEvaluated(t)
	for _, rule := range p.rules(t) {
		require.Equal(t, "inactive", rule.State, "%s, and all is well", rule.Name)
	}

	damage(t, owner, report.Resource)
	p.untilActive(t, "FencepostOversold", "FencepostAuditFinding")

	item := createItem(t, slow.URL)
	crowd := startBuyers(t, []string{slow.URL}, item)
	crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) > crowdSize }) // each has waited for others
	p.untilActive(t, "FencepostLockWaitLong")
	forget(t, owner, fast.URL)
	p.untilActive(t, "FencepostLeasesLost", "FencepostWritesRefused", "FencepostEpochRaised", "FencepostEpochChanged")
	keepWaiting(t, owner, p, slow, item)
	p.untilActive(t, "FencepostConnectionsExhausted")

	start(t, 1, "postgres", env...)
	crowd.until(t, "the old strategy is refused", func(b *buyers) bool { return b.Codes["strategy_superseded"] >= 20 })
	p.untilActive(t, "FencepostSuperseded", "FencepostErrors")
	crowd.stop()
	p.untilSo(t, "an instance is not ready", func() bool {
		require.Equal(t, http.StatusServiceUnavailable, statusOf(t, slow.URL+"/readyz"), "as a load balancer asks")
		return p.isActive(t, "FencepostNotReady")
	})
	require.NoError(t, keyed.Kill())
	p.untilActive(t, "FencepostDown")

	for _, rule := range p.rules(t) { // nobody can wait for an hour without an audit
		require.True(t, p.seen[rule.Name] || rule.Name == "FencepostAuditOverdue", "nothing here has caused %s", rule.Name)
	}
	comparison := regexp.MustCompile(` [<>] [0-9.]+$`)
	for _, rule := range p.rules(t) {
		require.Regexp(t, comparison, rule.Query, "it must end with its bound")
		assert.NoError(t, p.hasData(comparison.ReplaceAllString(rule.Query, "")), rule.Name)
	}
	queries := dashboard(t)
	require.Greater(t, len(queries), 30)
	for _, query := range queries {
		assert.NoError(t, p.hasData(query))
	}
	require.ErrorContains(t, p.hasData(`sum(rate(fencepost_section_total[1m]))`), "no data", "a metric that is misspelt must be found")
	require.ErrorContains(t, p.hasData(`sum(fencepost_oversold_units{fence="enforced"})`), "no data", "and so must a label")
	require.ErrorContains(t, p.hasData(`sum(rate(fencepost_event_readers))`), "parse error")
}

// makeKey makes a key as an operator does.
func makeKey(t *testing.T, env []string) (key string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, "keys", "create", "--name", "prometheus", "--role", "client")
	cmd.Env = append(append(os.Environ(), lab.Env()...), env...)
	printed, err := cmd.Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(printed))
}

// forget has Redis forget everything, locks and counters, until the fence has refused a number of writes.
func forget(t *testing.T, owner *pgx.Conn, url string) {
	t.Helper()
	options, err := redis.ParseURL(variable(t, "FENCEPOST_REDIS_URL"))
	require.NoError(t, err)
	client := redis.NewClient(options)
	defer client.Close()
	crowd := startBuyers(t, []string{url}, createItem(t, url))
	defer crowd.stop()
	for refused := 0; refused < 20; {
		before := crowd.Count()
		require.NoError(t, client.FlushAll(t.Context()).Err())
		crowd.until(t, "reservations go on", func(b *buyers) bool { return len(b.Acknowledged) >= before+30 })
		require.NoError(t, owner.QueryRow(t.Context(), `SELECT count(*) FROM refusals`).Scan(&refused))
	}
}

// keepWaiting has an instance's only connection wait for a row that somebody else has, until Prometheus has seen it for a while,
// and so everybody else for the connection.
func keepWaiting(t *testing.T, owner *pgx.Conn, p *prometheus, instance *instances.Instance, item string) {
	t.Helper()
	tx, err := owner.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	_, err = tx.Exec(t.Context(), `SELECT FROM fences WHERE resource = 'item/' || $1 FOR UPDATE`, item)
	require.NoError(t, err)
	busy := fmt.Sprintf(`fencepost_db_connections_in_use{instance=%q}`, strings.TrimPrefix(instance.URL, "http://"))
	p.until(t, "its connection is in use", `sum_over_time(`+busy+`[1s:250ms]) == 4`)
	var readers sync.WaitGroup
	for range 32 {
		readers.Go(func() { _ = statusOf(t, instance.URL+"/v1/items/"+item) })
	}
	p.until(t, "it stays so", `sum_over_time(`+busy+`[3s:250ms]) == 12`)
	require.NoError(t, tx.Rollback(t.Context()))
	readers.Wait()
}

// damage oversells a resource as only the owner can: with a presentation of his own, a hold that no rule has allowed.
func damage(t *testing.T, owner *pgx.Conn, resource string) {
	t.Helper()
	tx, err := owner.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	_, err = tx.Exec(t.Context(), `
		SELECT present(resource, a.strategy, a.epoch, token + 1000000, gen_random_uuid())
		FROM fences f JOIN authorities a USING (scope) WHERE resource = $1`, resource)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `
		INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at)
		VALUES ($1, gen_random_uuid(), 7, 'held', '', '', now(), now() + interval '1 hour')`, resource)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
}

// prometheus is one that runs with the shipped files.
type prometheus struct {
	url    string
	client *http.Client
	seen   map[string]bool // the alerts that were active at some time
}

// startPrometheus replaces of the shipped configuration the addresses, the file of the key, and how often it looks.
func startPrometheus(t *testing.T, running []*instances.Instance, key string) *prometheus {
	t.Helper()
	folder := t.TempDir()
	require.NoError(t, os.CopyFS(folder, os.DirFS(prometheusFolder)))
	keyFile, configFile := filepath.Join(folder, "key"), filepath.Join(folder, "prometheus.yml")
	require.NoError(t, os.WriteFile(keyFile, []byte(key), 0o600))
	text, err := os.ReadFile(configFile)
	require.NoError(t, err)
	replace := []string{
		"scrape_interval: 15s", "scrape_interval: 500ms", "evaluation_interval: 15s", "evaluation_interval: 500ms",
		"/run/secrets/fencepost_key", keyFile,
	}
	for i, instance := range running {
		replace = append(replace, fmt.Sprintf("fencepost-%d:8080", i+1), strings.TrimPrefix(instance.URL, "http://"))
	}
	for i := 0; i < len(replace); i += 2 {
		require.Equal(t, 1, strings.Count(string(text), replace[i]), replace[i])
	}
	require.NoError(t, os.WriteFile(configFile, []byte(strings.NewReplacer(replace...).Replace(string(text))), 0o600))

	address, err := lab.FreeAddress()
	require.NoError(t, err)
	p := &prometheus{"http://" + address, &http.Client{Transport: alone, Timeout: patience}, map[string]bool{}}
	process, err := lab.Launch(t.Context(), servers.Command{
		Name: "prometheus", Path: program("prometheus"), Env: os.Environ(),
		Args: []string{
			"--config.file=" + configFile, "--storage.tsdb.path=" + filepath.Join(folder, "data"), "--web.listen-address=" + address,
		},
		Ready: func(ctx context.Context) error {
			_, err := p.get(ctx, "/-/ready", nil)
			return err
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, process.Stop(context.WithoutCancel(t.Context()))) })
	return p
}

// get returns the data of an answer of its API.
func (p *prometheus) get(ctx context.Context, path string, query url.Values) (data json.RawMessage, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if path == "/-/ready" {
		if response.StatusCode != http.StatusOK {
			err = fmt.Errorf("not ready: %s", response.Status)
		}
		return nil, err
	}
	var answer struct {
		Data  json.RawMessage
		Error string
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Error != "" {
		return nil, fmt.Errorf("%s: %s", query.Get("query"), answer.Error)
	}
	return answer.Data, nil
}

// query returns the values of an expression.
func (p *prometheus) query(expression string) (values []float64, err error) {
	data, err := p.get(context.Background(), "/api/v1/query", url.Values{"query": {expression}})
	if err != nil {
		return nil, err
	}
	var answer struct{ Result []struct{ Value [2]any } }
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	for _, series := range answer.Result {
		value, err := strconv.ParseFloat(series.Value[1].(string), 64)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

// hasData is an error if the expression has no value that could be drawn.
func (p *prometheus) hasData(expression string) error {
	values, err := p.query(expression)
	for _, value := range values {
		if !math.IsNaN(value) && !math.IsInf(value, 0) {
			return err
		}
	}
	if err == nil {
		err = fmt.Errorf("no data: %s", expression)
	}
	return err
}

// until waits for the expression, a comparison, to hold.
func (p *prometheus) until(t *testing.T, what, expression string) {
	t.Helper()
	p.untilSo(t, what, func() bool {
		values, err := p.query(expression)
		require.NoError(t, err)
		return len(values) > 0
	})
}

// untilSo waits for something to be so.
func (p *prometheus) untilSo(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !so(); time.Sleep(20 * time.Millisecond) { // only between two looks
		require.True(t, time.Now().Before(deadline), "within %s not seen: %s", patience, what)
	}
}

type prometheusRule struct {
	Name, Query, Health, State string
	LastEvaluation             time.Time
}

func (p *prometheus) rules(t *testing.T) (rules []prometheusRule) {
	t.Helper()
	data, err := p.get(t.Context(), "/api/v1/rules", nil)
	require.NoError(t, err)
	var answer struct {
		Groups []struct{ Rules []prometheusRule }
	}
	require.NoError(t, json.Unmarshal(data, &answer))
	for _, group := range answer.Groups {
		rules = append(rules, group.Rules...)
	}
	require.NotEmpty(t, rules)
	return rules
}

// untilEvaluated returns when each rule has been evaluated on what is known now.
func (p *prometheus) untilEvaluated(t *testing.T) {
	t.Helper()
	since := time.Now()
	p.untilSo(t, "all rules are evaluated", func() bool {
		return !slices.ContainsFunc(p.rules(t), func(r prometheusRule) bool { return r.Health != "ok" || r.LastEvaluation.Before(since) })
	})
}

// isActive tells whether the alert fires, or will if it goes on like this.
func (p *prometheus) isActive(t *testing.T, name string) bool {
	t.Helper()
	active := slices.ContainsFunc(p.rules(t), func(r prometheusRule) bool { return r.Name == name && r.State != "inactive" })
	p.seen[name] = p.seen[name] || active
	return active
}

func (p *prometheus) untilActive(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		p.untilSo(t, name, func() bool { return p.isActive(t, name) })
	}
}

// dashboard returns the queries of the dashboard, for all instances. A variable that it does not have is a mistake.
func dashboard(t *testing.T) (queries []string) {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	require.NoError(t, err)
	var file struct {
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &file))
	for _, panel := range file.Panels {
		require.Equal(t, panel.Type == "row", len(panel.Targets) == 0, panel.Title)
		for _, target := range panel.Targets {
			query := strings.NewReplacer(`"$instance"`, `".*"`, "[$__rate_interval]", "[1m]").Replace(target.Expr)
			require.NotContains(t, query, "$", panel.Title)
			queries = append(queries, query)
		}
	}
	return queries
}
