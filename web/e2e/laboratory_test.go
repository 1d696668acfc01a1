package e2e_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

var startDemo = sync.OnceValues(func() (urls []string, err error) {
	folder, err := os.MkdirTemp("", "fencepost-demo-")
	if err != nil {
		return nil, err
	}
	stopDemo = func() { os.RemoveAll(folder) }
	binary := filepath.Join(folder, "lab")
	if output, err := exec.Command("go", "build", "-o", binary, "fencepost/cmd/lab").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, output)
	}
	lab := exec.Command(binary, "demo", "--require=postgres,redis,zookeeper")
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "FENCEPOST_") { // it is to have its own servers
			lab.Env = append(lab.Env, variable)
		}
	}
	var errors strings.Builder
	lab.Stderr = &errors
	out, err := lab.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := lab.Start(); err != nil {
		return nil, err
	}
	stopDemo = func() {
		_ = lab.Process.Signal(syscall.SIGINT)
		_ = lab.Wait()
		os.RemoveAll(folder)
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
