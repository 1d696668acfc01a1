package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/bench"
)

func TestBench(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	file := func(name string) string { return filepath.Join(folder, name) }
	require.NoError(t, os.WriteFile(file("README.md"), []byte("above\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nbelow\n"), 0o644))
	lab := labCommand(t, "bench", "--quick", "--json", file("report.json"), "--html", file("report.html"), "--markdown", file("README.md"))
	out, err := lab.Output()
	require.NoError(t, err, lab.stderr.String())
	lab.requireNothingLeft(t)
	assert.Contains(t, string(out), "\nhot item, 4 clients, 1 instance, 1,000 stored\n")

	var report bench.Report
	data, err := os.ReadFile(file("report.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &report))
	require.Len(t, report.Results, 4)
	for _, result := range report.Results {
		assert.Positive(t, result.PerSecond.Median, result.Contender)
		assert.Len(t, result.Samples, 1)
	}
	page, err := os.ReadFile(file("report.html"))
	require.NoError(t, err)
	assert.Contains(t, string(page), "</html>")
	readme, err := os.ReadFile(file("README.md"))
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(readme), "above\n<!-- benchmark -->\n\n"), string(readme))
	assert.True(t, strings.HasSuffix(string(readme), "\n<!-- /benchmark -->\nbelow\n"), string(readme))
	assert.NotContains(t, string(readme), "old")
}

func TestBenchFlags(t *testing.T) {
	t.Parallel()
	read := func(args ...string) (benchCmd, error) {
		var c struct {
			Bench benchCmd `cmd:""`
		}
		parser, err := kong.New(&c)
		require.NoError(t, err)
		_, err = parser.Parse(append([]string{"bench"}, args...))
		return c.Bench, err
	}
	c, err := read()
	require.NoError(t, err)
	assert.Equal(t, bench.Contenders, c.contenders)
	assert.Len(t, c.scenarios, 8)
	c, err = read("--stored=10000000,1000000", "--contenders=redis,none", "--clients=64", "--rounds=5", "--duration=1s")
	require.NoError(t, err)
	assert.Len(t, c.contenders, 2)
	assert.Len(t, c.scenarios, 5+2*3, "many and few items, with none, a million and ten million stored")
	assert.Equal(t, time.Second, c.Duration)

	c, err = read("--only=1 client,", "--only=2 instances")
	require.NoError(t, err)
	assert.Len(t, c.scenarios, 2)

	for flag, says := range map[string]string{
		"--contenders=memcached": `"memcached" is no contender`,
		"--clients=0":            "--clients must be",
		"--clients=1,5000":       "--clients must be",
		"--stored=1":             "--stored must be",
		"--stored=-1000":         "--stored must be",
		"--only=nothing":         "fits no scenario",
		"--rounds=0":             "--rounds must be",
		"--duration=1ms":         "--duration must be",
	} {
		_, err := read(flag)
		assert.ErrorContains(t, err, says, flag)
	}
}
