package redislock

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"

	"fencepost/domain"
	"fencepost/locking"
)

// Name and summary of the strategy.
const (
	Name    = "redis"
	Summary = "a lease on one Redis, be it a server, what Sentinels name, or a Cluster; the token is a counter raised in the same script"
)

var (
	//go:embed acquire.lua
	acquireLua string

	acquireScript = redis.NewScript(acquireLua)
)

// handOver is what a release, the message to who waits, and his acquire take together.
const handOver = time.Millisecond

// Locker takes leases on one Redis: a server, the master that Sentinels name, or a Cluster.
type Locker struct {
	server server
	ttl    time.Duration
	bell   *bell
	crowd  crowd
}

var _ locking.Locker = (*Locker)(nil)

// Open makes the backend for the servers at url, one of the Forms. It does not need them to answer yet. traces may be nil.
func Open(url string, ttl time.Duration, traces trace.TracerProvider, log *slog.Logger) (*locking.Backend, error) {
	options, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("the URL of Redis %w", err)
	}
	server := newServer(options, ttl/4)
	if err := traceCalls(server.UniversalClient, traces); err != nil {
		return nil, errors.Join(err, server.Close())
	}
	l := &Locker{server: server, ttl: ttl, crowd: crowd{pause: handOver / 2}}
	l.bell = newBell(log, server)
	return &locking.Backend{
		Name:     Name,
		Summary:  Summary,
		Fences:   true,
		Server:   server.addr,
		Locker:   l,
		HandOver: handOver,
		Identify: l.identify,
		Close: func() error {
			l.bell.close()
			return server.Close()
		},
	}, nil
}

// Acquire implements locking.Locker.
func (l *Locker) Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
	n, value := namesOf(prefix, key), uuid.UUID(id).String()
	others, err := l.crowd.standAside(ctx, n.lock)
	if err != nil {
		return nil, err
	}
	if !l.bell.awaited(n.released) {
		lease, _, err := l.try(ctx, n, value)
		if err != nil {
			return nil, err
		}
		if lease != nil {
			lease.Waited = others > 0
			return lease, nil
		}
	}
	// Listen first and try again then: a release between the first try and the subscription would wake nobody.
	rung, behind, stop := l.bell.listen(n.released)
	defer stop()
	if behind {
		if err := await(ctx, rung, l.ttl); err != nil {
			return nil, err
		}
	}
	for {
		lease, remaining, err := l.try(ctx, n, value)
		if err != nil {
			return nil, err
		}
		if lease != nil {
			lease.Waited = true
			return lease, nil
		}
		if err := await(ctx, rung, remaining); err != nil {
			return nil, err
		}
	}
}

// try asks once. Without a lease and an error, remaining is the rest of the present holder's term.
func (l *Locker) try(ctx context.Context, n names, value string) (lease *locking.Lease, remaining time.Duration, err error) {
	giveBack := func(ctx context.Context) error { return l.release(ctx, n, value) }
	sent := time.Now()
	reply, err := acquireScript.Run(ctx, l.server, []string{n.lock, n.token}, value, l.ttl.Milliseconds()).Slice()
	if err != nil {
		locking.Abandon(giveBack) // the lock may be taken: the reply was lost, or came too late
		return nil, 0, l.unavailable(ctx, err)
	}
	won, number, _, err := parseReply(reply)
	if err != nil {
		return nil, 0, err
	}
	if !won {
		return nil, l.remaining(number), nil
	}
	until := sent.Add(l.ttl - drift(l.ttl))
	if time.Until(until) < l.ttl/4 {
		locking.Abandon(giveBack)
		return nil, 0, fmt.Errorf("%w: redis took %s to answer, too long for a term of %s", domain.ErrLockLost, time.Since(sent), l.ttl)
	}
	return &locking.Lease{
		Token:   domain.Token(number),
		Until:   until,
		Term:    l.ttl,
		Extend:  func(ctx context.Context) (time.Time, error) { return l.extend(ctx, n, value) },
		Release: giveBack,
	}, 0, nil
}

