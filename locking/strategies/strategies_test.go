package strategies_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"fencepost/locking/lockingtest"
	"fencepost/locking/strategies"
)

// soak makes of some tests what takes too long for every day.
var soak = flag.Bool("soak", false, "run the long forms of the tests that have one")

func config() strategies.Config {
	return strategies.Config{
		RedisURL:         os.Getenv("FENCEPOST_REDIS_URL"),
		RedlockURLs:      strings.Split(os.Getenv("FENCEPOST_REDLOCK_URLS"), ","),
		ZooKeeperServers: strings.Split(os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"), ","),
	}
}

// Every row of the table passes the suite: with sections that share a lock and without, and also when an instance has one
// connection only, where a section that asked for a second one while it holds the first would never end.
func TestConformance(t *testing.T) {
	t.Parallel()
	for _, row := range strategies.All() {
		for _, instance := range []lockingtest.Instance{{PoolSize: 1, MaxBatch: 1}, {PoolSize: 1, MaxBatch: 64}, {PoolSize: 8, MaxBatch: 64}} {
			t.Run(fmt.Sprintf("%s/pool of %d/batch of %d", row.Name, instance.PoolSize, instance.MaxBatch), func(t *testing.T) {
				t.Parallel()
				lockingtest.Run(t, row, config(), instance)
			})
		}
	}
}

// Not parallel, because it counts the goroutines of the process.
func TestCancelledWaits(t *testing.T) {
	waits := 500 // of each strategy that everybody does by himself, and half as many in a common queue
	if *soak {
		waits = 10_000
	}
	for _, row := range strategies.All() {
		if !row.Traits.Exclusive {
			continue // there is nothing to wait for
		}
		for _, instance := range []lockingtest.Instance{{PoolSize: 1, MaxBatch: 1}, {PoolSize: 8, MaxBatch: 1}, {PoolSize: 8, MaxBatch: 64}} {
			t.Run(fmt.Sprintf("%s/pool of %d/batch of %d", row.Name, instance.PoolSize, instance.MaxBatch), func(t *testing.T) {
				lockingtest.CancelledWaits(t, row, config(), instance, waits/2)
			})
		}
	}
}
