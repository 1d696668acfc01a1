package main

import (
	"bufio"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

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
