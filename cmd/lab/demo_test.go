package main

import (
	"bufio"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The tests of the demo do not run side by side: each wants the well-known port.

func TestDemo(t *testing.T) {
	lab := labCommand(t, "demo")
	out, err := lab.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, lab.Start())
	t.Cleanup(func() { _ = lab.Process.Kill() })
	var printed strings.Builder
	for lines := bufio.NewScanner(out); !strings.Contains(printed.String(), "Ctrl-C stops"); printed.WriteString(lines.Text() + "\n") {
		require.True(t, lines.Scan(), "the demo has ended")
	}
	page := regexp.MustCompile(`Open the page: +(http://127\.0\.0\.1:\d+)/\n`).FindStringSubmatch(printed.String())
	require.NotNil(t, page, printed.String())
	assert.Contains(t, printed.String(), "curl -i -X POST "+page[1]+"/v1/items/concert-ticket/reservations ")
	assert.Contains(t, printed.String(), "go run ./cmd/lab load --url "+page[1]+" --strategy none --fencing off\n")
	response, err := http.Get(page[1] + "/v1/items/concert-ticket")
	require.NoError(t, err)
	response.Body.Close()
	assert.Equal(t, http.StatusOK, response.StatusCode, "what the curl line asks for is there")

	require.NoError(t, lab.Process.Signal(os.Interrupt))
	require.Equal(t, 0, lab.exitCode(), lab.stderr.String())
	lab.requireNothingLeft(t)
}

// Ctrl-C while something starts is no crash: no error, no logs of servers, and the exit code that make takes for success.
func TestCtrlCWhileStarting(t *testing.T) {
	for name, test := range map[string]struct {
		args    []string
		process string // is running at the moment
		code    int
	}{
		"demo: PostgreSQL": {[]string{"demo"}, "initdb", 0},
		"demo: build":      {[]string{"demo"}, "go build", 0},
		"demo: instances":  {[]string{"demo"}, "fencepost serve", 0},
		"up":               {[]string{"up"}, "initdb", 0},
		// These were started for a result, and have none.
		"exec":         {[]string{"exec", "--", "true"}, "initdb", 130},
		"bench: build": {[]string{"bench", "--quick"}, "go build", 130},
		"bench: peer":  {[]string{"bench", "--quick"}, "peers bsm-redislock", 130},
	} {
		t.Run(name, func(t *testing.T) {
			lab := labCommand(t, test.args...)
			lab.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			require.NoError(t, lab.Start())
			t.Cleanup(func() { _ = lab.Process.Kill() })
			require.Eventually(t, func() bool {
				for _, command := range lab.processes(t) {
					if strings.Contains(command, test.process) {
						return true
					}
				}
				return false
			}, time.Minute, 20*time.Millisecond) // a look reads all of /proc
			// A terminal sends it to the whole group.
			require.NoError(t, syscall.Kill(-lab.Process.Pid, syscall.SIGINT))
			require.Equal(t, test.code, lab.exitCode(), lab.stderr.String())
			for _, line := range strings.Split(lab.stderr.String(), "\n") {
				require.NotRegexp(t, `^lab:|^ `, line, "an error, or the end of a log")
			}
			lab.requireNothingLeft(t)
			files, err := os.ReadDir(lab.folder)
			require.NoError(t, err)
			require.Empty(t, files)
		})
	}
}