// remaining is how long to wait for a lock at the most, from what PTTL answered. A key without a term (-1), which is none of
// ours, is looked at once in a term; one that is about to go, not in a tight loop.
func (l *Locker) remaining(pttl int64) time.Duration {
	if pttl < 0 {
		return l.ttl
	}
	return time.Duration(max(pttl, 1)) * time.Millisecond
}

func (l *Locker) extend(ctx context.Context, n names, value string) (until time.Time, err error) {
	sent := time.Now()
	ours, err := l.server.extend(ctx, n, value, l.ttl)
	switch {
	case err != nil:
		return time.Time{}, l.unavailable(ctx, err)
	case !ours:
		return time.Time{}, notOurs(n)
	}
	return sent.Add(l.ttl - drift(l.ttl)), nil
}

func (l *Locker) release(ctx context.Context, n names, value string) error {
	ours, awaited, err := l.server.release(ctx, n, value, uuid.NewString())
	if awaited > 0 {
		l.crowd.note(n.lock, awaited)
	}
	switch {
	case err != nil:
		return l.unavailable(ctx, err)
	case !ours:
		return notOurs(n)
	}
	return nil
}

func notOurs(n names) error {
	return fmt.Errorf("%w: %s is not this grant's any more", domain.ErrLockLost, n.lock)
}

// Break takes the lock away from whoever has it, as an operator would, and returns whether anybody had. The counter stays.
func (l *Locker) Break(ctx context.Context, key domain.Key) (bool, error) {
	held, err := l.server.remove(ctx, namesOf(prefix, key), uuid.NewString())
	if err != nil {
		return held, l.unavailable(ctx, err)
	}
	return held, nil
}

// Below prefix are the keys of this strategy.
const (
	prefix      = "fencepost:"
	identityKey = prefix + "identity"
)

// identify returns an id that is kept beside the counters. Every instance reads the same one, by whatever address; when the
// counters are wiped it goes with them, and a new one shows that the tokens start again.
//
// It does not show a failover, after which the counters may have gone back a little: a replica has the id of its master. Nor
// does it show that a single master of a Cluster was wiped, unless it is the one that keeps the id. Both are noticed by the
// first grant that the fence refuses although it holds its lock, and healed by raising the epoch.
func (l *Locker) identify(ctx context.Context) (string, error) {
	err := l.server.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		info, err := infoOf(ctx, c)
		if err == nil {
			err = l.refuse(info)
		}
		return err
	})
	if err == nil {
		err = l.server.SetNX(ctx, identityKey, uuid.NewString(), 0).Err()
	}
	if err != nil {
		return "", l.unavailable(ctx, err)
	}
	id, err := l.server.Get(ctx, identityKey).Result()
	if err != nil {
		return "", l.unavailable(ctx, err)
	}
	return "redis/" + id, nil
}

// refuse says why a server must not hold locks.
func (l *Locker) refuse(info map[string]string) error {
	_, cluster := l.server.UniversalClient.(*redis.ClusterClient)
	switch {
	case info["redis_mode"] == "sentinel":
		return errors.New("it is a Sentinel: write redis+sentinel://HOST:PORT,HOST:PORT/MASTER")
	case info["redis_mode"] == "cluster" && !cluster:
		return errors.New("it belongs to a Redis Cluster: write redis+cluster://HOST:PORT,HOST:PORT")
	case info["role"] != "master":
		return errors.New("it is a replica: name its master, or the Sentinels that know which one that is")
	}
	return refuseEviction(info)
}

// unavailable is what an error of the client means. When the caller's context is over, that is the reason.
func (l *Locker) unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	// No script of ours answers that, and a key of ours only between a FLUSHALL and the next try: it is the client's word for
	// Sentinels that do not know the master.
	if errors.Is(err, redis.Nil) {
		err = errors.New("no Sentinel that answers knows a master of this name")
	}
	return &domain.UnavailableError{Server: "Redis", Err: fmt.Errorf("%s: %w", l.server.addr, err)}
}
