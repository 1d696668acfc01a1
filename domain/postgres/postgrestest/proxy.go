package postgrestest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/pgproxy"
)

// NewProxy starts a proxy to the database at rawURL that ends with the test. judge decides about each message of a client.
func NewProxy(tb testing.TB, rawURL string, judge func(*pgproxy.Proxy, pgproxy.Request) pgproxy.Verdict) *pgproxy.Proxy {
	tb.Helper()
	p, err := pgproxy.Start(rawURL, pgproxy.Watch{Judge: judge})
	require.NoError(tb, err)
	tb.Cleanup(p.Close)
	return p
}
