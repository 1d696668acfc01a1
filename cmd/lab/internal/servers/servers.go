// Package servers runs the laboratory: one PostgreSQL, five Redis and one ZooKeeper, real ones, as private child
// processes on free loopback ports, in one throwaway folder.
//
// It promises that no process and no folder outlives the laboratory, even one that was killed with SIGKILL; that a
// server that ends by itself fails the laboratory; and that an address which was given is used as it is, or refused
// with the fix. Nothing is faked: a server whose program is missing is unavailable and says what mends that. Tests and
// experiments can have an ensemble of three ZooKeeper, Sentinels, a Redis Cluster, a ZooKeeper of their own, and a
// PostgreSQL of their own with a standby besides.
//
// Commands and tests under cmd/lab use it. Both call [RunJanitor] first.
package servers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

// The kinds of servers. The five Redis are named redis-1 to redis-5.
const (
	Postgres  = "postgres"
	Redis     = "redis"
	ZooKeeper = "zookeeper"
)

// The variables that carry the addresses, to the laboratory and from it.
const (
	databaseURL      = "FENCEPOST_DATABASE_URL"
	ownerURL         = "FENCEPOST_OWNER_URL"
	redisURL         = "FENCEPOST_REDIS_URL"
	redlockURLs      = "FENCEPOST_REDLOCK_URLS"
	zookeeperServers = "FENCEPOST_ZOOKEEPER_SERVERS"
)

const (
	startTimeout = 30 * time.Second
	probeTimeout = 2 * time.Second
	redisCount   = 5
)

// Options choose what Start starts.
type Options struct {
	// Getenv looks up addresses of servers that were given. With nil every server is private.
	Getenv func(string) string
	// Require names the kinds of servers without which there is no laboratory.
	Require []string
	// RequireEmpty refuses a given database that has tables, so that nobody's data is harmed.
	RequireEmpty bool
	// RedisAppendOnly has Redis keep its data over a restart. By default a stopped Redis forgets.
	RedisAppendOnly bool
	// Prefixes are the folders below which programs are installed, besides those in PATH; nil stands for Debian's
	// and Homebrew's.
	Prefixes []string
}

// Server is one line of the table: what the laboratory chose for one server.
type Server struct {
	Name    string
	Version string
	Address string
	// Source is "given", "private" or "unavailable".
	Source string
	// Detail is the variable that gave the address, the folder of a private server's programs, or the command that
	// makes an unavailable one available.
	Detail string
	// Process is nil unless the server is private.
	*Process

	env []string
}

// Variable is the value of one of the variables by which a program finds the server; empty if it has none of that name.
func (s *Server) Variable(name string) string { return valueOf(s.env, name) }

// Lab is a running laboratory.
type Lab struct {
	Servers []*Server

	options    Options
	credential *syscall.Credential
	janitor    *janitor
	failed     chan error
	waiters    sync.WaitGroup
	close      func() error

	mu       sync.Mutex
	children []*Process
	closing  bool
	ports    map[int]bool
}

// Start brings up the servers side by side and returns when all answer. On an error nothing is left behind.
func Start(ctx context.Context, options Options) (lab *Lab, err error) {
	credential, err := unprivileged()
	if err != nil {
		return nil, err
	}
	l := &Lab{
		options:    options,
		credential: credential,
		failed:     make(chan error, 1),
		ports:      make(map[int]bool),
	}
	l.close = sync.OnceValue(l.tidy)
	if l.janitor, err = startJanitor(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	// Unprivileged servers have to pass through the folder to reach their own.
	if err := os.Chmod(l.Dir(), 0o711); err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout,
		fmt.Errorf("the servers were not ready within %s", startTimeout))
	defer cancel()
	group, groupCtx := errgroup.WithContext(ctx)
	results := make([][]*Server, 3)
	for i, start := range []func(context.Context) ([]*Server, error){l.postgres, l.redis, l.zookeeper} {
		group.Go(func() error {
			var err error
			results[i], err = start(groupCtx)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, errors.Join(context.Cause(ctx), err)
		}
		return nil, err
	}
	l.Servers = slices.Concat(results...)
	if err := l.missing(); err != nil {
		return nil, err
	}
	return l, nil
}

// missing returns an error when a required server is unavailable.
func (l *Lab) missing() error {
	var errs []error
	for _, s := range l.Servers {
		kind, _, _ := strings.Cut(s.Name, "-")
		if s.Source == "unavailable" && slices.Contains(l.options.Require, kind) {
			errs = append(errs, fmt.Errorf("%s is needed and not there: %s", s.Name, s.Detail))
		}
	}
	return errors.Join(errs...)
}

// Close ends every process of the laboratory and removes its folder. It may be called more than once.
func (l *Lab) Close() error { return l.close() }

func (l *Lab) tidy() error {
	l.mu.Lock()
	l.closing = true
	children := slices.Clone(l.children)
	l.mu.Unlock()
	for _, p := range children {
		p.expectEnd()
	}
	err := l.janitor.finish()
	l.waiters.Wait()
	return err
}

// Dir is the laboratory's folder. It is removed by Close.
func (l *Lab) Dir() string { return l.janitor.dir }

// Failed receives an error when a process has ended that should be running, once.
func (l *Lab) Failed() <-chan error { return l.failed }

// Server returns the server of that name, or nil.
func (l *Lab) Server(name string) *Server {
	i := slices.IndexFunc(l.Servers, func(s *Server) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return l.Servers[i]
}

// Env returns the variables, as NAME=value, by which a program finds the servers. An unavailable server has none.
func (l *Lab) Env() []string {
	var env []string
	for _, s := range l.Servers {
		env = append(env, s.env...)
	}
	return append(env, "FENCEPOST_AUTH=off")
}

// Variable is the value of one of these variables; empty if it has none.
func (l *Lab) Variable(name string) string { return valueOf(l.Env(), name) }

func valueOf(env []string, name string) string {
	for _, variable := range env {
		if value, found := strings.CutPrefix(variable, name+"="); found {
			return value
		}
	}
	return ""
}

// Table prints what was chosen for each server.
func (l *Lab) Table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tVERSION\tADDRESS\tSOURCE")
	for _, s := range l.Servers {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s: %s\n", s.Name, cmp.Or(s.Version, "-"), cmp.Or(s.Address, "-"), s.Source, s.Detail)
	}
	return t.Flush()
}

// Start starts the command and has its whole process group gone, at the latest, when the laboratory is. Nothing
// else is done for it; [Lab.Launch] looks after a process.
func (l *Lab) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	return l.start(cmd, syscall.SIGKILL)
}

