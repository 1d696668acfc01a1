package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is the listener's, read anew when its files have changed: certificates are renewed more often than instances
// are started. While what is there cannot be used, such as a file that is half written, the last one that could stays.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	seen    [2]time.Time // when the files that were tried last had been written
}

// loadCertificate reads the files for the first time, when they must be good.
func loadCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	written, err := c.written()
	if err == nil {
		err = c.load(written)
	}
	return c, err
}

func (c *certificate) written() (times [2]time.Time, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return times, err
		}
		times[i] = info.ModTime()
	}
	return times, nil
}

// load never says what is in the key's file.
func (c *certificate) load(written [2]time.Time) error {
	c.seen = written
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("%s and %s are not a certificate and its key: %w", c.certFile, c.keyFile, err)
	}
	c.current = &pair
	return nil
}

// get is asked at each handshake.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	written, err := c.written()
	if err == nil && written == c.seen {
		return c.current, nil
	}
	if err == nil {
		if err = c.load(written); err == nil {
			c.log.Info("the listener's certificate was read anew", "file", c.certFile)
		}
	}
	if err != nil {
		c.log.Warn("the listener's certificate has changed and cannot be used; the last one stays", "error", err)
	}
	return c.current, nil
}

// tlsConfig is nil where the listener speaks plain HTTP.
func (c *Config) tlsConfig(log *slog.Logger) (*tls.Config, error) {
	if c.TLSCertFile == "" {
		return nil, nil
	}
	cert, err := loadCertificate(c.TLSCertFile, c.TLSKeyFile, log)
	if err != nil {
		return nil, err
	}
	return &tls.Config{GetCertificate: cert.get, MinVersion: tls.VersionTLS12}, nil
}
