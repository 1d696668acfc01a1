package e2e_test

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/load"
)

// What lab load --compare shows: the same race oversells without a lock and with a mutex in each process, and is exact under
// every lock that reaches further.
func TestLoadCompares(t *testing.T) {
	running := start(t, 3, "postgres")
	strategies := []string{"none", "local", "postgres", "redis", "redlock", "zookeeper"}
	reports, err := load.Compare(t.Context(), load.Options{
		Instances: urls(running), Limit: 200, Buyers: 64, Requests: 600, Timeout: patience,
	}, strategies, func(string) {}, func(r load.Report) { t.Logf("%s: %s", r.Strategy, r.Verdict) })
	require.NoError(t, err)
	require.Len(t, reports, len(strategies))
	for i, r := range reports {
		require.Equal(t, strategies[i], r.Strategy)
		require.Zero(t, r.Missing+r.Surplus, "%+v", r)
		if r.Strategy == "none" || r.Strategy == "local" {
			require.Equal(t, "off", r.Fencing)
			require.Positive(t, r.Oversold)
			require.Positive(t, r.Drift)
			require.False(t, r.OK)
			continue
		}
		require.Equal(t, "enforced", r.Fencing)
		require.True(t, r.OK, "%+v", r)
		require.Zero(t, r.Oversold)
		require.Equal(t, 200, r.Outcomes["created"])
	}
}

// Orders of several lines over a spread of items, each with a use of a coupon, at a rate that rises.
func TestLoadOrders(t *testing.T) {
	for _, strategy := range []string{"postgres", "redis"} {
		t.Run(strategy, func(t *testing.T) {
			running := start(t, 2, strategy)
			r, err := load.Run(t.Context(), load.Options{
				Instances: urls(running), Items: 10, Lines: 3, Coupon: true, Limit: 30, Retries: 3,
				Rate: 200, Ramp: time.Second, Requests: 200, Buyers: 32, Timeout: patience,
			})
			require.NoError(t, err)
			t.Logf("%s: %s; %v", strategy, r.Verdict, r.Outcomes)
			require.True(t, r.OK, "%+v", r)
			require.Equal(t, 200, r.Requests)
			require.Len(t, r.Resources, 11)
			require.EqualValues(t, r.Outcomes["created"], r.Resources[10].Sold+r.Resources[10].Held)
			require.Positive(t, r.Outcomes["created"])
			require.Positive(t, r.Outcomes["coupon_exhausted"]+r.Outcomes["out_of_stock"])
			require.GreaterOrEqual(t, r.Seconds, 1.4, "100 attempts are due within the first second and a half")
		})
	}
}

// An instance that is killed, or stopped, in mid-run: the run ends, says so, and the rest of the report is true. With retries
// everything is sold all the same, and nothing twice.
func TestLoadLosesAnInstance(t *testing.T) {
	for name, retries := range map[string]int{"killed": 0, "killed, with retries": 10, "stopped": 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			running := start(t, 3, "redis", "FENCEPOST_LEASE_TTL=1s")
			lose, back := running[0].Kill, func() error { return running[0].Start(t.Context()) }
			timeout, wait := 4*time.Second, time.Second
			if name == "stopped" {
				lose, back = running[0].Pause, running[0].Resume
				// It may have been stopped in a transaction, which keeps the item's row locked until PostgreSQL ends it after five seconds.
				timeout, wait = 8*time.Second, 7*time.Second
			}
			lost := make(chan error, 1)
			loseOnce := sync.OnceFunc(func() { lost <- lose() })
			r, err := load.Run(t.Context(), load.Options{
				Instances: urls(running), Limit: 1_000_000, Buyers: 24, Rate: 200, Retries: retries, Timeout: timeout, Patience: wait,
				Progress: func(p load.Progress) {
					if p.Created >= 20 {
						loseOnce()
					}
				},
			})
			require.NoError(t, err)
			require.Len(t, lost, 1, "nothing was lost in time")
			require.NoError(t, <-lost)
			require.NoError(t, back())
			t.Logf("%s: %s; %v; sent again: %v, replayed %d; %s", name, r.Verdict, r.Outcomes, r.Retried, r.Replayed, r.Notes)
			require.True(t, r.Audited, r.Verdict)
			require.True(t, r.OK, "%+v", r)
			require.NotEmpty(t, r.Notes)
			require.Contains(t, r.Notes[0], running[0].URL+" does not answer any more (")
			require.Empty(t, r.Instances[1].Gone)
			require.Positive(t, r.Instances[1].Outcomes["created"])
			if retries == 0 {
				require.Positive(t, r.Instances[0].Outcomes["no_answer"])
			} else {
				assert.Positive(t, r.Retried["no_answer"])
			}
			requireLedgerAgrees(t, r.Resource)
		})
	}
}
