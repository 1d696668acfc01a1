package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/servers"
)

// certificate is for 127.0.0.1, and nobody trusts it who is not told to.
func certificate(t *testing.T) (pair tls.Certificate, text servers.Certificate) {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	pair = server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	require.NoError(t, err)
	return pair, servers.Certificate{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
}

// discreet is a service whose output, answers and metrics are looked through for secrets.
type discreet struct {
	dir     string
	secrets []string
}

func (d discreet) quiet(t *testing.T, text string) {
	t.Helper()
	for _, secret := range d.secrets {
		require.NotEmpty(t, secret)
		require.NotContains(t, text, secret)
	}
}

// command runs one that ends.
func (d discreet) command(t *testing.T, name string, env ...string) (output string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, name)
	cmd.Env = append(append(os.Environ(), "FENCEPOST_AUTH=off", "FENCEPOST_LISTEN=127.0.0.1:0"), env...)
	printed, err := cmd.CombinedOutput()
	require.NoError(t, ctx.Err(), "it must not hang")
	d.quiet(t, string(printed))
	return string(printed), err
}

// serve runs an instance that has something to do, and loses its server meanwhile: what it says then could give secrets away.
func (d discreet) serve(t *testing.T, strategy string, server *servers.Server, env ...string) {
	t.Helper()
	name := filepath.Join(d.dir, "log")
	log, err := os.Create(name)
	require.NoError(t, err)
	defer log.Close()
	instance := startLogging(t, log, 1, strategy, append(env, "FENCEPOST_LOG_LEVEL=debug", "FENCEPOST_LOCK_WAIT=1s")...)[0]
	item := createStock(t, instance.URL, 5)
	reserve := func() int {
		return exchange(t.Context(), http.MethodPost, instance.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, nil)
	}
	require.Equal(t, http.StatusCreated, reserve())
	require.NoError(t, server.Kill())
	require.Equal(t, http.StatusServiceUnavailable, reserve())
	for _, path := range []string{"/metrics", "/v1/strategies", "/readyz"} {
		response, err := http.Get(instance.URL + path)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		response.Body.Close()
		d.quiet(t, string(body))
	}
	require.NoError(t, server.Start(t.Context()))
	requireAllReady(t, []string{instance.URL})
	written, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Contains(t, string(written), "listening")
	d.quiet(t, string(written))
}

// PostgreSQL is reached over TLS, and its certificate and name are checked, by every command. The passwords are in the URLs and
// nowhere else.
func TestPostgresOverTLS(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, cert := certificate(t)
	d := discreet{dir: t.TempDir()}
	authority := filepath.Join(d.dir, "authority.pem")
	require.NoError(t, os.WriteFile(authority, cert.Cert, 0o600))
	server := ownPostgres(ctx, t, &cert)
	reached := func(name, query string) string { // the variable, with another query
		u, err := url.Parse(server.Variable(name))
		require.NoError(t, err)
		password, _ := u.User.Password()
		d.secrets = append(d.secrets, password)
		u.RawQuery = query
		return name + "=" + u.String()
	}
	full := "sslmode=verify-full&sslrootcert=" + url.QueryEscape(authority)
	owner, service := reached("FENCEPOST_OWNER_URL", full), reached("FENCEPOST_DATABASE_URL", full)
	output, err := d.command(t, "migrate", owner, service)
	require.NoError(t, err, output)
	d.serve(t, "postgres", server.Server, service)
	output, err = d.command(t, "audit", service)
	require.NoError(t, err, output)

	for says, env := range map[string]string{
		"certificate signed by unknown authority": reached("FENCEPOST_DATABASE_URL", "sslmode=verify-full"),
		"no encryption": reached("FENCEPOST_DATABASE_URL", "sslmode=disable"), // the server's own words
		"not localhost": strings.Replace(service, "@127.0.0.1:", "@localhost:", 1),
	} {
		output, err := d.command(t, "serve", env)
		require.Error(t, err)
		require.Contains(t, output, says)
	}
}

// ZooKeeper is behind something that speaks TLS for it, and what is in it belongs to a user, whose password is nowhere but in the
// variable.
func TestZooKeeperOverTLS(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, err := lab.StartZooKeeper(ctx, "z"+uuid.NewString()) // whoever comes first to one owns it
	require.NoError(t, err)
	killAll(t, server)
	pair, cert := certificate(t)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	require.NoError(t, err)
	var forwarding sync.WaitGroup
	forwarding.Go(func() { forward(&forwarding, listener, server.Address) })
	d := discreet{t.TempDir(), []string{"canary-zookeeper", "canary-wrong"}}
	authority := filepath.Join(d.dir, "authority.pem")
	require.NoError(t, os.WriteFile(authority, cert.Cert, 0o600))
	t.Cleanup(func() { // when the instance is gone
		_ = listener.Close()
		forwarding.Wait()
	})
	database := "FENCEPOST_DATABASE_URL=" + variable(t, "FENCEPOST_DATABASE_URL")
	ensemble := "FENCEPOST_ZOOKEEPER_SERVERS=tls://" + listener.Addr().String()
	user, trust := "FENCEPOST_ZOOKEEPER_AUTH=fencepost:canary-zookeeper", "SSL_CERT_FILE="+authority
	d.serve(t, "zookeeper", server, ensemble, user, trust)

	output, err := d.command(t, "serve", database, ensemble, "FENCEPOST_INVENTORY_LOCK=zookeeper", user)
	require.Error(t, err, "an authority that is not trusted")
	require.Contains(t, output, "ZooKeeper at tls://")
	for _, other := range []string{"FENCEPOST_ZOOKEEPER_AUTH=", "FENCEPOST_ZOOKEEPER_AUTH=fencepost:canary-wrong"} {
		output, err = d.command(t, "serve", database, ensemble, "FENCEPOST_INVENTORY_LOCK=zookeeper", other, trust)
		require.Error(t, err)
		require.Contains(t, output, "belong to somebody else")
	}
}

// forward leads every connection of the listener to the address, until the listener is closed.
func forward(group *sync.WaitGroup, listener net.Listener, address string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", address)
		if err != nil {
			_ = client.Close()
			continue
		}
		for _, pipe := range [][2]net.Conn{{client, server}, {server, client}} {
			group.Go(func() {
				_, _ = io.Copy(pipe[0], pipe[1])
				_ = pipe[0].Close()
			})
		}
	}
}
