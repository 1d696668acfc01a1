package servers

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
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
	superuser   = "postgres" // the role, and a database that is always there
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
	bin, ok := l.findPostgres()
	if !ok {
		return []*Server{{Name: Postgres, Source: "unavailable", Detail: mend}}, nil
	}
	server, err := l.privatePostgres(ctx, bin)
	return []*Server{server}, err
}

// findPostgres finds the folder of the server's programs. initdb comes only with the server; Debian's wrappers in PATH come
// with the client too.
func (l *Lab) findPostgres() (bin string, ok bool) {
	initdb := l.find("initdb", "lib/postgresql/*/bin/initdb", "opt/postgresql@*/bin/initdb")
	return filepath.Dir(initdb), initdb != ""
}

func (l *Lab) givenPostgres(ctx context.Context, service, owner string) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	s := &Server{
		Name: Postgres, Source: "given", Detail: databaseURL,
		env: []string{databaseURL + "=" + service, ownerURL + "=" + owner},
	}
	for _, given := range []struct{ variable, url, other string }{{databaseURL, service, ownerURL}, {ownerURL, owner, databaseURL}} {
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
				"for a private PostgreSQL", given.variable, err, given.other)
		}
	}
	return s, nil
}

func (l *Lab) privatePostgres(ctx context.Context, bin string) (*Server, error) {
	c, err := l.initdb(ctx, Postgres, bin)
	if err != nil {
		return nil, err
	}
	s, err := l.launchPostgres(ctx, Postgres, c)
	if err != nil {
		return nil, err
	}
	s.env, err = setUpPostgres(ctx, s, c)
	return s, err
}

// cluster is what one server serves, as PostgreSQL calls it.
type cluster struct {
	bin, dir string // of the programs, and the one that holds data
	data     string
	admin    string // the superuser's password, which nobody but the laboratory knows
}

// launchPostgres runs a server on the cluster, with settings besides its own.
func (l *Lab) launchPostgres(ctx context.Context, name string, c cluster, settings ...string) (*Server, error) {
	s := &Server{Name: name, Source: "private", Detail: c.bin}
	process, port, err := l.launchOnFreePort(ctx, func(port int) (Command, error) {
		args := []string{"-D", c.data}
		for _, setting := range append([]string{
			"port=" + strconv.Itoa(port),
			"listen_addresses=127.0.0.1",
			"unix_socket_directories=",
			"max_connections=300",
			// In the data directory, because /dev/shm would outlive a killed server.
			"dynamic_shared_memory_type=mmap",
		}, settings...) {
			args = append(args, "-c", setting)
		}
		return Command{
			Name: name, Path: filepath.Join(c.bin, "postgres"), Args: args, Env: serverEnv(c.dir),
			stop: syscall.SIGINT, end: syscall.SIGQUIT, // its fast and its immediate shutdown
			Ready: func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, probeTimeout)
				defer cancel()
				return query(ctx, postgresURL(loopback(port), superuser, c.admin, superuser), func(conn *pgx.Conn) error {
					s.Version = versionOf(conn)
					return nil
				})
			},
		}, nil
	})
	s.Address, s.Process = loopback(port), process
	return s, err
}

// setUpPostgres makes the roles and the database of the service, and returns the variables that lead there.
func setUpPostgres(ctx context.Context, s *Server, c cluster) (env []string, err error) {
	ownerPassword, servicePassword := rand.Text(), rand.Text()
	ownerVerifier, err := verifier(ownerPassword)
	if err != nil {
		return nil, err
	}
	serviceVerifier, err := verifier(servicePassword)
	if err != nil {
		return nil, err
	}
	err = query(ctx, postgresURL(s.Address, superuser, c.admin, superuser), func(conn *pgx.Conn) error {
		for _, statement := range []string{
			// The owner creates a database for each test. The service owns nothing.
			`CREATE ROLE ` + ownerRole + ` LOGIN CREATEDB PASSWORD '` + ownerVerifier + `'`,
			`CREATE ROLE ` + serviceRole + ` LOGIN PASSWORD '` + serviceVerifier + `'`,
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
	return []string{
		databaseURL + "=" + postgresURL(s.Address, serviceRole, servicePassword, database),
		ownerURL + "=" + postgresURL(s.Address, ownerRole, ownerPassword, database),
	}, nil
}

// verifier is what a server stores of a password (RFC 5803, as PostgreSQL writes it). Its one round of hashing, where
// PostgreSQL takes 4096, would be careless with a password that somebody has thought of. These have 130 random bits, and
// under the race detector the rounds are a quarter of what a test costs that connects often.
func verifier(password string) (string, error) {
	const rounds = 1
	salt := []byte(rand.Text())
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("hashing a password: %w", err)
	}
	sign := func(text string) []byte {
		mac := hmac.New(sha256.New, salted)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	stored := sha256.Sum256(sign("Client Key"))
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, encode(salt), encode(stored[:]), encode(sign("Server Key"))), nil
}

func postgresURL(address, role, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(role, password), Host: address, Path: "/" + database}
	u.RawQuery = "sslmode=disable"
	return u.String()
}

// initdb makes a cluster in a folder of that name.
func (l *Lab) initdb(ctx context.Context, name, bin string) (c cluster, err error) {
	dir, err := l.privateDir(name)
	if err != nil {
		return c, err
	}
	c = cluster{bin: bin, dir: dir, data: filepath.Join(dir, "data"), admin: rand.Text()}
	passwordFile := filepath.Join(dir, "password")
	if err := l.writeConfig(passwordFile, []string{c.admin}); err != nil {
		return c, err
	}
	defer os.Remove(passwordFile)
	// --no-sync leaves out only the sync of the fresh files; the server itself runs with fsync on.
	return c, l.tool(ctx, dir, filepath.Join(bin, "initdb"), "-D", c.data, "-U", superuser, "-E", "UTF8",
		"--locale=C", "-A", "scram-sha-256", "--pwfile", passwordFile, "--no-sync")
}

// tool runs a program to its end, as the user whom the folder belongs to.
func (l *Lab) tool(ctx context.Context, dir, program string, args ...string) error {
	var output strings.Builder
	cmd := exec.CommandContext(ctx, program, args...)
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
		return fmt.Errorf("%s: %w\n%s", filepath.Base(program), err, output.String())
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
