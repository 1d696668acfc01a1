package e2e_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/load"
)

// Instances that want the same lock all the time each get their share of it, although each keeps it for a while: none has
// less than a third of what two have made, or a fifth of what three have.
func TestInstancesShareAHotItem(t *testing.T) {
	for _, strategy := range []string{"postgres", "redis", "redlock", "zookeeper"} {
		running := start(t, 3, strategy)
		for n, least := range map[int]float64{2: 1. / 3, 3: 1. / 5} {
			t.Run(fmt.Sprintf("%s, %d instances", strategy, n), func(t *testing.T) {
				const sales = 2000 // some dozens of batches
				report, err := load.Run(t.Context(), load.Options{
					Instances: urls(running[:n]), Limit: sales, Buyers: 64 * n, Requests: sales, Timeout: 2 * patience,
				})
				require.NoError(t, err)
				require.True(t, report.OK, "%+v", report)
				var shares []float64
				for _, instance := range report.Instances {
					shares = append(shares, float64(instance.Outcomes["created"])/sales)
				}
				t.Logf("%s: %.2f; %.0f/s, p99 %.0f ms", strategy, shares, report.PerSecond, report.Latency.P99)
				for _, share := range shares {
					require.GreaterOrEqual(t, share, least, "%.2f", shares)
				}
			})
		}
	}
}
