package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"fencepost/cmd/lab/internal/servers"
)

type upCmd struct {
	Require []string `default:"postgres" enum:"postgres,redis,zookeeper" help:"Servers that must be there: postgres, redis, zookeeper."`
}

// Run prints the variables in a form that a shell can read.
func (c *upCmd) Run(ctx context.Context) error {
	err := withLab(ctx, servers.Options{Getenv: os.Getenv, Require: c.Require}, func(ctx context.Context, lab *servers.Lab) error {
		for _, variable := range lab.Env() {
			name, value, _ := strings.Cut(variable, "=")
			fmt.Printf("export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
		}
		fmt.Fprintln(os.Stderr, "Ready. Ctrl-C ends the servers and removes their data.")
		return ended(ctx)
	})
	return exceptSignal(err)
}
