package main

import (
	"context"
	"errors"
	"log"
	"math"
	"os"
	"strings"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	redsyncredis "github.com/go-redsync/redsync/v4/redis"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/go-zookeeper/zk"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

func redsyncOne(pool *pgxpool.Pool) (reserve, error) {
	return redsyncOver(pool, os.Getenv("FENCEPOST_REDIS_URL"))
}

func redsyncFive(pool *pgxpool.Pool) (reserve, error) {
	return redsyncOver(pool, strings.Split(os.Getenv("FENCEPOST_REDLOCK_URLS"), ",")...)
}

func redsyncOver(pool *pgxpool.Pool, urls ...string) (reserve, error) {
	var nodes []redsyncredis.Pool
	for _, url := range urls {
		options, err := redis.ParseURL(url)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, goredis.NewPool(redis.NewClient(options)))
	}
	locks := redsync.New(nodes...)
	return func(ctx context.Context, sku string, quantity int64) (id uuid.UUID, err error) {
		mutex := locks.NewMutex("peers:redsync:"+sku, redsync.WithExpiry(lockTerm),
			redsync.WithTries(math.MaxInt), redsync.WithRetryDelay(retryDelay))
		if err := mutex.LockContext(ctx); err != nil {
			return uuid.Nil, err
		}
		defer func() {
			_, unlockErr := mutex.UnlockContext(context.WithoutCancel(ctx))
			err = errors.Join(err, unlockErr)
		}()
		return transact(ctx, pool, sku, quantity)
	}, nil
}

func bsmRedislock(pool *pgxpool.Pool) (reserve, error) {
	options, err := redis.ParseURL(os.Getenv("FENCEPOST_REDIS_URL"))
	if err != nil {
		return nil, err
	}
	locks := redislock.New(redis.NewClient(options))
	return func(ctx context.Context, sku string, quantity int64) (id uuid.UUID, err error) {
		// Without a deadline of the caller's, redislock gives up after one term.
		waiting, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		lock, err := locks.Obtain(waiting, "peers:redislock:"+sku, lockTerm,
			&redislock.Options{RetryStrategy: redislock.LinearBackoff(retryDelay)})
		if err != nil {
			return uuid.Nil, err
		}
		defer func() { err = errors.Join(err, lock.Release(context.WithoutCancel(ctx))) }()
		return transact(ctx, pool, sku, quantity)
	}, nil
}

func goZooKeeper(pool *pgxpool.Pool) (reserve, error) {
	conn, _, err := zk.Connect(strings.Split(os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"), ","), lockTerm, zk.WithLogger(log.Default()))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, sku string, quantity int64) (id uuid.UUID, err error) {
		lock := zk.NewLock(conn, "/peers/"+sku, zk.WorldACL(zk.PermAll))
		if err := lock.Lock(); err != nil { // it takes no context
			return uuid.Nil, err
		}
		defer func() { err = errors.Join(err, lock.Unlock()) }()
		return transact(ctx, pool, sku, quantity)
	}, nil
}
