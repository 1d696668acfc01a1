// Package redislock is the strategy redis: a lease on one Redis server, taken with SET PX in the same script that raises
// the fencing counter.
//
// It promises that a token is issued with the lock and never again, that a lock is released and extended only by the grant
// that took it, and that a waiter costs the server nothing while the lock is held: it is woken by the release, or by the
// end of the term if the holder is gone. It does not promise that a holder still has the lock when it thinks so: Redis
// expires keys by its wall clock, and a failover or a flush forgets them. The fence in PostgreSQL is there for that.
package redislock

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"fencepost/domain"
	"fencepost/locking"
)

// Name and summary of the strategy.
const (
	Name    = "redis"
	Summary = "a lease on one Redis server; the token is a counter raised in the same script"
)

var (
	//go:embed acquire.lua
	acquireLua string
	//go:embed extend.lua
	extendLua string
	//go:embed release.lua
	releaseLua string

	acquireScript = redis.NewScript(acquireLua)
	extendScript  = redis.NewScript(extendLua)
	releaseScript = redis.NewScript(releaseLua)
)

// Locker takes leases on one Redis server.
type Locker struct {
	client *redis.Client
	ttl    time.Duration
	bell   *bell
}

var _ locking.Locker = (*Locker)(nil)

// How many milliseconds of a term may pass on the server while fewer pass here: clocks run at different speeds. One
// hundredth of the term, as in the Redlock description, and the two milliseconds by which Redis may be early.
func drift(ttl time.Duration) time.Duration { return ttl/100 + 2*time.Millisecond }

// Open makes the backend for the server at url. It does not need the server to answer yet.
func Open(url string, ttl time.Duration, log *slog.Logger) (*locking.Backend, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("reading the Redis URL: %w", err)
	}
	// The client's defaults are made for a cache. A retry of its own would try to take a lock that the first try may have
	// taken; a read that outlasts the term would hand out a lock that is over; and without ContextTimeoutEnabled no
	// deadline of ours reaches the socket.
	o.MaxRetries = -1
	o.ContextTimeoutEnabled = true
	o.DialTimeout = min(2*time.Second, ttl/3)
	o.ReadTimeout = ttl / 4
	o.WriteTimeout = ttl / 4
	o.DisableIdentity = true
	l := &Locker{client: redis.NewClient(o), ttl: ttl}
	l.bell = newBell(l.client, log)
	return &locking.Backend{
		Name:     Name,
		Summary:  Summary,
		Fences:   true,
		Server:   o.Addr,
		Locker:   l,
		Identify: l.identify,
		Close: func() error {
			l.bell.close()
			return l.client.Close()
		},
	}, nil
}

// The braces make Redis Cluster put a resource's keys into one slot, so that one script may use both.
func lockKey(key domain.Key) string        { return "fencepost:{" + string(key) + "}:lock" }
func tokenKey(key domain.Key) string       { return "fencepost:{" + string(key) + "}:token" }
func releaseChannel(key domain.Key) string { return "fencepost:{" + string(key) + "}:released" }

// Acquire implements locking.Locker.
func (l *Locker) Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
	value := uuid.UUID(id).String()
	if lease, _, err := l.try(ctx, key, value); lease != nil || err != nil {
		return lease, err
	}
	// Listen first and try again then: a release between the first try and the subscription would wake nobody.
	rung, stop := l.bell.listen(ctx, releaseChannel(key))
	defer stop()
	for {
		lease, remaining, err := l.try(ctx, key, value)
		if lease != nil || err != nil {
			return lease, err
		}
		expiry := time.NewTimer(remaining)
		select {
		case <-rung:
		case <-expiry.C: // the holder has gone without a release
		case <-ctx.Done():
			expiry.Stop()
			return nil, context.Cause(ctx)
		}
		expiry.Stop()
	}
}

