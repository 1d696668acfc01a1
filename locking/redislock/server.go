package redislock

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"fencepost/domain"
)

var (
	//go:embed extend.lua
	extendLua string
	//go:embed release.lua
	releaseLua string

	extendScript  = redis.NewScript(extendLua)
	releaseScript = redis.NewScript(releaseLua)
)

// server is where locks are: one Redis server, the master that Sentinels name, or a Redis Cluster. A node of redlock always is
// one server.
type server struct {
	redis.UniversalClient
	addr string // without who goes there
}

// newServer makes the client. It does not need the server to answer yet. Nothing that the client does takes longer than
// timeout to dial, to write, or to read.
func newServer(o *redis.UniversalOptions, timeout time.Duration) server {
	// The client's defaults are made for a cache. A retry of its own would try to take a lock that the first try may have
	// taken; a read that outlasts the term would hand out a lock that is over; and without ContextTimeoutEnabled no
	// deadline of ours reaches the socket.
	o.MaxRetries = -1
	o.DialerRetries = 1 // its own five tries to dial would each take DialTimeout
	o.ContextTimeoutEnabled = true
	o.DialTimeout = min(2*time.Second, timeout)
	o.ReadTimeout = timeout
	o.WriteTimeout = timeout
	o.DisableIdentity = true
	s := server{redis.NewUniversalClient(o), shown(o)}
	if cluster, ok := s.UniversalClient.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(clusterNode{cluster}) })
	}
	return s
}

// eachMaster runs f for every server that may hold locks.
func (s server) eachMaster(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	if cluster, ok := s.UniversalClient.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, f)
	}
	return f(ctx, s.UniversalClient.(*redis.Client))
}

// names are the keys and the channel of one resource.
type names struct{ lock, token, released string }

// namesOf returns the names below a prefix that each strategy has for itself. The braces make Redis Cluster put a resource's
// keys into one slot, so that one script may use both.
func namesOf(prefix string, key domain.Key) names {
	base := prefix + "{" + string(key) + "}:"
	return names{lock: base + "lock", token: base + "token", released: base + "released"}
}

// How many milliseconds of a term may pass on the server while fewer pass here: clocks run at different speeds. One
// hundredth of the term, as in the Redlock description, and the two milliseconds by which Redis may be early.
func drift(ttl time.Duration) time.Duration { return ttl/100 + 2*time.Millisecond }

// extend sets the term of a lock anew. ours is false if it is not owner's any more.
func (s server) extend(ctx context.Context, n names, owner string, ttl time.Duration) (ours bool, err error) {
	return extendScript.Run(ctx, s, []string{n.lock}, owner, ttl.Milliseconds()).Bool()
}

// release gives a lock back. ours is false if it was not owner's any more. ring goes to those who wait, as many processes as
// awaited says; they take equal ones for copies. An empty ring wakes nobody.
func (s server) release(ctx context.Context, n names, owner, ring string) (ours bool, awaited int64, err error) {
	channel := n.released
	if ring == "" {
		channel = ""
	}
	answer, err := releaseScript.Run(ctx, s, []string{n.lock}, owner, channel, ring).Int64()
	if errors.Is(err, redis.ErrClosed) {
		return false, 0, nil // this process is ending: the end of the term does the rest
	}
	return answer > 0, max(answer-1, 0), err
}

// remove takes a lock away from whoever has it.
func (s server) remove(ctx context.Context, n names, ring string) (held bool, err error) {
	deleted, err := s.Del(ctx, n.lock).Result()
	if err != nil || deleted == 0 {
		return false, err
	}
	return true, s.Publish(ctx, n.released, ring).Err()
}

// infoOf returns what a server says about itself. CONFIG GET would be forbidden on most managed servers.
func infoOf(ctx context.Context, c redis.Cmdable) (map[string]string, error) {
	text, err := c.Info(ctx).Result()
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info, nil
}

// errEvicts: an evicted lock is granted twice.
var errEvicts = errors.New("it may evict locks: set its maxmemory-policy to noeviction")

func refuseEviction(info map[string]string) error {
	if info["maxmemory_policy"] != "noeviction" {
		return errEvicts
	}
	return nil
}

// parseReply reads what the scripts return that take a lock: {1, number} if it was taken, {0, number, …} if not. rest is
// what follows the number.
func parseReply(reply []any) (won bool, number int64, rest []any, err error) {
	if len(reply) >= 2 {
		flag, isFlag := reply[0].(int64)
		text, isText := reply[1].(string)
		if number, err := strconv.ParseInt(text, 10, 64); isFlag && isText && err == nil {
			return flag == 1, number, reply[2:], nil
		}
	}
	return false, 0, nil, fmt.Errorf("redis answered %v where {0 or 1, number} should be", reply)
}
