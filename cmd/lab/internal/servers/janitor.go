package servers

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// janitorVariable marks the process that tidies up. Its value is the pattern of the folder to make.
const janitorVariable = "FENCEPOST_LAB_JANITOR"

// patience is how long a server may take to end in its own way before it is killed.
const patience = 3 * time.Second

// record names a process group that has to be gone when the laboratory is.
type record struct {
	PID     int
	Started string
	// Signal ends the group. PostgreSQL is sent SIGQUIT, on which it takes its backends and its shared memory with
	// it; whatever does not follow is killed.
	Signal syscall.Signal
}

// RunJanitor turns this process into a janitor if it was started as one, and then never returns. Every program
// that calls Start calls this first, tests in TestMain.
//
// A laboratory that is killed with SIGKILL cannot tidy up after itself. So it starts its own binary once more, in a
// session of its own, and holds one end of a pipe to it: when that end closes, for whatever reason, the janitor
// ends what was recorded and removes the folder.
func RunJanitor() {
	pattern, isJanitor := os.LookupEnv(janitorVariable)
	if !isJanitor {
		return
	}
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := tidy(pattern, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lab: tidying up:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func tidy(pattern string, in io.Reader, out io.Writer) error {
	// The janitor makes the folder, so that there is no moment in which it exists and nobody would remove it.
	dir, err := os.MkdirTemp("", pattern)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, dir); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	var records []record
	for decoder := json.NewDecoder(in); ; {
		var r record
		if err := decoder.Decode(&r); err != nil {
			break // the laboratory is gone, perhaps in the middle of a line
		}
		records = append(records, r)
	}
	return sweep(dir, records)
}

// sweep ends every recorded process group and removes the folder.
func sweep(dir string, records []record) error {
	killAt := time.Now().Add(patience)
	giveUp := killAt.Add(patience)
	survivors := make(map[int]string)
	for first := true; ; first = false {
		table, err := processTable()
		if err != nil {
			return err
		}
		for pid, started := range survivors {
			if e, ok := table[pid]; !ok || e.zombie || e.started != started {
				delete(survivors, pid)
			}
		}
		for _, r := range records {
			if leader, ok := table[r.PID]; ok && leader.started != r.Started {
				continue // another process has this number now
			}
			for _, pid := range tree(table, r.PID) {
				survivors[pid] = table[pid].started
				if r.Signal == syscall.SIGKILL {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				} else if first {
					_ = syscall.Kill(pid, syscall.SIGCONT) // a paused process cannot end
				}
			}
			if first && r.Signal != syscall.SIGKILL {
				_ = syscall.Kill(r.PID, r.Signal)
			}
		}
		if len(survivors) == 0 {
			break
		}
		if time.Now().After(killAt) {
			for pid := range survivors {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if time.Now().After(giveUp) {
			return fmt.Errorf("%d processes do not end; their folder %s stays", len(survivors), dir)
		}
		time.Sleep(20 * time.Millisecond)
	}
	removeSharedMemory(dir)
	return os.RemoveAll(dir)
}

// removeSharedMemory gives back the System V segment by which PostgreSQL guards a data directory, in case its
// postmaster was killed and could not. macOS has only 32 of them.
func removeSharedMemory(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, Postgres, "data", "postmaster.pid"))
	if err != nil {
		return // it ended properly
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) < 7 {
		return
	}
	if fields := strings.Fields(lines[6]); len(fields) == 2 { // key and number of the segment
		if id, err := strconv.Atoi(fields[1]); err == nil {
			_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		}
	}
}

// janitor is the laboratory's end of the pipe.
type janitor struct {
	cmd     *exec.Cmd
	pipe    io.WriteCloser
	dir     string
	records []record
}

func startJanitor() (*janitor, error) {
	if _, ok := os.LookupEnv(janitorVariable); ok {
		return nil, errors.New("this program starts a laboratory without calling servers.RunJanitor first")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), janitorVariable+"=fencepost-lab-*")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	dir, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the janitor did not start: %w", err), in.Close(), cmd.Wait())
	}
	return &janitor{cmd: cmd, pipe: in, dir: strings.TrimSuffix(dir, "\n")}, nil
}

func (j *janitor) record(r record) error {
	j.records = append(j.records, r)
	if err := json.NewEncoder(j.pipe).Encode(r); err != nil {
		return fmt.Errorf("the janitor is gone: %w", err)
	}
	return nil
}

// finish has everything tidied up, by this process if the janitor was killed.
func (j *janitor) finish() error {
	_ = j.pipe.Close()
	if err := j.cmd.Wait(); err != nil {
		return sweep(j.dir, j.records)
	}
	return nil
}
