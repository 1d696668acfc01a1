package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

const readme = "../../README.md"

// section is the part of the README under a heading.
func section(t *testing.T, heading string) string {
	t.Helper()
	text, err := os.ReadFile(readme)
	require.NoError(t, err)
	_, after, found := strings.Cut(string(text), "\n## "+heading+"\n")
	require.True(t, found, heading)
	part, _, _ := strings.Cut(after, "\n## ")
	return part
}

// The README's table of variables is what the command writes. The negative controls are tables that are not current.
func TestReadmeHasTheConfiguration(t *testing.T) {
	current, err := os.ReadFile(readme)
	require.NoError(t, err)
	for what, content := range map[string]string{
		"":                  string(current),
		"another default":   strings.Replace(string(current), "`FENCEPOST_LEASE_TTL` | `--lease-ttl=10s` | `10s`", "`FENCEPOST_LEASE_TTL` | `--lease-ttl=1s` | `1s`", 1),
		"a row too few":     regexp.MustCompile("(?m)^\\| `FENCEPOST_DEMO` .*\n").ReplaceAllString(string(current), ""),
		"a row of old":      strings.Replace(string(current), "| `FENCEPOST_DEMO`", "| `FENCEPOST_OLD` | | | |\n| `FENCEPOST_DEMO`", 1),
		"other words in it": strings.Replace(string(current), "| Where to listen. |", "| Where it listens. |", 1),
	} {
		file := filepath.Join(t.TempDir(), "README.md")
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
		code, stdout, stderr := runIn(t, nil, "config", "--markdown", file)
		require.Equal(t, exitOK, code, stderr)
		assert.Empty(t, stdout)
		written, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, what == "", string(written) == content, "run 'go run ./cmd/fencepost config --markdown README.md' (%s)", what)
		assert.Equal(t, string(current), string(written), what)
	}
	table := section(t, "Configuration")
	for _, name := range configVariables() {
		assert.Contains(t, table, "| `"+name+"` | ")
	}
	code, _, stderr := runIn(t, nil, "config", "--markdown", os.DevNull)
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, stderr, "has no lines <!-- configuration --> and <!-- /configuration -->")
}

// The README's lines with curl are answered as it says they are, sent by curl from bash, as they stand but for the address.
func TestReadmeWithCurl(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "0s"})
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"concert-ticket","name":"Concert ticket","stock":100}`) // as the demo does
	require.Equal(t, 201, status, answer)

	// At the beginning of the README the answer is a block of its own.
	first := regexp.MustCompile("```sh\n(curl .*\n)```\n\n```\n((?:.*\n)*?)```\n").FindStringSubmatch(section(t, "Run it"))
	require.NotNil(t, first)
	steps := []step{{first[1], "201 " + strings.ReplaceAll(strings.TrimSpace(first[2]), "\n", " … ")}}
	steps[0].answer = regexp.MustCompile(`dur=[0-9.]+`).ReplaceAllString(steps[0].answer, "dur=…")

	block := regexp.MustCompile("```sh\n((?:.*\n)*?)```\n").FindStringSubmatch(section(t, "API"))
	require.NotNil(t, block)
	for line := range strings.Lines(block[1]) {
		if answer, ok := strings.CutPrefix(line, "# "); ok {
			steps[len(steps)-1].answer = strings.TrimSpace(answer)
		} else if line != "\n" {
			steps = append(steps, step{command: line})
		}
	}
	checked := 0
	for n, output := range runSteps(t, i.url, steps) {
		if steps[n].answer == "" {
			continue
		}
		checked++
		assert.Regexp(t, steps[n].pattern(), output, steps[n].command)
		for _, wrong := range []string{"30" + steps[n].answer[2:], steps[n].answer + "…x"} { // the negative control
			assert.NotRegexp(t, step{answer: wrong}.pattern(), output)
		}
	}
	assert.GreaterOrEqual(t, checked, 10)
}

// step is a line of the README, and what comes of it: a status, then the answer with … for what is left out.
type step struct{ command, answer string }

func (s step) pattern() string {
	status, answer, _ := strings.Cut(s.answer, " ")
	return `(?s)^` + regexp.MustCompile(`\s*…\s*`).ReplaceAllLiteralString(regexp.QuoteMeta(answer), `.*?`) + `\s*` + status + `$`
}

// runSteps runs the steps in one shell, and returns what each has printed, the statuses of its answers included.
func runSteps(t *testing.T, url string, steps []step) []string {
	t.Helper()
	home := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(home, ".curlrc"), []byte("silent\nnoproxy = \"*\"\nwrite-out = \"\\n%{http_code}\\n\"\n"), 0o600))
	const end = "-- the end of a step --\n"
	var script strings.Builder
	for _, s := range steps {
		script.WriteString(strings.ReplaceAll(s.command, "http://127.0.0.1:8080", url))
		script.WriteString("printf %s '" + end + "'\n")
	}
	bash := exec.CommandContext(t.Context(), "bash")
	bash.Env = append(os.Environ(), "CURL_HOME="+home)
	bash.Stdin = strings.NewReader(script.String())
	out, err := bash.Output()
	require.NoError(t, err)
	outputs := strings.Split(strings.ReplaceAll(string(out), "\r\n", "\n"), end)
	require.Len(t, outputs, len(steps)+1)
	for n := range outputs {
		outputs[n] = strings.TrimSpace(outputs[n])
	}
	return outputs[:len(steps)]
}

// Every command that the README has anybody run is one that there is, with such arguments and flags.
func TestReadmeCommands(t *testing.T) {
	var commands [][]string
	// bash splits the words; the functions stand for the programs.
	const functions = `go() { if [ "$1 $2" = "run ./cmd/fencepost" ]; then shift 2; printf '%s\t' "$@"; echo; fi; }
		curl() { :; }; make() { :; }; k6() { :; }; sed() { :; }; tail() { :; }; grep() { :; }
	`
	text, err := os.ReadFile(readme)
	require.NoError(t, err)
	for _, block := range regexp.MustCompile("(?s)\n```sh\n(.*?)```\n").FindAllStringSubmatch(string(text), -1) {
		out, err := exec.CommandContext(t.Context(), "bash", "-e", "-c", functions+block[1]).CombinedOutput()
		require.NoError(t, err, "%s\n%s", block[1], out)
		for line := range strings.Lines(string(out)) {
			commands = append(commands, strings.Split(strings.TrimSpace(line), "\t"))
		}
	}
	require.GreaterOrEqual(t, len(commands), 7)
	clean(t, nil)
	for _, args := range append(commands, []string{"switch", "inventory"}, []string{"keys", "forget"}) { // the last two are the negative control
		var cli commandLine
		_, err := cli.parser(&bytes.Buffer{}, io.Discard).Parse(args)
		if args[len(args)-1] == "forget" || len(args) == 2 && args[0] == "switch" {
			assert.Error(t, err, args)
		} else {
			assert.NoError(t, err, args)
		}
	}
}
