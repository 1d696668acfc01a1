package postgrestest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/pgwire"
)

// NewProxy starts a proxy to the database at rawURL that is closed with the test.
func NewProxy(tb testing.TB, rawURL string, judge pgwire.Judge) *pgwire.Proxy {
	tb.Helper()
	p, err := pgwire.New(rawURL, judge)
	require.NoError(tb, err)
	tb.Cleanup(p.Close)
	return p
}
