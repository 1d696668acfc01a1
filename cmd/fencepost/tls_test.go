package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

// authority signs certificates that nobody trusts by himself.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	a := authority{key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// issue writes a certificate for 127.0.0.1 and its key.
func (a authority) issue(t *testing.T, certFile, keyFile string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", private)
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func (a authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func TestHTTPS(t *testing.T) {
	db := postgrestest.New(t)
	ca, dir := newAuthority(t), t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca.issue(t, cert, key, 7)
	i := start(t, map[string]string{
		"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "0s",
		"FENCEPOST_TLS_CERT_FILE": cert, "FENCEPOST_TLS_KEY_FILE": key,
	})
	require.True(t, strings.HasPrefix(i.url, "https://"), i.url)
	// get makes a connection of its own.
	get := func(config *tls.Config) (*http.Response, error) {
		transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		response, err := (&http.Client{Transport: transport}).Get(i.url + "/v1/items")
		if err == nil {
			response.Body.Close()
		}
		return response, err
	}
	serial := func() int64 {
		response, err := get(&tls.Config{RootCAs: ca.pool()})
		require.NoError(t, err)
		require.Equal(t, 200, response.StatusCode)
		assert.Equal(t, "max-age=63072000", response.Header.Get("Strict-Transport-Security"))
		assert.Equal(t, 2, response.ProtoMajor)
		return response.TLS.PeerCertificates[0].SerialNumber.Int64()
	}
	assert.EqualValues(t, 7, serial())
	_, err := get(&tls.Config{RootCAs: ca.pool(), MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	require.ErrorContains(t, err, "protocol version")
	_, err = get(&tls.Config{})
	require.ErrorContains(t, err, "unknown authority", "the negative control")
	response, err := http.Get("http://" + strings.TrimPrefix(i.url, "https://") + "/v1/items")
	require.NoError(t, err)
	response.Body.Close()
	assert.Equal(t, 400, response.StatusCode, "nothing is served in the clear")

	later := time.Now().Add(time.Minute) // as if it took a minute to renew
	require.NoError(t, os.WriteFile(key, []byte("half a k"), 0o600))
	require.NoError(t, os.Chtimes(key, later, later))
	assert.EqualValues(t, 7, serial(), "what cannot be used is not used")
	ca.issue(t, cert, key, 8)
	later = later.Add(time.Minute)
	require.NoError(t, os.Chtimes(key, later, later))
	assert.EqualValues(t, 8, serial(), "a new certificate needs no restart")
	i.signal()
	assert.Equal(t, exitOK, <-i.exit)
}

// redisServer is a server of its own, that speaks TLS alone, with a user who may do what the README says.
func redisServer(t *testing.T, ca authority, acl string) (address string) {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca.issue(t, cert, key, 9)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address = free.Addr().String()
	require.NoError(t, free.Close())
	_, port, _ := net.SplitHostPort(address)
	config := filepath.Join(dir, "redis.conf")
	require.NoError(t, os.WriteFile(config, []byte(strings.Join([]string{
		"port 0", "tls-port " + port, "bind 127.0.0.1", "dir " + dir, `save ""`, "maxmemory-policy noeviction", "tls-auth-clients no",
		"tls-cert-file " + cert, "tls-key-file " + key, "tls-ca-cert-file " + ca.file, "user default off", "user " + acl,
	}, "\n")), 0o600))
	server := exec.Command("redis-server", config)
	out, err := server.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	lines := bufio.NewScanner(out)
	ready := false
	for !ready && lines.Scan() {
		t.Log(lines.Text())
		ready = strings.Contains(lines.Text(), "Ready to accept connections")
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		_ = server.Process.Kill()
		<-drained
		_ = server.Wait()
	})
	require.True(t, ready, "redis-server does not start")
	return address
}

// process runs the service as a process, and returns its address when it listens, and what it has written.
func process(t *testing.T, env ...string) (url string, output func() string) {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	service := exec.Command(program, "serve", "--listen=127.0.0.1:0")
	service.Env = append([]string{asProgram + "=1", "PATH=" + os.Getenv("PATH"), "FENCEPOST_AUTH=off", "FENCEPOST_DRAIN_DELAY=0s"}, env...)
	out, err := service.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, service.Start())
	var mu sync.Mutex
	var lines strings.Builder
	address, done := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(done)
		defer close(address)
		listening := regexp.MustCompile(`msg=listening address=(\S+)`)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			mu.Lock()
			lines.WriteString(scanner.Text() + "\n")
			mu.Unlock()
			if m := listening.FindStringSubmatch(scanner.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		_ = service.Process.Signal(os.Interrupt)
		<-done
		_ = service.Wait()
	})
	return <-address, func() string {
		mu.Lock()
		defer mu.Unlock()
		return lines.String()
	}
}

const redisACL = "fencepost on >canary-redis resetkeys ~fencepost:* resetchannels &fencepost:* -@all " +
	"+eval +evalsha +get +set +del +incr +exists +pttl +pexpire +publish +subscribe +unsubscribe +info +ping"

// The lock servers are reached over TLS, their certificates are checked, and the rights that the README tells to give are
// enough and needed. Secrets are in every URL, and nowhere else.
func TestRedisOverTLS(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	require.Contains(t, string(readme), strings.TrimPrefix(redisACL, "fencepost on >canary-redis "))
	db, ca := postgrestest.New(t), newAuthority(t)
	var urls []string
	for range 3 {
		urls = append(urls, "rediss://fencepost:canary-redis@"+redisServer(t, ca, redisACL)+"/0")
	}
	env := []string{
		"FENCEPOST_DATABASE_URL=" + db.ServiceURL, "FENCEPOST_REDIS_URL=" + urls[0], "FENCEPOST_LOG_LEVEL=debug",
		"FENCEPOST_REDLOCK_URLS=" + strings.Join(urls, ","), "FENCEPOST_INVENTORY_LOCK=redis", "FENCEPOST_COUPON_LOCK=redlock",
	}
	url, output := process(t, append(env, "SSL_CERT_FILE="+ca.file)...)
	require.NotEmpty(t, url, output())
	i := instance{url: url}
	sku := uuid.NewString()
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"`+sku+`","name":"Lamp","stock":50}`)
	require.Equal(t, 201, status, answer)
	status, answer = i.call(t, "POST", "/v1/coupons", `{"code":"`+sku[:8]+`","max_redemptions":50}`)
	require.Equal(t, 201, status, answer)
	var buyers sync.WaitGroup
	for range 10 { // several, so that some wait for a release and hear of it
		buyers.Go(func() {
			for _, path := range []string{"/v1/items/" + sku + "/reservations", "/v1/coupons/" + sku[:8] + "/redemptions"} {
				body := `{"quantity":1}`
				if strings.Contains(path, "coupons") {
					body = `{"customer_id":"c"}`
				}
				response, err := http.Post(url+path, "application/json", strings.NewReader(body))
				if assert.NoError(t, err) {
					response.Body.Close()
					assert.Equal(t, 201, response.StatusCode, path)
				}
			}
		})
	}
	buyers.Wait()
	for _, path := range []string{"/v1/strategies", "/metrics"} {
		status, answer := i.call(t, "GET", path, "")
		require.Equal(t, 200, status)
		assert.NotContains(t, answer, "canary", path)
	}
	assert.NotContains(t, output(), "canary")
	assert.NotContains(t, output(), "NOPERM")

	url, output = process(t, env...)
	assert.Empty(t, url, "the negative control: an authority that is not trusted")
	assert.Contains(t, output(), "unknown authority")
	assert.NotContains(t, output(), "canary")
}

func TestCertificatesThatAreNone(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca.issue(t, cert, key, 1)
	junk := filepath.Join(dir, "junk.pem")
	require.NoError(t, os.WriteFile(junk, []byte("canary-key"), 0o600))
	for _, files := range [][2]string{{cert, ""}, {"", key}, {cert, junk}, {junk, key}, {cert, "/no/such/file"}, {ca.file, key}} {
		code, _, stderr := runIn(t, map[string]string{
			"FENCEPOST_DATABASE_URL": goodURL, "FENCEPOST_TLS_CERT_FILE": files[0], "FENCEPOST_TLS_KEY_FILE": files[1],
		}, "serve")
		assert.Equal(t, exitUsage, code)
		assert.Contains(t, stderr, "FENCEPOST_TLS_CERT_FILE")
		assert.NotContains(t, stderr, "canary")
	}
	_, err := loadCertificate(cert, key, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
}
