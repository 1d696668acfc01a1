// Command lab is the laboratory: it starts real servers as private child processes, runs things against them, and
// leaves nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"fencepost/cmd/lab/internal/servers"
)

type cli struct {
	Up    upCmd    `cmd:"" help:"Start the servers, print their addresses, and wait for Ctrl-C."`
	Exec  execCmd  `cmd:"" help:"Start the servers, run a command with their addresses in its environment, and return its exit code."`
	Demo  demoCmd  `cmd:"" help:"Start the servers and three instances of the service, and put an item on sale."`
	Load  loadCmd  `cmd:"" help:"Have many buyers race for items or coupons over running instances, under one lock or several in turn, and take the verdict from the database's own count."`
	Bench benchCmd `cmd:"" help:"Start the servers, and measure each strategy beside the services that users of other libraries would write."`

	Experiment experimentCmd `cmd:"" help:"Put what is claimed of distributed locks to the test, on private servers."`
}

func main() {
	servers.RunJanitor()
	os.Exit(run(os.Args[1:]))
}

func newParser() *kong.Kong {
	return kong.Must(&cli{}, kong.Name("lab"), kong.Description(
		"The laboratory: PostgreSQL, five Redis and ZooKeeper, real ones, on free loopback ports. "+
			"An address that is already in the environment (FENCEPOST_DATABASE_URL and its kin) is used as it is."))
}

func run(args []string) int {
	parsed, err := newParser().Parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 2
	}
	ctx, stop := untilStopped()
	defer stop()
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run()
	var code exitCode
	var stopped stoppedBy
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &stopped):
		return 128 + int(stopped.Signal) // whoever has sent it needs no words
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		fmt.Fprint(os.Stderr, advice(err))
		return 1
	}
}

// advice is what may help against an error whose words come from a program that does not know what it is run for.
func advice(err error) string {
	if strings.Contains(strings.ToLower(err.Error()), "no space left on device") {
		return fmt.Sprintf("lab: the disk is full: free 150 MB below %s, or set TMPDIR to a folder that has them\n", os.TempDir())
	}
	return ""
}

// exitCode is an error that was reported already and decides the exit code.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// stoppedBy is the cause of a context that a signal ended.
type stoppedBy struct{ syscall.Signal }

func (s stoppedBy) Error() string { return "stopped by signal: " + s.Signal.String() }

var errOrphaned = errors.New("the process that started the laboratory is gone")

// untilStopped returns a context that ends with a signal, or with the parent process: a SIGTERM to `go run` ends that
// alone and never arrives here.
func untilStopped() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	parent := os.Getppid()
	go func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case s := <-signals:
				cancel(stoppedBy{s.(syscall.Signal)})
			case <-ticker.C:
				if os.Getppid() != parent {
					cancel(errOrphaned)
				}
			case <-ctx.Done():
				return // a second signal does not cut the tidying short
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// withLab runs f in a laboratory. The context of f ends when the laboratory is to stop or when one of its processes
// has failed. A signal is the ordinary end: what f made of it counts. Before f has begun, it is the error.
func withLab(ctx context.Context, options servers.Options, f func(context.Context, *servers.Lab) error) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lab, err := servers.Start(ctx, options)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	if err := lab.Table(os.Stderr); err != nil {
		return err
	}
	go func() {
		select {
		case err := <-lab.Failed():
			cancel(err)
		case <-ctx.Done():
		}
	}()
	return f(ctx, lab)
}

// unlessStopped returns err, or the signal in its place if one has ended ctx: what fails then was only broken off, and its
// last words would look like a crash.
func unlessStopped(ctx context.Context, err error) error {
	if stopped, ok := errors.AsType[stoppedBy](context.Cause(ctx)); ok {
		return stopped
	}
	return err
}

// exceptSignal is for commands that nothing but a signal ends, at whatever moment it comes: it is no error of theirs.
func exceptSignal(err error) error {
	if errors.As(err, new(stoppedBy)) {
		return nil
	}
	return err
}

// ended waits for the end of ctx and returns nil when a signal caused it.
func ended(ctx context.Context) error {
	<-ctx.Done()
	return exceptSignal(context.Cause(ctx))
}
