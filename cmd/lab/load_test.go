package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/load"
)

// counted is a service that sells to each of ten attempts, and whose audit says what it is told to.
func counted(t *testing.T, oversold int, fencing string) string {
	t.Helper()
	var resource string
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, status int, body any) {
		w.WriteHeader(status)
		assert.NoError(t, json.NewEncoder(w).Encode(body))
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { answer(w, 200, "ok") })
	mux.HandleFunc("POST /v1/items", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ SKU string }
		assert.NoError(t, json.NewDecoder(r.Body).Decode(&in))
		resource = "item/" + in.SKU
		answer(w, 201, in)
	})
	mux.HandleFunc("POST /v1/items/{sku}/reservations", func(w http.ResponseWriter, r *http.Request) { answer(w, 201, struct{}{}) })
	mux.HandleFunc("GET /v1/audit", func(w http.ResponseWriter, r *http.Request) {
		answer(w, 200, map[string]any{"resources": []map[string]any{{
			"resource": resource, "limit": 10 - oversold, "held": 10, "oversold": oversold, "fencing": fencing,
			"strategy": "none", "ok": oversold == 0,
		}}})
	})
	mux.HandleFunc("GET /v1/strategies", func(w http.ResponseWriter, r *http.Request) {
		answer(w, 200, map[string]any{"strategies": []map[string]any{
			{"name": "none", "available": true}, {"name": "postgres", "fences": true, "available": true},
		}})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// parse reads a command line as the laboratory does.
func parse(t *testing.T, args ...string) (*loadCmd, error) {
	t.Helper()
	var c struct {
		Load loadCmd `cmd:""`
	}
	parser, err := kong.New(&c)
	require.NoError(t, err)
	_, err = parser.Parse(append([]string{"load"}, args...))
	return &c.Load, err
}

func TestLoadExitCodes(t *testing.T) {
	for name, test := range map[string]struct {
		oversold int
		fencing  string
		strict   bool
		want     error
	}{
		"good":                      {0, "enforced", false, nil},
		"oversold":                  {3, "enforced", false, exitCode(1)},
		"oversold without fence":    {3, "off", false, nil},
		"oversold, and strict":      {3, "off", true, exitCode(1)},
		"good without fence":        {0, "off", true, nil},
		"oversold in a new dialect": {3, "", false, exitCode(1)},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parse(t, "--url", counted(t, test.oversold, test.fencing)+"/", "--buyers=4", "--requests=10")
			require.NoError(t, err)
			c.Strict = test.strict
			assert.Equal(t, test.want, c.Run(t.Context()))
		})
	}
}

func TestLoadWithoutAVerdict(t *testing.T) {
	c, err := parse(t, "--instances", "http://127.0.0.1:1")
	require.NoError(t, err)
	assert.Equal(t, exitCode(2), c.Run(t.Context()))

	c, err = parse(t, "--instances", "http://127.0.0.1:1,http://127.0.0.1:2", "--buyers=1")
	require.NoError(t, err)
	_, err = c.race(t.Context(), os.Stderr)
	require.ErrorContains(t, err, "1 buyers cannot use 2 instances")
}

