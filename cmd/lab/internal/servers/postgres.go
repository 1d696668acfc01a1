package servers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	ownerRole   = "fencepost_owner"
	serviceRole = "fencepost_service"
	database    = "fencepost"
)

func (l *Lab) postgres(ctx context.Context) ([]*Server, error) {
	service, owner := l.getenv(databaseURL), l.getenv(ownerURL)
	switch {
	case service != "" && owner != "":
		server, err := l.givenPostgres(ctx, service, owner)
		return []*Server{server}, err
	case service != "":
		return nil, fmt.Errorf("%s is set and %s is not: set both, or neither for a private PostgreSQL",
			databaseURL, ownerURL)
	case owner != "":
		return nil, fmt.Errorf("%s is set and %s is not: set both, or neither for a private PostgreSQL",
			ownerURL, databaseURL)
	}
	// initdb comes only with the server; Debian's wrappers in PATH come with the client too.
	initdb := l.find("initdb", "lib/postgresql/*/bin/initdb", "opt/postgresql@*/bin/initdb")
	if initdb == "" {
		return []*Server{{Name: Postgres, Source: "unavailable", Detail: mend}}, nil
	}
	server, err := l.privatePostgres(ctx, filepath.Dir(initdb))
	return []*Server{server}, err
}

func (l *Lab) givenPostgres(ctx context.Context, service, owner string) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	s := &Server{
		Name: Postgres, Source: "given", Detail: databaseURL,
		env: []string{databaseURL + "=" + service, ownerURL + "=" + owner},
	}
	for _, given := range []struct{ variable, url string }{{databaseURL, service}, {ownerURL, owner}} {
		// pgx hides the password in its errors.
		err := query(ctx, given.url, func(conn *pgx.Conn) error {
			s.Version = versionOf(conn)
			s.Address = fmt.Sprintf("%s:%d", conn.Config().Host, conn.Config().Port)
			if !l.options.RequireEmpty {
				return nil
			}
			var tables int
			err := conn.QueryRow(ctx, `
				SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
				WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
				  AND n.nspname NOT LIKE 'pg_toast%'`).Scan(&tables)
			if err == nil && tables > 0 {
				err = fmt.Errorf("the database has %d tables, and the laboratory touches nobody's data", tables)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w: give an empty database that answers, or unset it and %s "+
				"for a private PostgreSQL", given.variable, err, other(given.variable))
		}
	}
	return s, nil
}

func other(variable string) string {
	if variable == databaseURL {
		return ownerURL
	}
	return databaseURL
}

func (l *Lab) privatePostgres(ctx context.Context, bin string) (*Server, error) {
	dir, err := l.privateDir(Postgres)
	if err != nil {
		return nil, err
	}
	data, admin := filepath.Join(dir, "data"), rand.Text()
	if err := l.initdb(ctx, bin, dir, data, admin); err != nil {
		return nil, err
	}
	address := func(port int, role, password, database string) string {
		u := url.URL{Scheme: "postgres", User: url.UserPassword(role, password), Host: loopback(port), Path: "/" + database}
		u.RawQuery = "sslmode=disable"
		return u.String()
	}
	process, port, err := l.launchOnFreePort(ctx, func(port int) (Command, error) {
		settings := []string{
			"port=" + strconv.Itoa(port),
			"listen_addresses=127.0.0.1",
			"unix_socket_directories=",
			"max_connections=300",
			// In the data directory, because /dev/shm would outlive a killed server.
			"dynamic_shared_memory_type=mmap",
		}
		args := []string{"-D", data}
		for _, setting := range settings {
			args = append(args, "-c", setting)
		}
		return Command{
			Name: Postgres, Path: filepath.Join(bin, "postgres"), Args: args, Env: serverEnv(dir),
			stop: syscall.SIGINT, end: syscall.SIGQUIT, // its fast and its immediate shutdown
			Ready: func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, probeTimeout)
				defer cancel()
				return query(ctx, address(port, "postgres", admin, "postgres"), func(*pgx.Conn) error { return nil })
			},
		}, nil
	})
	if err != nil {
		return nil, err
	}
	s := &Server{Name: Postgres, Address: loopback(port), Source: "private", Detail: bin, Process: process}
	ownerPassword, servicePassword := rand.Text(), rand.Text()
	err = query(ctx, address(port, "postgres", admin, "postgres"), func(conn *pgx.Conn) error {
		s.Version = versionOf(conn)
		for _, statement := range []string{
			// The owner creates a database for each test. The service owns nothing.
			`CREATE ROLE ` + ownerRole + ` LOGIN CREATEDB PASSWORD '` + ownerPassword + `'`,
			`CREATE ROLE ` + serviceRole + ` LOGIN PASSWORD '` + servicePassword + `'`,
			`CREATE DATABASE ` + database + ` OWNER ` + ownerRole,
		} {
			if _, err := conn.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("set up PostgreSQL: %w", err)
	}
	s.env = []string{
		databaseURL + "=" + address(port, serviceRole, servicePassword, database),
		ownerURL + "=" + address(port, ownerRole, ownerPassword, database),
	}
	return s, nil
}

// initdb makes the data directory, with a superuser that nobody but the laboratory can log in as.
func (l *Lab) initdb(ctx context.Context, bin, dir, data, password string) error {
	passwordFile := filepath.Join(dir, "password")
	if err := os.WriteFile(passwordFile, []byte(password), 0o600); err != nil {
		return err
	}
	defer os.Remove(passwordFile)
	if err := l.giveAway(passwordFile); err != nil {
		return err
	}
	var output strings.Builder
	// --no-sync leaves out only the sync of the fresh files; the server itself runs with fsync on.
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-E", "UTF8",
		"--locale=C", "-A", "scram-sha-256", "--pwfile", passwordFile, "--no-sync")
	cmd.Dir = dir
	cmd.Env = serverEnv(dir)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.credential}
	err := l.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, output.String())
	}
	return nil
}

// query connects, calls f and disconnects.
func query(ctx context.Context, url string, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return errors.Join(f(conn), conn.Close(ctx))
}

func versionOf(conn *pgx.Conn) string {
	// Debian appends its package's version in brackets.
	version, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), " ")
	return version
}
