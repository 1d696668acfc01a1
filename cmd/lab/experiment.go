package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"fencepost/cmd/internal/block"
	"fencepost/cmd/lab/internal/experiments"
	"fencepost/cmd/lab/internal/servers"
)

type experimentCmd struct {
	List experimentListCmd `cmd:"" help:"List the experiments, with what each claims."`
	Run  experimentRunCmd  `cmd:"" help:"Run experiments: put claims about locks to the test, each beside a control that has to fail."`

	Readme experimentReadmeCmd `cmd:"" help:"Put the figures of which-one into a README."`
}

type experimentListCmd struct{}

// Run prints the names to the standard output.
func (experimentListCmd) Run() error {
	for _, e := range experiments.All {
		fmt.Printf("%s\n    %s\n", e.Name, e.Claim)
		if e.Control != "" {
			fmt.Printf("    Control: %s\n", e.Control)
		}
	}
	return nil
}

type experimentRunCmd struct {
	Names []string `arg:"" name:"name" help:"Experiments by name, or all."`
	Short bool     `help:"Measure for a shorter time. What is shown is the same; the figures are worth less."`
	JSON  string   `name:"json" type:"path" placeholder:"FILE" help:"Write everything that was found to this file."`
	HTML  string   `name:"html" type:"path" placeholder:"FILE" help:"Write a page with pictures to this file. It needs no network."`

	chosen []experiments.Experiment
}

// Help is the end of what --help prints.
func (experimentRunCmd) Help() string {
	return `The servers are private ones, whatever addresses are in the environment: they are killed, cut off and wiped.

Exit code 1: a claim is not confirmed, a control does not fail as it should, or there is no verdict.`
}

// Validate is called by kong when all flags are read.
func (c *experimentRunCmd) Validate() error {
	if slices.Contains(c.Names, "all") {
		c.chosen = experiments.All
		return nil
	}
	c.chosen = nil
	for _, name := range c.Names {
		e, err := experiments.Find(name)
		if err != nil {
			return err
		}
		c.chosen = append(c.chosen, e)
	}
	return nil
}

// Run prints what was found to the standard output and everything else to the standard error.
func (c *experimentRunCmd) Run(ctx context.Context) error {
	if err := writable(c.JSON, c.HTML); err != nil {
		return err
	}
	options := servers.Options{Require: []string{servers.Postgres, servers.Redis, servers.ZooKeeper}}
	return withLab(ctx, options, func(ctx context.Context, lab *servers.Lab) error {
		show, done := progressLine(os.Stderr)
		var printing []error
		results, err := experiments.Perform(ctx, lab, experiments.Options{
			Experiments: c.chosen, Short: c.Short, Progress: show,
			Done: func(r experiments.Result) {
				done() // its line is where the result goes
				printing = append(printing, r.Print(os.Stdout))
			},
		})
		done()
		if err != nil {
			return unlessStopped(ctx, err)
		}
		written := writeReport(c.JSON, c.HTML, experiments.NewReport(lab, results))
		if err := errors.Join(append(printing, written)...); err != nil {
			return err
		}
		return verdict(results)
	})
}

// verdict says which experiments have not come out as they should, if any.
func verdict(results []experiments.Result) error {
	var bad []string
	for _, r := range results {
		if !r.OK {
			bad = append(bad, r.Name)
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d of %d experiments have not come out as claimed: %s", len(bad), len(results), strings.Join(bad, ", "))
	}
	fmt.Printf("\nAll %d as claimed.\n", len(results))
	return nil
}

type experimentReadmeCmd struct {
	Report string `arg:"" type:"existingfile" help:"What 'experiment run' has written with --json; which-one must be in it."`
	File   string `arg:"" type:"existingfile" help:"The file with the lines <!-- which-one --> and <!-- /which-one -->."`
}

// Run writes the file, and prints nothing.
func (c *experimentReadmeCmd) Run() error {
	data, err := os.ReadFile(c.Report)
	if err != nil {
		return err
	}
	var report experiments.Report
	if err := json.Unmarshal(data, &report); err != nil {
		return fmt.Errorf("%s is no report of experiments: %w", c.Report, err)
	}
	text, err := report.WhichOne()
	if err != nil {
		return fmt.Errorf("%s: %w", c.Report, err)
	}
	return block.Write(c.File, "which-one", text)
}
