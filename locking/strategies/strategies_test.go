package strategies_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"fencepost/locking/lockingtest"
	"fencepost/locking/strategies"
)

// Every row of the table passes the suite: with sections that share a lock and without, and also when an instance has one
// connection only, where a section that asked for a second one while it holds the first would never end.
func TestConformance(t *testing.T) {
	t.Parallel()
	config := strategies.Config{
		RedisURL:         os.Getenv("FENCEPOST_REDIS_URL"),
		RedlockURLs:      strings.Split(os.Getenv("FENCEPOST_REDLOCK_URLS"), ","),
		ZooKeeperServers: strings.Split(os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"), ","),
	}
	for _, row := range strategies.All() {
		for _, instance := range []lockingtest.Instance{{PoolSize: 1, MaxBatch: 1}, {PoolSize: 1, MaxBatch: 64}, {PoolSize: 8, MaxBatch: 64}} {
			t.Run(fmt.Sprintf("%s/pool of %d/batch of %d", row.Name, instance.PoolSize, instance.MaxBatch), func(t *testing.T) {
				t.Parallel()
				lockingtest.Run(t, row, config, instance)
			})
		}
	}
}