// What the clients have seen is reported, but it is no verdict.
func TestLoadWithoutAnAudit(t *testing.T) {
	base := counted(t, 0, "enforced")
	target, err := url.Parse(base)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	blind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/audit" {
			http.Error(w, "{}", http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(blind.Close)
	file := filepath.Join(t.TempDir(), "report.json")
	c, err := parse(t, "--url", blind.URL, "--buyers=4", "--requests=10", "--json", file)
	require.NoError(t, err)
	assert.Equal(t, exitCode(2), c.Run(t.Context()))
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Contains(t, string(data), `"created": 10`)
	assert.Contains(t, string(data), `"verdict": "there is no verdict: the audit of item/load-`)
}

func TestLoadFlags(t *testing.T) {
	for _, test := range []struct {
		args             []string
		requests, buyers int
		duration         time.Duration
		why              string
	}{
		{nil, 200, 64, time.Minute, "twice the stock"},
		{[]string{"--stock=1"}, 64, 64, time.Minute, "one for each buyer"},
		{[]string{"--duration=3s"}, 0, 64, 3 * time.Second, "as many as the time allows"},
		{[]string{"--duration=3s", "--requests=7"}, 7, 64, 3 * time.Second, "as given"},
		{[]string{"--rate=10.5"}, 256, 256, time.Minute, "one for each buyer"},
		{[]string{"--rate=10", "--buyers=3"}, 200, 3, time.Minute, "twice the stock"},
	} {
		c, err := parse(t, test.args...)
		require.NoError(t, err)
		o, err := c.options([]string{"http://a", "http://b"})
		require.NoError(t, err)
		assert.Equal(t, test.requests, o.Requests, "%v: %s", test.args, test.why)
		assert.Equal(t, test.duration, o.Timeout, "%v", test.args)
		assert.Equal(t, test.buyers, o.Buyers, "%v", test.args)
	}

	for args, says := range map[string]string{
		"--stock=0":                      "--stock must be between 1 and 1000000",
		"--stock=many":                   "--stock",
		"--buyers=-1":                    "--buyers must be between 1 and 5000",
		"--buyers=5001":                  "--buyers must be between 1 and 5000",
		"--requests=-1":                  "--requests must be between 1 and",
		"--duration=1ms":                 "--duration must be between 1s and 1h",
		"--duration=5h":                  "--duration must be between 1s and 1h",
		"--duration=long":                "--duration",
		"--rate=-1":                      "--rate must be between 0 and 100000",
		"--rate=NaN":                     "--rate must be between 0 and 100000",
		"--ramp=2m":                      "--ramp must be between 0s and 1m0s, which is how long the race may take (--duration)",
		"--ramp=-1s":                     "--ramp must be between",
		"--retries=11":                   "--retries must be between 0 and 10",
		"--patience=1ms":                 "--patience must be between 100ms and 1h",
		"--items=0":                      "--items must be between 1 and 1000",
		"--lines=21":                     "--lines must be between 1 and 20",
		"--lines=3":                      "--lines is 3, and every line of an order is for another item: set --items to 3 or more",
		"--coupon --items=3":             "--coupon has no items: leave --items out, or set --lines",
		"--compare=none,none":            "--compare must name each strategy once",
		"--compare=none --strategy=none": "--strategy and --compare exclude each other",
		"--fencing=maybe":                "--fencing must be one of",
		"--instances=127.0.0.1:8080":     `"127.0.0.1:8080" is not a base URL: write http://HOST:PORT`,
		"--url=ftp://x":                  `"ftp://x" is not a base URL`,
		"surplus":                        "unexpected argument surplus",
		"--no-such-flag":                 "unknown flag --no-such-flag",
	} {
		_, err := parse(t, strings.Fields(args)...)
		assert.ErrorContains(t, err, says, "%v", args)
	}
}

func TestLoadReport(t *testing.T) {
	file, page := filepath.Join(t.TempDir(), "report.json"), filepath.Join(t.TempDir(), "report.html")
	c, err := parse(t, "--url", counted(t, 3, "off"), "--buyers=4", "--requests=10", "--json", file, "--html", page)
	require.NoError(t, err)
	require.NoError(t, c.Run(t.Context()))
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var summary load.Summary
	require.NoError(t, json.Unmarshal(data, &summary))
	require.Len(t, summary.Runs, 1)
	assert.Equal(t, "sold 10 of 7, oversold 3", summary.Runs[0].Verdict)
	data, err = os.ReadFile(page)
	require.NoError(t, err)
	assert.Contains(t, string(data), "sold 10 of 7, oversold 3")

	var out bytes.Buffer
	require.NoError(t, c.print(&out, summary))
	assert.Contains(t, out.String(), "\nsold 10 of 7, oversold 3\n")
	assert.Contains(t, out.String(), "lock none, fencing off")
	assert.Regexp(t, `created +10 +10\n`, out.String())
	assert.Contains(t, out.String(), "--strict makes it one")
}

// A run of minutes must not end with the discovery that its report has no place.
func TestLoadLooksFirstWhetherItCanWrite(t *testing.T) {
	var asked atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	t.Cleanup(server.Close)
	c, err := parse(t, "--url", server.URL, "--html", filepath.Join(t.TempDir(), "missing", "report.html"))
	require.NoError(t, err)
	assert.Equal(t, exitCode(2), c.Run(t.Context()))
	assert.False(t, asked.Load())
}

func TestLoadCompares(t *testing.T) {
	base := counted(t, 3, "enforced")
	c, err := parse(t, "--url", base, "--buyers=4", "--requests=10", "--compare=none,postgres")
	require.NoError(t, err)
	assert.Equal(t, exitCode(1), c.Run(t.Context()), "one that is bad is enough")
	runs, err := c.race(t.Context(), os.Stderr)
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, c.print(&out, load.NewSummary(runs)))
	assert.Equal(t, 2, strings.Count(out.String(), "enforced"), out.String())

	ctx, stop := context.WithCancel(t.Context())
	stop()
	_, err = c.race(ctx, os.Stderr)
	require.ErrorContains(t, err, "context canceled")

	c.Compare = []string{"none", "redis"}
	assert.Equal(t, exitCode(2), c.Run(t.Context()), "a strategy that is not there")
}
