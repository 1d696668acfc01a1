package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kong"

	"fencepost/domain"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // of audit: something is off
	exitUsage  = 2 // the command line or the configuration is wrong: trying again is no use. Of audit: there is no verdict
)

type commandLine struct {
	Config

	Serve      serveCommand     `cmd:"" help:"Run one instance of the service."`
	Migrate    migrateCommand   `cmd:"" help:"Bring the database's schema up to date, as its owner."`
	Audit      auditCommand     `cmd:"" help:"Count what was given out, and compare; exit code 1 if anything is off, 2 if there is no verdict."`
	Keys       keysCommand      `cmd:"" help:"Create, list and revoke API keys."`
	Switch     switchCommand    `cmd:"" help:"Put another lock strategy in charge; running instances that have its servers follow."`
	ShowConfig configCommand    `cmd:"" name:"config" help:"Print the configuration with its secrets hidden, and check it."`
	Version    kong.VersionFlag `help:"Print the version."`
}

// console is where a command writes: its results to out, everything else to err.
type console struct{ out, err io.Writer }

// run is the program, less the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (code int) {
	var cli commandLine
	command, err := cli.parser(stdout, stderr).Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "fencepost: %v; see fencepost --help\n", err)
		return exitUsage
	}
	command.BindTo(ctx, (*context.Context)(nil))
	err = command.Run(&cli.Config, console{out: stdout, err: stderr})
	if problems, ok := errors.AsType[configError](err); ok {
		for _, p := range problems {
			fmt.Fprintln(stderr, "fencepost:", p)
		}
		return exitUsage
	}
	if err != nil {
		fmt.Fprintln(stderr, "fencepost:", oneLine(cli.explain(err)))
		if _, ok := errors.AsType[noVerdictError](err); ok {
			return exitUsage
		}
		return exitFailed
	}
	return exitOK
}

func (cli *commandLine) parser(stdout, stderr io.Writer) *kong.Kong {
	return kong.Must(
		cli,
		kong.Name("fencepost"),
		kong.Description("A reservation service for inventory and coupons. Every flag is also an environment variable."),
		kong.Vars{"version": version()},
		kong.Writers(stdout, stderr),
		cli.lenientMappers(),
	)
}

// explain adds the address and the fix to the news that a server does not answer.
func (c *Config) explain(err error) error {
	unavailable, ok := errors.AsType[*domain.UnavailableError](err)
	if !ok {
		return err
	}
	var at, variable string
	switch unavailable.Server {
	case "PostgreSQL":
		at, variable = address(c.DatabaseURL), "FENCEPOST_DATABASE_URL"
	case "Redis":
		at, variable = address(c.RedisURL), "FENCEPOST_REDIS_URL"
	case "Redlock":
		return fmt.Errorf("the servers of Redlock cannot be used: start or correct them, or correct FENCEPOST_REDLOCK_URLS (%w)", err)
	case "ZooKeeper":
		at, variable = strings.Join(c.ZooKeeperServers, ","), "FENCEPOST_ZOOKEEPER_SERVERS"
	default:
		return err
	}
	return fmt.Errorf("%s at %s does not answer: start it or correct %s (%w)", unavailable.Server, at, variable, err)
}

// oneLine joins the lines of an error: drivers break theirs, and half of a message is easily lost in a log.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
