package redislock

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// bell wakes those who wait for a release. All waiters of a process share one connection to each server, on which a channel
// is subscribed as long as somebody waits for its key. A ring wakes one waiter of the process, not all of them: only one can
// win, and the release of that one rings again. Everybody is woken when a ring may have been missed: after the channel was
// subscribed on a majority of the servers, and when a connection was lost and has come back.
//
// A Cluster is one server here: it passes a ring on to all its nodes, so it does not matter on which of them a channel is
// subscribed, nor to which its slot moves. Its sharded channels would spare it that, but need a connection to every master.
type bell struct {
	log     *slog.Logger
	servers []server

	mu     sync.Mutex
	lines  []*line // nil while nobody has waited yet
	queues map[string]*queue
	closed bool
}

// queue is the waiters for one channel, the longest waiting first.
type queue struct {
	waiters    []chan struct{}
	subscribed map[*line]bool // the lines on which the server has confirmed the channel
	copies     map[string]int // of each ring that have come: of several servers, each sends one
}

// line is the connection to one server. Only its own goroutine sends on it: a server that does not answer keeps that
// goroutine waiting, and nobody else.
type line struct {
	pubsub *redis.PubSub
	ctx    context.Context // ends with the bell
	hangUp context.CancelFunc
	done   chan struct{}

	changed chan struct{}   // wakes the sender
	stale   map[string]bool // channels whose queue has come or gone since the sender last looked; guarded by bell.mu
}

func newBell(log *slog.Logger, servers ...server) *bell {
	return &bell{log: log, servers: servers, queues: map[string]*queue{}}
}

// listen returns a channel that receives when it is this waiter's turn to try again. behind says that others of this process
// were waiting before it: the first of them tries, and whoever leaves wakes the next, so this one need not try before it is
// woken. stop must be called, when the waiter has the lock or has given up. Then the next one is woken: a waiter that was
// rung and ended before it could try would take the ring with it, and the others would sleep beside a free lock. One that has
// the lock costs the next a try in vain.
func (b *bell) listen(channel string) (rung <-chan struct{}, behind bool, stop func()) {
	mine := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines == nil && !b.closed {
		for _, s := range b.servers {
			b.connect(s)
		}
	}
	q := b.queues[channel]
	if q == nil {
		q = &queue{subscribed: map[*line]bool{}, copies: map[string]int{}}
		b.queues[channel] = q
		b.change(channel)
	}
	behind = len(q.waiters) > 0
	q.waiters = append(q.waiters, mine)
	return mine, behind, func() { b.leave(channel, mine) }
}

// awaited tells whether anybody of this process is waiting. Whoever comes then lines up behind them: one that tried at once would
// again and again be there before those who have to be woken, and where locks are held for long they would wait for ever.
func (b *bell) awaited(channel string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queues[channel] != nil
}

