package zklock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
)

// client is the one connection of a backend, and what is known of it. It is made at the first use.
//
// The library's calls take no context, and a request that is queued while there is no connection waits for the next one.
// So calls run on goroutines of their own, a bounded number of them, are begun only while there is a connection, and are
// left behind when their caller's context ends.
type client struct {
	servers []string
	timeout time.Duration // of the session, as asked for
	auth    string        // user:password
	log     *slog.Logger

	once   sync.Once
	conn   *zk.Conn
	events <-chan zk.Event // closed when the library has ended

	life  context.Context // ends with the client
	end   context.CancelFunc
	slots chan struct{} // one for each call that somebody waits for, or has left behind

	mu            sync.Mutex
	changed       chan struct{} // closed, and replaced, when something of this changes
	session       session       // the newest
	offered       session       // of the handshake that is going on
	connected     bool
	authenticated bool
	down          bool // all servers were tried in vain since one has answered
}

// session as the servers know it.
type session struct {
	id         int64
	timeout    time.Duration // as granted
	ended      chan struct{} // closed when it is over
	connection int           // the number of the connection that it is on
}

const (
	// How many calls there may be at a time.
	maxCalls = 512
	// Before something is tried again that a broken connection has cut off. A connection that breaks takes longer to come
	// back; the pause is for a server that breaks them all.
	retryPause = 10 * time.Millisecond
)

var (
	errNoServer = errors.New("no server of the ensemble answers")
	errClosed   = errors.New("the client is closed")
)

func newClient(servers []string, timeout time.Duration, auth string, log *slog.Logger) *client {
	c := &client{
		servers: servers, timeout: timeout, auth: auth, log: log,
		slots: make(chan struct{}, maxCalls), changed: make(chan struct{}), authenticated: auth == "",
	}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

func (c *client) open() {
	h := &hosts{client: c}
	conn, events, err := zk.Connect(
		c.servers, c.timeout,
		zk.WithHostProvider(h),
		zk.WithDialer(h.dial),
		// Not the channel: it drops what does not fit, and with it the news that a session is over.
		zk.WithEventCallback(c.event),
		zk.WithLogger(debugLog{c.log}),
	)
	if err != nil {
		panic(err) // only without servers, and Open has seen to that
	}
	c.conn, c.events = conn, events
	if c.auth != "" {
		go c.authenticate()
	}
}

// authenticate is done once; the library does it again on every connection.
func (c *client) authenticate() {
	for c.conn.AddAuth("digest", []byte(c.auth)) != nil {
		if !pause(c.life, retryPause) {
			return
		}
	}
	c.change(func() { c.authenticated = true })
}

// close ends the session, and with it whatever the client still holds. It does so only if a server can be told; else the
// servers end the session after its time-out.
func (c *client) close() error {
	c.end()
	c.once.Do(func() {}) // a client that was never used is not made any more
	if c.conn != nil {
		c.conn.Close()
		for range c.events { // until the library's goroutines have ended
		}
	}
	c.change(func() { c.connected = false; c.session.over() })
	return nil
}

// debugLog takes the library's lines. What they are about comes back from the calls as well.
type debugLog struct{ log *slog.Logger }

func (l debugLog) Printf(format string, args ...any) {
	l.log.Debug("zookeeper: " + fmt.Sprintf(format, args...))
}

func (c *client) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (s session) over() {
	if s.ended == nil {
		return
	}
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
}

// greeted takes what a server has answered to the handshake, and returns whether the session is the one that there was. The
// event that it is there, or over, comes next.
func (c *client) greeted(s session) (resumed bool) {
	c.change(func() { c.offered, c.down, resumed = s, false, s.id != 0 && s.id == c.session.id })
	return resumed
}

func (c *client) unreachable() { c.change(func() { c.down = true }) }

// event is called by the library, on its goroutine for connections, and must not block.
func (c *client) event(e zk.Event) {
	if e.Type != zk.EventSession {
		return
	}
	switch e.State {
	case zk.StateHasSession:
		c.change(func() {
			ended := c.session.ended
			if c.offered.id != c.session.id {
				c.session.over()
				ended = make(chan struct{})
			}
			c.session = session{c.offered.id, c.offered.timeout, ended, c.session.connection + 1}
			c.connected = true
		})
	case zk.StateDisconnected:
		c.change(func() { c.connected = false })
	case zk.StateExpired:
		c.change(func() { c.session.over() })
	}
}

// patience says what to do when no server of the ensemble answers.
type patience bool

const (
	giveUp     patience = false // a request should be told at once
	keepTrying patience = true
)

// ready returns the session when there is a connection.
func (c *client) ready(ctx context.Context, p patience) (session, error) {
	c.once.Do(c.open)
	for {
		c.mu.Lock()
		s, ready, down, changed := c.session, c.connected && c.authenticated, c.down, c.changed
		c.mu.Unlock()
		switch {
		case c.life.Err() != nil:
			return s, errClosed
		case ctx.Err() != nil:
			return s, context.Cause(ctx)
		case ready:
			return s, nil
		case down && p == giveUp:
			return s, errNoServer
		}
		select {
		case <-changed:
		case <-ctx.Done():
		case <-c.life.Done():
		}
	}
}

// isOn tells whether the session still is on the same connection.
func (c *client) isOn(s session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected && c.session.connection == s.connection
}

func (c *client) isConnected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected
}

// retry runs f as soon as there is a connection, and again as long as a broken one leaves its outcome open. It returns when
// f does, which may be later than the end of ctx.
func retry[T any](ctx context.Context, c *client, p patience, f func(s session) (T, error)) (result T, err error) {
	for {
		s, err := c.ready(ctx, p)
		if err != nil {
			return result, err
		}
		if result, err = f(s); !uncertain(err) {
			return result, err
		}
		pause(ctx, retryPause)
	}
}

// bound runs f when there is a connection, and waits for it no longer than ctx does. If the caller has left when f returns,
// late takes the result.
func bound[T any](ctx context.Context, c *client, p patience, f func() (T, error), late func(T, error)) (T, error) {
	type outcome struct {
		result T
		err    error
	}
	var none T
	if _, err := c.ready(ctx, p); err != nil { // before a slot is taken: those are for calls that are under way
		return none, err
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
	done := make(chan outcome) // has no buffer: a result is either received, or late
	go func() {
		defer func() { <-c.slots }()
		result, err := f()
		select {
		case done <- outcome{result, err}:
		case <-ctx.Done():
			late(result, err)
		}
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// ask is retry, bound by ctx, for what may be left behind because it takes nothing.
func ask[T any](ctx context.Context, c *client, p patience, f func(s session) (T, error)) (T, error) {
	return bound(ctx, c, p, func() (T, error) { return retry(ctx, c, p, f) }, func(T, error) {})
}

// uncertain tells whether a call has failed without an answer to it, so that it may or may not have been carried out.
func uncertain(err error) bool {
	for _, cut := range []error{zk.ErrConnectionClosed, zk.ErrSessionExpired, zk.ErrSessionMoved, zk.ErrNoServer, zk.ErrClosing} {
		if errors.Is(err, cut) {
			return true
		}
	}
	var network *net.OpError // of a request that could not be written
	return errors.As(err, &network)
}

// pause returns false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *client) String() string { return strings.Join(c.servers, ",") }
