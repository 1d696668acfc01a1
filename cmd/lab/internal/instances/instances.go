// Package instances runs instances of the service, built from this module, as children of a laboratory. Other programs that
// listen on FENCEPOST_LISTEN and answer /readyz can stand in for the service.
//
// It promises what the laboratory promises: an instance that ends by itself is a failure, and none outlives the
// laboratory. It knows the service only by its commands, its variables and /readyz.
package instances

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"fencepost/cmd/lab/internal/servers"
)

const (
	readyTimeout = 5 * time.Second
	stopTimeout  = 10 * time.Second
)

// Config describes instances that are alike but for their addresses.
type Config struct {
	// Binary is what Build returned.
	Binary string
	// Args are the program's arguments; nil stands for the service's serve.
	Args []string
	// Addresses, host:port, say where to listen and so how many instances there are.
	Addresses []string
	// Env is added to the environment of this process and to the addresses of the servers.
	Env []string
	// EnvOf, if set, is added for one instance: the one at Addresses[i].
	EnvOf func(i int) []string
	// Output receives the logs; nil stands for a file for each instance in the laboratory's folder.
	Output *os.File
}

// Instance is a running instance of the service.
type Instance struct {
	URL string
	*servers.Process
}

// Build compiles the service into the laboratory's folder and returns the program's path.
func Build(ctx context.Context, lab *servers.Lab) (string, error) {
	return BuildProgram(ctx, lab, "", "fencepost/cmd/fencepost")
}

// BuildProgram compiles a program of the module that dir is in; empty stands for the working directory.
func BuildProgram(ctx context.Context, lab *servers.Lab, dir, program string) (string, error) {
	binary := filepath.Join(lab.Dir(), path.Base(program))
	// Without what a debugger would need, the program is linked in two thirds of the time.
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-w", "-o", binary, program)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOTMPDIR="+lab.Dir()) // a build that is broken off leaves files behind
	output, err := Run(lab, cmd)
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", program, err, output)
	}
	return binary, nil
}

// SourceDir returns the folder of a package of this module.
func SourceDir(ctx context.Context, lab *servers.Lab, pkg string) (string, error) {
	output, err := Run(lab, exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", pkg))
	if err != nil {
		return "", fmt.Errorf("find the source of %s: %w\n%s", pkg, err, output)
	}
	return strings.TrimSpace(output), nil
}

// Migrate brings the schema of the laboratory's database up to date.
func Migrate(ctx context.Context, lab *servers.Lab, binary string) error {
	cmd := exec.CommandContext(ctx, binary, "migrate")
	cmd.Env = append(os.Environ(), lab.Env()...)
	if output, err := Run(lab, cmd); err != nil {
		return fmt.Errorf("migrate the database: %w\n%s", err, output)
	}
	return nil
}

// Run returns what the command has printed when it has ended. The terminal's Ctrl-C goes to the laboratory alone, which
// passes it on when the command's context ends: so the command never ends for a reason that the laboratory does not know yet.
func Run(lab *servers.Lab, cmd *exec.Cmd) (output string, err error) {
	var printed strings.Builder
	cmd.Stdout, cmd.Stderr = &printed, &printed
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = stopTimeout
	if err := lab.Start(cmd); err != nil {
		return "", err
	}
	err = cmd.Wait()
	return printed.String(), err
}

// Start starts the instances side by side and returns when each is ready. An instance that is not ready within five
// seconds is an error that ends with the tail of its log.
func Start(ctx context.Context, lab *servers.Lab, config Config) ([]*Instance, error) {
	instances := make([]*Instance, len(config.Addresses))
	urls := make([]string, len(config.Addresses))
	for i, address := range config.Addresses {
		urls[i] = "http://" + address
	}
	args := config.Args
	if args == nil {
		args = []string{"serve"}
	}
	var group errgroup.Group
	for i, address := range config.Addresses {
		group.Go(func() error {
			env := append(os.Environ(), lab.Env()...)
			env = append(env, "FENCEPOST_INSTANCES="+strings.Join(urls, ","))
			env = append(env, config.Env...)
			if config.EnvOf != nil {
				env = append(env, config.EnvOf(i)...)
			}
			env = append(env, "FENCEPOST_LISTEN="+address)
			ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("waited %s", readyTimeout))
			defer cancel()
			process, err := lab.Launch(ctx, servers.Command{
				Name:   fmt.Sprintf("instance-%d", i+1),
				Path:   config.Binary,
				Args:   args,
				Env:    env,
				Output: config.Output,
				Ready:  func(ctx context.Context) error { return ready(ctx, urls[i]) },
			})
			instances[i] = &Instance{URL: urls[i], Process: process}
			return err
		})
	}
	return instances, group.Wait()
}

// Stop has the instances finish what they began, side by side.
func Stop(ctx context.Context, instances []*Instance) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stopTimeout, fmt.Errorf("waited %s", stopTimeout))
	defer cancel()
	var group errgroup.Group
	for _, instance := range instances {
		group.Go(func() error { return instance.Stop(ctx) })
	}
	return group.Wait()
}

func ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return err
	}
	// No connection is kept: the service would wait for it when it stops.
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz answers %s", response.Status)
	}
	return nil
}
