package e2e_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/servers"
)

// certificate is for 127.0.0.1, and nobody trusts it who is not told to.
func certificate(t *testing.T) servers.Certificate {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	require.NoError(t, err)
	return servers.Certificate{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
}

// PostgreSQL is reached over TLS, and its certificate and name are checked, by every command. The passwords are in the URLs and
// nowhere else.
func TestPostgresOverTLS(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cert, dir := certificate(t), t.TempDir()
	authority := filepath.Join(dir, "authority.pem")
	require.NoError(t, os.WriteFile(authority, cert.Cert, 0o600))
	server := ownPostgres(ctx, t, &cert)
	passwords := map[string]string{}
	verified := func(name, query string) string { // the variable, with another query
		u, err := url.Parse(valueOf(t, server.Env(), name))
		require.NoError(t, err)
		passwords[name], _ = u.User.Password()
		u.RawQuery = query
		return name + "=" + u.String()
	}
	full := "sslmode=verify-full&sslrootcert=" + url.QueryEscape(authority)
	env := []string{verified("FENCEPOST_OWNER_URL", full), verified("FENCEPOST_DATABASE_URL", full), "FENCEPOST_LOG_LEVEL=debug"}
	quiet := func(text string) {
		for name, password := range passwords {
			require.NotEmpty(t, password)
			require.NotContains(t, text, password, name)
		}
	}
	command := func(name string, env ...string) (output string, err error) {
		cmd := exec.CommandContext(ctx, binary, name)
		cmd.Env = append(append(os.Environ(), "FENCEPOST_AUTH=off"), env...)
		printed, err := cmd.CombinedOutput()
		quiet(string(printed))
		return string(printed), err
	}
	output, err := command("migrate", env...)
	require.NoError(t, err, output)

	logs := filepath.Join(dir, "log")
	log, err := os.Create(logs)
	require.NoError(t, err)
	defer log.Close()
	instance := startLogging(t, log, 1, "postgres", env...)[0]
	item := createStock(t, instance.URL, 5)
	require.Equal(t, http.StatusCreated, exchange(ctx, http.MethodPost, instance.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, nil))
	require.NoError(t, server.Kill()) // what it says when the server has gone is what would give it away
	require.Equal(t, http.StatusServiceUnavailable, exchange(ctx, http.MethodPost, instance.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, nil))
	require.NoError(t, server.Start(ctx))
	for _, path := range []string{"/metrics", "/v1/strategies", "/readyz"} {
		response, err := http.Get(instance.URL + path)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		response.Body.Close()
		quiet(string(body))
	}
	written, err := os.ReadFile(logs)
	require.NoError(t, err)
	require.Contains(t, string(written), "listening")
	quiet(string(written))

	output, err = command("audit", env...)
	require.NoError(t, err, output)
	for name, query := range map[string]string{
		"certificate signed by unknown authority": "sslmode=verify-full",
		"no encryption": "sslmode=disable", // the server's own word
	} {
		output, err := command("serve", verified("FENCEPOST_DATABASE_URL", query))
		require.Error(t, err)
		require.Contains(t, output, name)
	}
	output, err = command("serve", strings.Replace(verified("FENCEPOST_DATABASE_URL", full), "@127.0.0.1:", "@localhost:", 1))
	require.Error(t, err, "the name is not that of the certificate")
	require.Contains(t, output, "not localhost")
}
