package e2e_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// laboratory is the demonstration with servers of its own, as make demo starts it: those of the other tests must not be broken.
// It is started when the first test needs it, and ends with the last. It returns the addresses of the instances.
func laboratory(t *testing.T) []string {
	t.Helper()
	urls, err := startDemo()
	require.NoError(t, err)
	return urls
}

var stopDemo = func() {}

// watched is a shell that runs a command and ends it when the pipe closes that the shell reads from: when the tests want it, or
// when they were killed and cannot.
const watched = `"$0" "$@" </dev/null & cat; kill -TERM $!; wait $!`

var startDemo = sync.OnceValues(func() (urls []string, err error) {
	binary, err := build("lab")
	if err != nil {
		return nil, err
	}
	lab := exec.Command("sh", "-c", watched, binary, "demo", "--require=postgres,redis,zookeeper")
	lab.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "FENCEPOST_") { // it is to have its own servers
			lab.Env = append(lab.Env, variable)
		}
	}
	lab.Env = append(lab.Env, connections)
	var errors strings.Builder
	lab.Stderr = &errors
	out, err := lab.StdoutPipe()
	if err != nil {
		return nil, err
	}
	in, err := lab.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := lab.Start(); err != nil {
		return nil, err
	}
	stopDemo = func() {
		_ = in.Close()
		_ = lab.Wait()
	}
	instance := regexp.MustCompile(`^instance \d+ +(\S+)`)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if found := instance.FindStringSubmatch(lines.Text()); found != nil {
			urls = append(urls, found[1])
		}
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			go func() { // so that it never waits for somebody who reads
				for lines.Scan() {
				}
			}()
			return urls, nil
		}
	}
	return nil, fmt.Errorf("the demonstration has ended: %s", &errors)
})
