package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

// SentinelMaster is the name by which the Sentinels know their master.
const SentinelMaster = "fencepost"

// Sentinels is a Redis with two replicas, and three Sentinels that put one of them in its place when it does not answer.
type Sentinels struct {
	Redis     []*Server // the first is the master at the start
	Sentinels []*Server
	URL       string // for FENCEPOST_REDIS_URL
}

// StartSentinels starts them beside the laboratory's own servers, under names that begin with name, which must be unused.
func (l *Lab) StartSentinels(ctx context.Context, name string) (*Sentinels, error) {
	s := &Sentinels{Redis: make([]*Server, 3), Sentinels: make([]*Server, 3)}
	var err error
	if s.Redis[0], err = l.launchRedis(ctx, name+"-redis-1", redisReplicates()); err != nil {
		return nil, err
	}
	master := strings.ReplaceAll(s.Redis[0].Address, ":", " ")
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range s.Redis[1:] {
		group.Go(func() (err error) {
			lines := append(redisReplicates(), "replicaof "+master)
			s.Redis[i+1], err = l.launchRedis(groupCtx, fmt.Sprintf("%s-redis-%d", name, i+2), lines)
			return err
		})
	}
	for i := range s.Sentinels {
		group.Go(func() (err error) {
			s.Sentinels[i], err = l.launchRedis(groupCtx, fmt.Sprintf("%s-sentinel-%d", name, i+1), []string{
				"sentinel monitor " + SentinelMaster + " " + master + " 2",
				"sentinel down-after-milliseconds " + SentinelMaster + " 500",
				"sentinel failover-timeout " + SentinelMaster + " 1000",
			}, "--sentinel")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var addresses []string
	for _, sentinel := range s.Sentinels {
		addresses = append(addresses, sentinel.Address)
	}
	s.URL = "redis+sentinel://" + strings.Join(addresses, ",") + "/" + SentinelMaster
	// A Sentinel asks its servers who follows whom every ten seconds, and tells the others of itself every two.
	if err := eachUntil(ctx, s.Sentinels, func(client *redis.Client) error {
		return client.Do(ctx, "sentinel", "debug", "info-period", "200", "publish-period", "200").Err()
	}); err != nil {
		return nil, err
	}
	return s, eachUntil(ctx, s.Sentinels, func(client *redis.Client) error {
		answer, err := client.Do(ctx, "sentinel", "master", SentinelMaster).Result()
		if err != nil {
			return err
		}
		if fields, ok := answer.(map[any]any); !ok || fields["num-slaves"] != "2" || fields["num-other-sentinels"] != "2" {
			return fmt.Errorf("the Sentinels do not know each other and the replicas: %v", answer)
		}
		return nil
	})
}

// redisReplicates are the lines of a server that may have replicas: they copy it at once, and hear of it every second.
func redisReplicates() []string {
	return append(redisKeeps(), "repl-diskless-sync-delay 0", "repl-ping-replica-period 1")
}

// Cluster is a Redis Cluster of three masters. The first of them has a replica, which is the fourth of the nodes.
type Cluster struct {
	Nodes []*Server
	URL   string // for FENCEPOST_REDIS_URL
}

// StartCluster starts it beside the laboratory's own servers, under names that begin with name, which must be unused.
func (l *Lab) StartCluster(ctx context.Context, name string) (*Cluster, error) {
	c := &Cluster{Nodes: make([]*Server, 4)}
	buses := make([]int, len(c.Nodes))
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range c.Nodes {
		group.Go(func() (err error) {
			if buses[i], err = l.freePort(); err != nil {
				return err
			}
			c.Nodes[i], err = l.launchRedis(groupCtx, fmt.Sprintf("%s-%d", name, i+1), append(redisReplicates(),
				"cluster-enabled yes", "cluster-node-timeout 1000", fmt.Sprintf("cluster-port %d", buses[i])))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var addresses []string
	for _, n := range c.Nodes[:3] {
		addresses = append(addresses, n.Address)
	}
	c.URL = "redis+cluster://" + strings.Join(addresses, ",")
	return c, c.form(ctx, buses)
}

// form makes a Cluster of nodes that do not know each other.
func (c *Cluster) form(ctx context.Context, buses []int) error {
	var clients []*redis.Client
	for _, n := range c.Nodes {
		client := redis.NewClient(&redis.Options{Addr: n.Address})
		defer client.Close()
		clients = append(clients, client)
	}
	const slots = 16384
	masters := clients[:3]
	for i, client := range clients {
		// Two masters with one epoch would have to find out first whose slots are whose.
		if err := client.Do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
			return err
		}
		if i < len(masters) {
			from, to := i*slots/len(masters), (i+1)*slots/len(masters)-1
			if err := client.ClusterAddSlotsRange(ctx, from, to).Err(); err != nil {
				return err
			}
		}
	}
	for i, n := range c.Nodes[1:] {
		host, port, _ := net.SplitHostPort(n.Address)
		if err := clients[0].Do(ctx, "cluster", "meet", host, port, buses[i+1]).Err(); err != nil {
			return err
		}
	}
	knows := func(text string) func(*redis.Client) error {
		return func(client *redis.Client) error {
			info, err := client.ClusterInfo(ctx).Result()
			if err == nil && !(strings.Contains(info, "cluster_state:ok") && strings.Contains(info, text)) {
				err = errors.New("the Cluster is not complete: " + info)
			}
			return err
		}
	}
	if err := eachUntil(ctx, c.Nodes, knows("cluster_known_nodes:4")); err != nil {
		return err
	}
	id, err := clients[0].ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	if err := clients[3].ClusterReplicate(ctx, id).Err(); err != nil {
		return err
	}
	return eachUntil(ctx, c.Nodes, func(client *redis.Client) error {
		shards, err := client.ClusterShards(ctx).Result()
		if err == nil && !slices.ContainsFunc(shards, func(s redis.ClusterShard) bool {
			return len(s.Nodes) == 2 && s.Nodes[0].Health == "online" && s.Nodes[1].Health == "online"
		}) {
			err = errors.New("not every node of the Cluster knows the replica")
		}
		return err
	})
}

// InSync returns when the replicas have what their master has.
func InSync(ctx context.Context, replicas ...*Server) error {
	return eachUntil(ctx, replicas, replicationSays(ctx, "master_link_status:up"))
}

// CutReplication ends what the replicas are told: from now on the master alone knows what happens. A master without a password
// refuses a replica that has one.
func CutReplication(ctx context.Context, master *Server, replicas ...*Server) error {
	err := eachUntil(ctx, replicas, func(c *redis.Client) error { return c.ConfigSet(ctx, "masterauth", "wrong").Err() })
	if err != nil {
		return err
	}
	return eachUntil(ctx, []*Server{master}, func(c *redis.Client) error {
		if err := c.ClientKillByFilter(ctx, "TYPE", "replica").Err(); err != nil {
			return err
		}
		return replicationSays(ctx, "connected_slaves:0")(c)
	})
}

func replicationSays(ctx context.Context, text string) func(*redis.Client) error {
	return func(c *redis.Client) error {
		info, err := c.Info(ctx, "replication").Result()
		if err == nil && !strings.Contains(info, text) {
			err = errors.New("not yet " + text)
		}
		return err
	}
}

// eachUntil returns when every server has passed the check, which is tried again until ctx ends.
func eachUntil(ctx context.Context, servers []*Server, check func(*redis.Client) error) error {
	for _, s := range servers {
		client := redis.NewClient(&redis.Options{Addr: s.Address})
		for {
			err := check(client)
			if err == nil {
				break
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				_ = client.Close()
				return fmt.Errorf("%s: %w (%w)", s.Name, err, context.Cause(ctx))
			}
		}
		if err := client.Close(); err != nil {
			return err
		}
	}
	return nil
}
