// Command fencepost is the reservation service and its operator's tools. This package is the wiring: the configuration, the
// commands, and the one place where handlers, use cases, locks and store meet.
//
// It promises that a configuration is checked as a whole before anything is opened, that a start-up error is one line that
// says what to mend and shows no password, and that SIGTERM ends the service without breaking off what it has begun.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // from now on a second signal has its ordinary effect and ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
