// Package strategies is the one table of lock strategies. A strategy is in the product, in the documentation and under the
// conformance suite because it has a row here.
package strategies

import (
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"

	"fencepost/locking"
	"fencepost/locking/memlock"
	"fencepost/locking/pglock"
	"fencepost/locking/redislock"
	"fencepost/locking/zklock"
)

// Config says where the lock servers are. A strategy whose servers are not named is shown as not available.
type Config struct {
	RedisURL         string        // one of redislock.Forms
	RedlockURLs      []string      // independent masters, an odd number of them
	ZooKeeperServers []string      // host:port of each
	ZooKeeperAuth    string        // user:password, or empty
	LeaseTTL         time.Duration // the term of a lease
	Log              *slog.Logger
	Traces           trace.TracerProvider // nil: nobody traces
}

// Traits are what a strategy promises; the conformance suite holds it to them.
type Traits struct {
	Exclusive   bool // two holders never meet, as long as no lease is broken
	Distributed bool // also when they are in different processes
	Expires     bool // it is a lease: it can be lost while its holder believes in it
	Fences      bool // its grants carry tokens that rise
}

// Strategy is a row of the table.
type Strategy struct {
	Name   string
	Traits Traits
	Open   func(c Config) (*locking.Backend, error)
}

// All returns the table, in the order in which strategies are shown.
func All() []Strategy {
	return []Strategy{
		{"none", Traits{}, func(Config) (*locking.Backend, error) {
			return &locking.Backend{Name: "none", Summary: "no lock at all: read, decide, write; shows what goes wrong"}, nil
		}},
		{memlock.Name, Traits{Exclusive: true}, func(Config) (*locking.Backend, error) {
			return memlock.Open(), nil
		}},
		{pglock.Name, Traits{Exclusive: true, Distributed: true, Fences: true}, func(Config) (*locking.Backend, error) {
			return pglock.Open(), nil
		}},
		{redislock.Name, Traits{Exclusive: true, Distributed: true, Expires: true, Fences: true}, func(c Config) (*locking.Backend, error) {
			if c.RedisURL == "" {
				return &locking.Backend{
					Name: redislock.Name, Summary: redislock.Summary, Fences: true,
					Problem: "no Redis server is configured: set FENCEPOST_REDIS_URL",
				}, nil
			}
			return redislock.Open(c.RedisURL, c.LeaseTTL, c.Traces, c.Log)
		}},
		{redislock.RedlockName, Traits{Exclusive: true, Distributed: true, Expires: true, Fences: true}, func(c Config) (*locking.Backend, error) {
			if len(c.RedlockURLs) == 0 {
				return &locking.Backend{
					Name: redislock.RedlockName, Summary: redislock.RedlockSummary, Fences: true,
					Problem: "no Redis servers are configured: set FENCEPOST_REDLOCK_URLS",
				}, nil
			}
			return redislock.OpenRedlock(c.RedlockURLs, c.LeaseTTL, c.Traces, c.Log)
		}},
		{zklock.Name, Traits{Exclusive: true, Distributed: true, Expires: true, Fences: true}, func(c Config) (*locking.Backend, error) {
			if len(c.ZooKeeperServers) == 0 {
				return &locking.Backend{
					Name: zklock.Name, Summary: zklock.Summary, Fences: true,
					Problem: "no ZooKeeper server is configured: set FENCEPOST_ZOOKEEPER_SERVERS",
				}, nil
			}
			return zklock.Open(c.ZooKeeperServers, c.ZooKeeperAuth, c.LeaseTTL, c.Log)
		}},
	}
}

// CheckRedisURL returns what is wrong with Config.RedisURL, to be read after the name of what has been set to it.
func CheckRedisURL(url string) error { return redislock.CheckURL(url) }

// Find returns the row of a strategy.
func Find(name string) (row Strategy, known bool) {
	for _, s := range All() {
		if s.Name == name {
			return s, true
		}
	}
	return Strategy{}, false
}

// Names lists the strategies.
func Names() []string {
	var names []string
	for _, s := range All() {
		names = append(names, s.Name)
	}
	return names
}

// Open opens every strategy. It does not wait for their servers: one that does not answer yet is not available yet.
func Open(c Config) (locking.Backends, error) {
	var backends locking.Backends
	for _, s := range All() {
		b, err := s.Open(c)
		if err != nil {
			_ = backends.Close()
			return nil, fmt.Errorf("opening the strategy %s: %w", s.Name, err)
		}
		backends = append(backends, b)
	}
	return backends, nil
}
