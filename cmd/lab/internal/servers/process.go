package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Command describes a process that the laboratory looks after.
type Command struct {
	Name string
	Path string
	Args []string
	Env  []string
	// Ready is asked again and again until it returns nil or the process has ended.
	Ready func(ctx context.Context) error
	// Output receives what the process prints; nil stands for a file in the laboratory's folder, whose tail is part
	// of the error when the process fails.
	Output *os.File
	// stop asks for an orderly end, end for a quick one of the whole tree. Both are SIGTERM and SIGKILL unless set.
	stop, end syscall.Signal
	// unprivileged: runs as another user when the laboratory runs as root.
	unprivileged bool
}

// Process is a child of the laboratory that can be stopped, paused and started again. An end that one of its
// methods caused is expected; any other fails the laboratory (see [Lab.Failed]). Its methods may be called from
// several goroutines, but one at a time makes most sense.
type Process struct {
	lab     *Lab
	command Command
	log     string

	mu sync.Mutex
	// pid and ended belong to the present or latest run; ended is closed when that run is over.
	pid   int
	ended chan struct{}
	// wanted: it is to be running, so its end is a failure.
	wanted bool
}

// Launch starts the command and returns when it is ready.
func (l *Lab) Launch(ctx context.Context, command Command) (*Process, error) {
	if command.stop == 0 {
		command.stop = syscall.SIGTERM
	}
	if command.end == 0 {
		command.end = syscall.SIGKILL
	}
	p := &Process{lab: l, command: command, log: filepath.Join(l.Dir(), command.Name+".log")}
	l.mu.Lock()
	l.children = append(l.children, p)
	l.mu.Unlock()
	if err := p.Start(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Start runs the command, again after [Process.Stop] or [Process.Kill], and returns when it is ready. A process that
// does not become ready before ctx ends is killed, and the error ends with the tail of its log.
func (p *Process) Start(ctx context.Context) error {
	ended, err := p.run()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.command.Name, err)
	}
	for {
		err := p.command.Ready(ctx)
		select {
		case <-ended:
			return fmt.Errorf("%s ended before it was ready%s", p.command.Name, p.logTail())
		default:
		}
		if err == nil {
			break
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			_ = p.Kill()
			return fmt.Errorf("%s is not ready: %w (%w)%s", p.command.Name, err, context.Cause(ctx), p.logTail())
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return fmt.Errorf("%s ended when it had just become ready%s", p.command.Name, p.logTail())
	}
	p.wanted = true
	return nil
}

// run starts the command and returns a channel that is closed when it has ended.
func (p *Process) run() (<-chan struct{}, error) {
	cmd := exec.Command(p.command.Path, p.command.Args...)
	cmd.Env = p.command.Env
	cmd.Dir = p.lab.Dir()
	// A group of its own: the terminal's Ctrl-C goes to the laboratory alone, which then stops its servers in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if p.command.unprivileged {
		cmd.SysProcAttr.Credential = p.lab.credential
	}
	output := p.command.Output
	if output == nil {
		file, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		output = file
	}
	cmd.Stdout, cmd.Stderr = output, output

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return nil, errors.New("it is running already")
	}
	if err := p.lab.start(cmd, p.command.end); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	p.pid, p.ended, p.wanted = cmd.Process.Pid, ended, false
	p.lab.waiters.Go(func() {
		_ = cmd.Wait() // its state says how it ended
		p.mu.Lock()
		defer p.mu.Unlock()
		close(ended)
		if p.wanted {
			p.lab.fail(fmt.Errorf("%s ended by itself (%s)%s", p.command.Name, cmd.ProcessState, p.logTail()))
		}
	})
	return ended, nil
}

// PID returns the number of the present or latest run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Stop asks the process to end in its own way and waits for it, at most until ctx ends; then it is killed.
func (p *Process) Stop(ctx context.Context) error {
	ended := p.expectEnd()
	if err := p.Resume(); err != nil { // a paused process cannot stop
		return err
	}
	p.signal(p.command.stop)
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return errors.Join(
			fmt.Errorf("%s did not stop in time and was killed: %w", p.command.Name, context.Cause(ctx)),
			p.Kill())
	}
}

// Kill ends the process and everything it has started with SIGKILL, and returns when that has happened.
func (p *Process) Kill() error {
	ended := p.expectEnd()
	// A stopped parent starts no further children between the moment they are listed and their end.
	p.signal(syscall.SIGSTOP)
	killed, err := p.signalTree(syscall.SIGKILL)
	if err != nil {
		return err
	}
	<-ended
	// PostgreSQL does not start again while one of its old backends is still on its way out.
	for {
		table, err := processTable()
		if err != nil {
			return err
		}
		maps.DeleteFunc(killed, func(pid int, started string) bool {
			e, ok := table[pid]
			return !ok || e.zombie || e.started != started
		})
		if len(killed) == 0 {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}

// Pause freezes the process and everything it has started. Its connections stay open and nothing answers on them.
func (p *Process) Pause() error {
	p.signal(syscall.SIGSTOP)
	_, err := p.signalTree(syscall.SIGSTOP)
	return err
}

// Resume lets a paused process go on.
func (p *Process) Resume() error {
	_, err := p.signalTree(syscall.SIGCONT)
	return err
}

// expectEnd says that the end of the present run will be no failure.
func (p *Process) expectEnd() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = false
	return p.ended
}

// running wants p.mu held.
func (p *Process) running() bool {
	if p.ended == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *Process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		_ = syscall.Kill(p.pid, s)
	}
}

// signalTree signals the process and everything it has started, and returns those: when each started, by number.
func (p *Process) signalTree(s syscall.Signal) (map[int]string, error) {
	table, err := processTable()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	sent := make(map[int]string)
	if p.running() {
		for _, pid := range tree(table, p.pid) {
			sent[pid] = table[pid].started
			_ = syscall.Kill(pid, s)
		}
	}
	return sent, nil
}

// logTail returns the last lines of the log, as the end of an error message.
func (p *Process) logTail() string {
	const lines = 20
	data, err := os.ReadFile(p.log)
	if err != nil || len(data) == 0 {
		return ""
	}
	all := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	tail := all[max(0, len(all)-lines):]
	return "; the end of its log:\n  " + string(bytes.Join(tail, []byte("\n  ")))
}
