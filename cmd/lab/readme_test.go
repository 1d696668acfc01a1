package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every target of make, every command of the laboratory and every script of k6 that the README has anybody run is one that
// there is, with such arguments and flags.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	// bash splits the words; functions that print them stand for the programs.
	script := `
		go() { printf '%s\t' go "$@"; echo; }
		make() { printf '%s\t' make "$@"; echo; }
		k6() { printf '%s\t' k6 "$@"; echo; }
		curl() { :; }; sed() { :; }; tail() { :; }; grep() { :; }
`
	for _, block := range regexp.MustCompile("(?s)\n```sh\n(.*?)```\n").FindAllStringSubmatch(string(readme), -1) {
		script += block[1]
	}
	out, err := exec.CommandContext(t.Context(), "bash", "-e", "-c", script).CombinedOutput()
	require.NoError(t, err, string(out))
	seen := map[string]int{}
	for line := range strings.Lines(string(out)) {
		args := strings.Split(strings.TrimSuffix(strings.TrimSpace(line), "\t"), "\t")
		seen[args[0]]++
		assert.NoError(t, known(args), args)
	}
	assert.GreaterOrEqual(t, seen["make"], 5)
	assert.GreaterOrEqual(t, seen["go"], 10)
	assert.GreaterOrEqual(t, seen["k6"], 3)
	for _, wrong := range [][]string{ // the negative control
		{"make", "coffee"},
		{"make", "bench", "BENCH=--contenders memcached"},
		{"make", "experiments", "EXPERIMENTS=nonsense"},
		{"go", "run", "./cmd/lab", "load", "--strategies", "redis"},
		{"go", "run", "./cmd/labs", "load"},
		{"k6", "run", "cmd/lab/k6/none.js"},
	} {
		assert.Error(t, known(wrong), wrong)
	}
}

// known is nil if there is such a command.
func known(args []string) error {
	switch args[0] {
	case "k6":
		_, err := os.Stat("../../" + args[len(args)-1])
		return err
	case "make":
		makefile, err := os.ReadFile("../../Makefile")
		if err == nil && !regexp.MustCompile("(?m)^"+args[1]+":").Match(makefile) {
			err = os.ErrNotExist
		}
		if err != nil || len(args) == 2 {
			return err
		}
		// A variable that is handed on to the laboratory.
		name, value, _ := strings.Cut(args[2], "=")
		command := map[string][]string{"BENCH": {"bench"}, "EXPERIMENTS": {"experiment", "run"}}[name]
		_, err = newParser().Parse(append(command, strings.Fields(value)...))
		return err
	}
	if strings.Join(args[1:3], " ") != "run ./cmd/lab" {
		_, err := os.Stat("../../" + args[2])
		return err
	}
	_, err := newParser().Parse(args[3:])
	return err
}
