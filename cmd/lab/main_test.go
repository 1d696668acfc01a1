package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/servers"
)

// asLab has the test's binary run as the laboratory itself, so that a test can stop and kill one.
const asLab = "FENCEPOST_TEST_AS_LAB"

func TestMain(m *testing.M) {
	servers.RunJanitor()
	if os.Getenv(asLab) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// labProcess is a laboratory that runs as a process of its own.
type labProcess struct {
	*exec.Cmd
	stderr bytes.Buffer
	// folder is a private TMPDIR: what the laboratory leaves behind would be in it.
	folder string
}

// labCommand returns a laboratory to be started, in an environment that gives no server's address.
func labCommand(t *testing.T, args ...string) *labProcess {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	// Not t.TempDir, whose parent is closed to the unprivileged user that the servers run as.
	folder, err := os.MkdirTemp("", "fencepost-lab-test-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(folder, 0o711))
	t.Cleanup(func() { os.RemoveAll(folder) })
	lab := &labProcess{Cmd: exec.Command(self, args...), folder: folder}
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "FENCEPOST_") {
			lab.Env = append(lab.Env, variable)
		}
	}
	lab.Env = append(lab.Env, asLab+"=1", "TMPDIR="+folder)
	lab.Stderr = &lab.stderr
	lab.WaitDelay = 10 * time.Second // a process that is left over would hold the pipe open for ever
	return lab
}

// startLab starts a laboratory and returns when the line has appeared on its standard output.
func startLab(t *testing.T, line string, args ...string) *labProcess {
	t.Helper()
	lab := labCommand(t, args...)
	lab.awaitLine(t, line)
	return lab
}

func (l *labProcess) awaitLine(t *testing.T, line string) {
	t.Helper()
	out, err := l.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, l.Start())
	t.Cleanup(func() { _ = l.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), line) {
			return
		}
	}
	_ = l.Wait()
	t.Fatalf("the laboratory ended without printing %q:\n%s", line, l.stderr.String())
}

// processes lists the commands that run in the laboratory's folder or were given a path in it.
func (l *labProcess) processes(t *testing.T) map[int]string {
	t.Helper()
	found := make(map[int]string)
	add := func(pid, command, folder string) {
		if n, err := strconv.Atoi(pid); err == nil && strings.Contains(command+folder, l.folder) {
			found[n] = command
		}
	}
	if lines, err := filepath.Glob("/proc/[0-9]*/cmdline"); err == nil && len(lines) > 0 {
		for _, name := range lines {
			command, _ := os.ReadFile(name) // empty when it has just ended
			folder, _ := os.Readlink(filepath.Join(filepath.Dir(name), "cwd"))
			add(filepath.Base(filepath.Dir(name)), strings.ReplaceAll(string(command), "\x00", " "), folder)
		}
		return found
	}
	out, err := exec.Command("ps", "-A", "-ww", "-o", "pid=,command=").Output()
	require.NoError(t, err)
	for text := range strings.Lines(string(out)) {
		pid, command, _ := strings.Cut(strings.TrimSpace(text), " ")
		add(pid, command, "")
	}
	return found
}

// requireNothingLeft waits until no process and no folder of the laboratory is left.
func (l *labProcess) requireNothingLeft(t *testing.T) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		files, err := filepath.Glob(filepath.Join(l.folder, "fencepost-lab-*"))
		require.NoError(t, err)
		require.Empty(t, files)
	}, 10*time.Second, 20*time.Millisecond)
	require.Eventually(t, func() bool { return len(l.processes(t)) == 0 }, 5*time.Second, 20*time.Millisecond,
		"processes are left")
}

func (l *labProcess) exitCode() int {
	_ = l.Wait()
	return l.ProcessState.ExitCode()
}

func TestAdvice(t *testing.T) {
	t.Setenv("TMPDIR", "/small")
	for _, words := range []string{"link: mapping output file failed: no space left on device", `could not write to file "1247_fsm": No space left on device`} {
		require.Contains(t, advice(errors.New(words)), "free 150 MB below /small, or set TMPDIR")
	}
	require.Empty(t, advice(errors.New("no server")))
}