// try asks once. Without a lease and an error, remaining is the rest of the present holder's term.
func (l *Locker) try(ctx context.Context, key domain.Key, value string) (lease *locking.Lease, remaining time.Duration, err error) {
	giveBack := func(ctx context.Context) error { return l.release(ctx, key, value) }
	sent := time.Now()
	reply, err := acquireScript.Run(ctx, l.client, []string{lockKey(key), tokenKey(key)}, value, l.ttl.Milliseconds()).Slice()
	if err != nil {
		locking.Abandon(l.ttl, giveBack) // the lock may be taken: the reply was lost, or came too late
		return nil, 0, l.unavailable(ctx, err)
	}
	won, text, err := parseReply(reply)
	if err != nil {
		return nil, 0, err
	}
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, 0, fmt.Errorf("redis answered %q where a number should be: %w", text, err)
	}
	if !won {
		// At least a millisecond, so that a key which is about to go is not asked for in a tight loop.
		return nil, time.Duration(max(number, 1)) * time.Millisecond, nil
	}
	until := sent.Add(l.ttl - drift(l.ttl))
	if time.Until(until) < l.ttl/4 {
		locking.Abandon(l.ttl, giveBack)
		return nil, 0, fmt.Errorf("%w: redis took %s to answer, too long for a term of %s", domain.ErrLockLost, time.Since(sent), l.ttl)
	}
	return &locking.Lease{
		Token:   domain.Token(number),
		Until:   until,
		Term:    l.ttl,
		Extend:  func(ctx context.Context) (time.Time, error) { return l.extend(ctx, key, value) },
		Release: giveBack,
	}, 0, nil
}

func parseReply(reply []any) (won bool, text string, err error) {
	if len(reply) == 2 {
		flag, ok := reply[0].(int64)
		text, isText := reply[1].(string)
		if ok && isText {
			return flag == 1, text, nil
		}
	}
	return false, "", fmt.Errorf("redis answered %v where {0 or 1, number} should be", reply)
}

func (l *Locker) extend(ctx context.Context, key domain.Key, value string) (until time.Time, err error) {
	sent := time.Now()
	n, err := extendScript.Run(ctx, l.client, []string{lockKey(key)}, value, l.ttl.Milliseconds()).Int()
	switch {
	case err != nil:
		return time.Time{}, l.unavailable(ctx, err)
	case n == 0:
		return time.Time{}, fmt.Errorf("%w: %s is not this grant's any more", domain.ErrLockLost, lockKey(key))
	}
	return sent.Add(l.ttl - drift(l.ttl)), nil
}

func (l *Locker) release(ctx context.Context, key domain.Key, value string) error {
	n, err := releaseScript.Run(ctx, l.client, []string{lockKey(key)}, value, releaseChannel(key)).Int()
	switch {
	case err != nil:
		return l.unavailable(ctx, err)
	case n == 0:
		return fmt.Errorf("%w: %s is not this grant's any more", domain.ErrLockLost, lockKey(key))
	}
	return nil
}

// Break takes the lock away from whoever has it, as an operator would, and returns whether anybody had. The counter stays.
func (l *Locker) Break(ctx context.Context, key domain.Key) (bool, error) {
	n, err := l.client.Del(ctx, lockKey(key)).Result()
	if err != nil {
		return false, l.unavailable(ctx, err)
	}
	return n == 1, l.client.Publish(ctx, releaseChannel(key), "").Err()
}

const identityKey = "fencepost:identity"

// identify returns an id that is kept beside the counters. Every instance reads the same one, by whatever address; when the
// counters are wiped it goes with them, and a new one shows that the tokens start again. The server is refused when it may
// throw keys away: an evicted lock is granted twice.
func (l *Locker) identify(ctx context.Context) (string, error) {
	memory, err := l.client.Info(ctx, "memory").Result() // CONFIG GET is forbidden on most managed servers
	if err != nil {
		return "", l.unavailable(ctx, err)
	}
	if !strings.Contains(memory, "maxmemory_policy:noeviction") {
		return "", &domain.UnavailableError{Server: "Redis", Err: fmt.Errorf(
			"%s may evict locks: set its maxmemory-policy to noeviction", l.client.Options().Addr)}
	}
	if err := l.client.SetNX(ctx, identityKey, uuid.NewString(), 0).Err(); err != nil {
		return "", l.unavailable(ctx, err)
	}
	id, err := l.client.Get(ctx, identityKey).Result()
	if err != nil {
		return "", l.unavailable(ctx, err)
	}
	return "redis/" + id, nil
}

// unavailable is what an error of the client means. When the caller's context is over, that is the reason.
func (l *Locker) unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return &domain.UnavailableError{Server: "Redis", Err: fmt.Errorf("%s: %w", l.client.Options().Addr, err)}
}
