package redislock

import (
	"context"
	"errors"
	"net"

	"github.com/redis/go-redis/v9"
)

// clusterNode corrects what the client of a Cluster does when a node does not answer.
//
// It would send the command again, to the same node and then to another. MaxRetries does not prevent that, and without
// MaxRedirects it would not follow the Cluster when keys move. So what may have been executed comes back as an error that the
// client does not know. It still sends again what a node has refused: a script is refused before it begins, with MOVED, ASK,
// TRYAGAIN, CLUSTERDOWN and LOADING, or, with READONLY, at its first write.
//
// And it would not look for another master: it reads the map of the Cluster again when a node sends it elsewhere, which one
// that is gone does not do, and otherwise once in a minute.
type clusterNode struct{ cluster *redis.ClusterClient }

var _ redis.Hook = clusterNode{}

func (n clusterNode) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		return conn, n.check(ctx, err)
	}
}

func (n clusterNode) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return n.check(ctx, next(ctx, cmd)) }
}

func (n clusterNode) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return n.check(ctx, next(ctx, cmds)) }
}

// check leaves answers as they are, errors among them, and what was not sent because the client is closed.
func (n clusterNode) check(ctx context.Context, err error) error {
	var answer redis.Error
	if err == nil || errors.As(err, &answer) || errors.Is(err, redis.ErrClosed) {
		return err
	}
	n.cluster.ReloadState(ctx) // in the background
	return errors.New(err.Error())
}
