package strategies_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"fencepost/locking/lockingtest"
	"fencepost/locking/strategies"
)

// Every row of the table passes the suite, also when an instance has one connection only: a section that asked for a
// second one while it holds the first would never end.
func TestConformance(t *testing.T) {
	t.Parallel()
	config := strategies.Config{
		RedisURL:         os.Getenv("FENCEPOST_REDIS_URL"),
		RedlockURLs:      strings.Split(os.Getenv("FENCEPOST_REDLOCK_URLS"), ","),
		ZooKeeperServers: strings.Split(os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"), ","),
	}
	for _, row := range strategies.All() {
		for _, poolSize := range []int32{1, 8} {
			t.Run(fmt.Sprintf("%s/pool of %d", row.Name, poolSize), func(t *testing.T) {
				t.Parallel()
				lockingtest.Run(t, row, config, poolSize)
			})
		}
	}
}