// gate is a shell's script that becomes the command once the janitor knows of it. If the laboratory is killed before
// that, the gate's pipe closes and the command never runs.
const gate = `read -r go <&3 && exec 3<&- && exec "$@"`

func (l *Lab) start(cmd *exec.Cmd, end syscall.Signal) error {
	if cmd.Err != nil { // the program was not found
		return cmd.Err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return errors.New("the laboratory is closing")
	}
	waiting, open, err := os.Pipe()
	if err != nil {
		return err
	}
	defer open.Close()
	cmd.Args = append([]string{"sh", "-c", gate, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.ExtraFiles = []*os.File{waiting}
	err = cmd.Start()
	waiting.Close()
	if err != nil {
		return err
	}
	// Nobody has waited for the process yet, so its number cannot belong to another one.
	table, err := processTable()
	if err == nil {
		err = l.janitor.record(record{PID: cmd.Process.Pid, Started: table[cmd.Process.Pid].started, Signal: end})
	}
	if err == nil {
		_, err = fmt.Fprintln(open, "go")
	}
	if err != nil {
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return nil
}

// fail reports the first failure; what follows is its consequence.
func (l *Lab) fail(err error) {
	select {
	case l.failed <- err:
	default:
	}
}

// getenv returns a given address.
func (l *Lab) getenv(name string) string {
	if l.options.Getenv == nil {
		return ""
	}
	return l.options.Getenv(name)
}

// freePort returns a port of the loopback address that nobody listens on.
//
// It is below the range from which the kernel picks ports for outgoing connections. From inside that range a client
// that dials a stopped server may be given the very port that it dials, connect to itself, and keep the server from
// coming back.
func (l *Lab) freePort() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range 1000 {
		port := 12000 + rand.IntN(20000)
		listener, err := net.Listen("tcp4", loopback(port))
		if err != nil || l.ports[port] {
			continue
		}
		l.ports[port] = true
		return port, listener.Close()
	}
	return 0, errors.New("no free port was found on 127.0.0.1 between 12000 and 32000")
}

// FreeAddress returns a loopback address, host:port, that nobody listens on.
func (l *Lab) FreeAddress() (string, error) {
	port, err := l.freePort()
	return loopback(port), err
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// launchOnFreePort launches a private server. Somebody else may take a port between the moment it was found free and
// the moment the server listens, so that is tried more than once.
func (l *Lab) launchOnFreePort(
	ctx context.Context, command func(port int) (Command, error),
) (*Process, int, error) {
	var errs []error
	for range 3 {
		port, err := l.freePort()
		if err != nil {
			return nil, 0, err
		}
		c, err := command(port)
		if err != nil {
			return nil, 0, err
		}
		c.unprivileged = true
		process, err := l.Launch(ctx, c)
		if err == nil {
			return process, port, nil
		}
		errs = append(errs, err)
		if !strings.Contains(strings.ToLower(err.Error()), "address already in use") {
			break
		}
	}
	return nil, 0, errors.Join(errs...)
}

// privateDir makes a folder that the private servers can write.
func (l *Lab) privateDir(name string) (string, error) {
	dir := filepath.Join(l.Dir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	return dir, l.giveAway(dir)
}

// writeConfig writes a configuration file that the unprivileged user can read.
func (l *Lab) writeConfig(path string, lines []string) error {
	err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
	return errors.Join(err, l.giveAway(path))
}

// giveAway makes the unprivileged user the owner of a file or folder.
func (l *Lab) giveAway(path string) error {
	if l.credential == nil {
		return nil
	}
	return os.Chown(path, int(l.credential.Uid), int(l.credential.Gid))
}

// serverEnv is all that a private server sees of the environment: nothing in it may change how it behaves.
func serverEnv(dir string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "HOME=" + dir, "TMPDIR=" + dir}
}

// unprivileged returns the user as whom servers run when the laboratory runs as root, because PostgreSQL refuses to
// run as root; nil when it does not.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as: " +
		"run the laboratory as an ordinary user")
}