// await returns when the bell rings, or when the holder's term is over because it has gone without a release. An error means
// that ctx has ended.
func await(ctx context.Context, rung <-chan struct{}, term time.Duration) error {
	expiry := time.NewTimer(term)
	defer expiry.Stop()
	select {
	case <-rung:
	case <-expiry.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

func (b *bell) leave(channel string, mine chan struct{}) {
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
		b.change(channel)
		return
	}
	q.ring()
}

// connect wants b.mu held.
func (b *bell) connect(s server) {
	ctx, cancel := context.WithCancel(context.Background()) // the client's own time-outs hold
	l := &line{
		pubsub:  s.Subscribe(ctx), // no channel yet, so nothing is dialled
		ctx:     ctx,
		hangUp:  cancel,
		done:    make(chan struct{}),
		changed: make(chan struct{}, 1),
		stale:   map[string]bool{},
	}
	b.lines = append(b.lines, l)
	var group sync.WaitGroup
	group.Go(func() { b.send(l) })
	group.Go(func() { b.receive(l) })
	go func() {
		group.Wait()
		close(l.done)
	}()
}

// change has every line look at a channel whose queue has come or gone. It wants b.mu held.
func (b *bell) change(channel string) {
	for _, l := range b.lines {
		l.stale[channel] = true
		select {
		case l.changed <- struct{}{}:
		default:
		}
	}
}

// send tells the server which channels are listened to. If it cannot be reached, the client subscribes again when it is
// back; until then waiters live by the other servers and by the end of the term.
func (b *bell) send(l *line) {
	for range l.changed {
		b.mu.Lock()
		var wanted, unwanted []string
		for channel := range l.stale {
			if b.queues[channel] != nil {
				wanted = append(wanted, channel)
			} else {
				unwanted = append(unwanted, channel)
			}
		}
		clear(l.stale)
		b.mu.Unlock()
		if len(wanted) > 0 {
			if err := l.pubsub.Subscribe(l.ctx, wanted...); err != nil {
				b.log.Debug("redis: subscribing", "channels", wanted, "error", err)
			}
		}
		if len(unwanted) > 0 {
			if err := l.pubsub.Unsubscribe(l.ctx, unwanted...); err != nil {
				b.log.Debug("redis: unsubscribing", "channels", unwanted, "error", err)
			}
		}
	}
}

const (
	// A server that has said nothing for so long is asked whether it is there.
	lineSilence = 3 * time.Second
	// How long it may take to answer that.
	lineAnswer = 2 * time.Second
	// The pause before a server that cannot be reached is dialled again.
	linePause = 100 * time.Millisecond
)

// receive takes what the server says until the bell is closed. The client dials and subscribes again when the connection is
// lost. That of a server that hangs, or has gone without a word, is given up: a replica may be in its place by now, and ring
// there. The client's own check would not do: it sends a ping and does not wait for the answer.
func (b *bell) receive(l *line) {
	for l.ctx.Err() == nil {
		message, err := l.pubsub.ReceiveTimeout(l.ctx, lineSilence)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			// The client gives a connection up when the context's deadline passes, and not when a time-out does.
			ctx, cancel := context.WithTimeout(l.ctx, lineAnswer)
			if err = l.pubsub.Ping(ctx); err == nil {
				message, err = l.pubsub.Receive(ctx)
			}
			cancel()
		}
		if err != nil {
			_ = sleep(l.ctx, linePause)
			continue
		}
		b.take(l, message)
	}
}

// take takes a message in.
func (b *bell) take(l *line, message any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch m := message.(type) {
	case *redis.Message:
		if q := b.queues[m.Channel]; q != nil {
			q.take(m.Payload, majority(len(b.servers)))
		}
	case *redis.Subscription:
		if q := b.queues[m.Channel]; q != nil && m.Kind == "subscribe" {
			again := q.subscribed[l]
			q.subscribed[l] = true
			// With a majority subscribed, whatever is still in the way of a waiter that tries now is on a server whose ring
			// it will hear: two majorities meet.
			if again || len(q.subscribed) == majority(len(b.servers)) {
				q.ringAll()
			}
		}
	}
}

// maxRings is of how many rings the copies are counted. A copy that comes so late that its ring was forgotten is taken for a first.
const maxRings = 256

// take takes a copy of a ring. The first one rings, because the other servers may be silent. So does the one that completes a
// majority: until then the release has not reached a majority either, and a waiter that has tried meanwhile has found the lock
// where it was and gone back to sleep. Copies of several rings may come in any order: a server that is slow to answer is asked
// again in the background, while others take the lock and give it back.
func (q *queue) take(ring string, majority int) {
	if len(q.copies) == maxRings {
		clear(q.copies)
	}
	q.copies[ring]++
	if n := q.copies[ring]; n == 1 || n == majority {
		q.ring()
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

func (q *queue) ringAll() {
	for range q.waiters {
		q.ring()
	}
}

func (b *bell) close() {
	b.mu.Lock()
	lines := b.lines
	b.lines, b.closed = nil, true
	b.mu.Unlock()
	for _, l := range lines {
		close(l.changed)
		l.hangUp()
		_ = l.pubsub.Close() // ends receive, which waits for the server and not for the context
		<-l.done
	}
}
