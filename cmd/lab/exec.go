package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"fencepost/cmd/lab/internal/servers"
)

// grace is how long the command may take to end after it was asked to.
const grace = 10 * time.Second

type execCmd struct {
	Require []string `default:"postgres,redis,zookeeper" enum:"postgres,redis,zookeeper" help:"Servers that must be there: postgres, redis, zookeeper."`
	Command []string `arg:"" passthrough:"" help:"The command, after --."`
}

// Run gives the command an empty database, and a missing server is an error unless --require leaves it out: tests
// that pass because half of the servers were absent prove nothing.
func (c *execCmd) Run(ctx context.Context) error {
	command := c.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		return errors.New("no command: lab exec -- COMMAND [ARGUMENT...]")
	}
	options := servers.Options{Getenv: os.Getenv, Require: c.Require, RequireEmpty: true}
	return withLab(ctx, options, func(ctx context.Context, lab *servers.Lab) error {
		return execute(ctx, lab, command)
	})
}

// execute runs the command in a process group of its own, so that everything it has started can be ended with it.
func execute(ctx context.Context, lab *servers.Lab, command []string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), lab.Env()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	defer lendTerminal(cmd)()
	if err := lab.Start(cmd); err != nil {
		return err
	}
	group := -cmd.Process.Pid
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	// Whatever the command has left running goes too.
	defer syscall.Kill(group, syscall.SIGKILL) // usually there is nothing left

	select {
	case err := <-exited:
		return code(err)
	case <-ctx.Done():
	}
	signal := syscall.SIGTERM
	var stopped stoppedBy
	if errors.As(context.Cause(ctx), &stopped) {
		signal = stopped.Signal
	}
	_ = syscall.Kill(group, signal)
	var err error
	select {
	case err = <-exited:
	case <-time.After(grace):
		fmt.Fprintf(os.Stderr, "lab: the command has not ended %s after %s; killing it\n", grace, signal)
		_ = syscall.Kill(group, syscall.SIGKILL)
		err = <-exited
	}
	if cause := ended(ctx); cause != nil {
		return cause
	}
	return code(err)
}

// code passes the command's exit code on; a shell's convention stands for an end by signal.
func code(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitCode(128 + int(status.Signal()))
	}
	return exitCode(exit.ExitCode())
}

// lendTerminal makes the command's group the terminal's foreground group if the laboratory's own is that, so that
// the command can read from it and receives Ctrl-C. The function it returns takes the terminal back.
func lendTerminal(cmd *exec.Cmd) func() {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return func() {}
	}
	if foreground, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil || foreground != unix.Getpgrp() {
		return func() {}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: fd}
	return func() {
		signal.Ignore(syscall.SIGTTOU) // which stops a background process that does this
		_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, unix.Getpgrp())
	}
}
