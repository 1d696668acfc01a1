package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/experiments"
)

func TestExperimentRun(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	file := func(name string) string { return filepath.Join(folder, name) }
	lab := labCommand(t, "experiment", "run", "row-lock", "--short", "--json", file("report.json"), "--html", file("report.html"))
	lab.Env = append(lab.Env, "FENCEPOST_DATABASE_URL=postgres://127.0.0.1:1/somebodys") // which is left alone
	out, err := lab.Output()
	require.NoError(t, err, lab.stderr.String())
	lab.requireNothingLeft(t)
	assert.Contains(t, string(out), "row-lock: confirmed")
	assert.Contains(t, string(out), "All 1 as claimed.")

	var report experiments.Report
	data, err := os.ReadFile(file("report.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &report))
	require.Len(t, report.Results, 1)
	assert.True(t, report.Results[0].OK)
	page, err := os.ReadFile(file("report.html"))
	require.NoError(t, err)
	assert.Contains(t, string(page), `<h2 id="row-lock">`)
}

func TestExperimentArguments(t *testing.T) {
	t.Parallel()
	list, err := labCommand(t, "experiment", "list").Output()
	require.NoError(t, err)
	for _, e := range experiments.All {
		assert.Contains(t, string(list), e.Name+"\n    "+e.Claim)
	}
	unknown := labCommand(t, "experiment", "run", "magic")
	require.Error(t, unknown.Run())
	assert.Equal(t, 2, unknown.ProcessState.ExitCode())
	assert.Contains(t, unknown.stderr.String(), `"magic" is no experiment: name one of no-lock, `)
}

func TestVerdict(t *testing.T) {
	require.NoError(t, verdict([]experiments.Result{{Name: "a", OK: true}}))
	require.EqualError(t, verdict([]experiments.Result{{Name: "a", OK: true}, {Name: "b"}}),
		"1 of 2 experiments have not come out as claimed: b")
}

func TestExperimentReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(readme), "<!-- which-one -->")
	measured, _, _ := strings.Cut(rest, "<!-- /which-one -->")
	for _, strategy := range []string{"none", "local", "postgres", "redis", "redlock", "zookeeper"} {
		assert.Contains(t, measured, "| `"+strategy+"` |", "run 'make experiments', and 'lab experiment readme'")
	}
	assert.Contains(t, string(readme), fmt.Sprintf("%d claims", len(experiments.All)))

	file := filepath.Join(t.TempDir(), "report.json")
	for content, says := range map[string]string{
		"":                 "is no report of experiments",
		`{"results":[]}`:   "it has no result of which-one",
		`{"results":[{}]}`: "it has no result of which-one",
	} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
		require.ErrorContains(t, (&experimentReadmeCmd{Report: file, File: "../../README.md"}).Run(), says)
	}
}
