package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/load"
)

// counted is a service that sells to everybody and whose audit says what it is told to.
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
			"resource": resource, "limit": 10, "held": 10 + oversold, "oversold": oversold, "fencing": fencing,
			"strategy": "none", "ok": oversold == 0,
		}}})
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

func TestLoadFlags(t *testing.T) {
	c, err := parse(t)
	require.NoError(t, err)
	assert.Equal(t, 200, c.Requests, "twice the stock")
	c, err = parse(t, "--stock=1")
	require.NoError(t, err)
	assert.Equal(t, 64, c.Requests, "one for each buyer")

	for _, args := range [][]string{
		{"--stock=0"},
		{"--buyers=0"},
		{"--buyers=5001"},
		{"--requests=-1"},
		{"--timeout=1ms"},
		{"--timeout=5h"},
		{"--fencing=maybe"},
		{"--instances=127.0.0.1:8080"},
		{"--url=ftp://x"},
		{"--stock=many"},
		{"surplus"},
	} {
		_, err := parse(t, args...)
		assert.Error(t, err, "%v", args)
	}
}

func TestLoadReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	c, err := parse(t, "--url", counted(t, 3, "off"), "--buyers=4", "--requests=10", "--json", file)
	require.NoError(t, err)
	require.NoError(t, c.Run(t.Context()))
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var report load.Report
	require.NoError(t, json.Unmarshal(data, &report))
	assert.Equal(t, "sold 13 of 10, oversold 3", report.Verdict)

	var out bytes.Buffer
	require.NoError(t, c.print(&out, report))
	assert.Contains(t, out.String(), "\nsold 13 of 10, oversold 3\n")
	assert.Contains(t, out.String(), "lock none, fencing off")
	assert.Regexp(t, `created +10 +10\n`, out.String())
	assert.Contains(t, out.String(), "--strict makes it one")
}
