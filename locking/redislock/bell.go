package redislock

import (
	"context"
	"log/slog"
	"sync"

	"github.com/redis/go-redis/v9"
)

// bell wakes those who wait for a release. All waiters of a process share one connection, on which a channel is subscribed
// as long as somebody waits for its key. A ring wakes one waiter of the process, not all of them: only one can win, and the
// release of that one rings again. When the connection is lost and comes back, everybody is woken, because a ring may have
// been missed.
type bell struct {
	client *redis.Client
	log    *slog.Logger

	mu     sync.Mutex
	pubsub *redis.PubSub // nil while nobody has waited yet
	queues map[string]*queue
	done   chan struct{}
}

// queue is the waiters for one channel, the longest waiting first.
type queue struct {
	waiters []chan struct{}
}

func newBell(client *redis.Client, log *slog.Logger) *bell {
	return &bell{client: client, log: log, queues: map[string]*queue{}}
}

// listen returns a channel that receives when it is this waiter's turn to try again. stop must be called; a ring that the
// waiter has not used goes on to the next.
func (b *bell) listen(ctx context.Context, channel string) (rung <-chan struct{}, stop func()) {
	mine := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pubsub == nil {
		b.pubsub = b.client.Subscribe(context.WithoutCancel(ctx))
		b.done = make(chan struct{})
		go b.serve(b.pubsub.ChannelWithSubscriptions(), b.done)
	}
	q := b.queues[channel]
	if q == nil {
		q = &queue{}
		b.queues[channel] = q
		b.send(ctx, b.pubsub.Subscribe, channel)
	}
	q.waiters = append(q.waiters, mine)
	return mine, func() { b.leave(ctx, channel, mine) }
}

func (b *bell) leave(ctx context.Context, channel string, mine chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queues[channel]
	for i, w := range q.waiters {
		if w == mine {
			q.waiters = append(q.waiters[:i], q.waiters[i+1:]...)
			break
		}
	}
	if len(q.waiters) == 0 {
		delete(b.queues, channel)
		b.send(ctx, b.pubsub.Unsubscribe, channel)
		return
	}
	select {
	case <-mine:
		q.ring()
	default:
	}
}

// send tells the server what is listened to. If it cannot be reached, the client subscribes again when it is back; until
// then waiters live by the end of the term.
func (b *bell) send(ctx context.Context, command func(context.Context, ...string) error, channel string) {
	if err := command(context.WithoutCancel(ctx), channel); err != nil {
		b.log.Debug("redis: subscribing", "channel", channel, "error", err)
	}
}

// ring wakes the first waiter that is not awake yet.
func (q *queue) ring() {
	for _, w := range q.waiters {
		select {
		case w <- struct{}{}:
			return
		default:
		}
	}
}

func (b *bell) serve(messages <-chan any, done chan struct{}) {
	defer close(done)
	for message := range messages {
		b.mu.Lock()
		switch m := message.(type) {
		case *redis.Message:
			if q := b.queues[m.Channel]; q != nil {
				q.ring()
			}
		case *redis.Subscription:
			// Subscribed, for the first time or again: what was rung before has not been heard.
			if q := b.queues[m.Channel]; q != nil && m.Kind == "subscribe" {
				for range q.waiters {
					q.ring()
				}
			}
		}
		b.mu.Unlock()
	}
}

func (b *bell) close() {
	b.mu.Lock()
	pubsub, done := b.pubsub, b.done
	b.mu.Unlock()
	if pubsub != nil {
		_ = pubsub.Close() // ends serve
		<-done
	}
}
