// Package zklock is the strategy zookeeper: a queue of ephemeral sequential nodes for each resource. The first in the queue
// has the lock, everybody else watches the node before his own, and a node that is deleted, or whose session has ended,
// wakes exactly one waiter. The token is the id of the transaction that has created the node.
//
// It promises that tokens rise in the order in which the lock is granted, that a waiter costs the servers nothing but its
// node, and that no node outlives its use: whatever is cut off, and whenever, the node is deleted in the background until a
// server says that it is not there, or goes with its session.
//
// A lease ends here by three ways. The session ends: the library says so, but only when it has reached a server again.
// Nobody has extended the lease for a term, which is the session's time-out: the node is deleted, although the session
// lives on by the library's pings. Or this process cannot be sure: two thirds of the time-out have passed since the servers
// have last answered that the node exists, with the leader of an ensemble among them. The servers count from when the
// leader has heard of the session last, so that third is what is between the end of the section and the next holder. A
// leader that is replaced without knowing it may answer from an old state for some seconds; what then is believed too long,
// the fence in PostgreSQL refuses.
//
// Other answers may come from a server that lags behind, and do no harm. Our node has its place from the moment in which it
// is created, and nobody comes before it later. So in whatever state it is seen to be the first, it has remained the first
// since; a state that is too old shows somebody before it who has left, or does not show it at all, and we wait longer.
//
// The library's own Lock is not used. It takes no context, leaves its node behind on every error after the create, has
// neither a signal of loss nor a token, and fails on any child that it did not name.
package zklock

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"fencepost/domain"
	"fencepost/locking"
)

// Name and summary of the strategy.
const (
	Name    = "zookeeper"
	Summary = "a queue of ephemeral nodes in ZooKeeper; the token is the transaction that created the node"
)

// TLS before a server's host:port has its connections encrypted, and its certificate checked against the authorities that
// the system trusts.
const TLS = "tls://"

// Locker takes leases in a ZooKeeper ensemble.
type Locker struct {
	client    *client
	deletions deletions
	acl       []zk.ACL
	log       *slog.Logger
}

var _ locking.Locker = (*Locker)(nil)

// Open makes the backend for the ensemble of servers (host:port, with TLS before it or not). It does not need them to answer
// yet. term is the session time-out to ask for; the servers have bounds of their own, and a lease's term is what they grant.
// auth is empty or user:password; with it, nobody else can read or change the nodes.
func Open(servers []string, auth string, term time.Duration, log *slog.Logger) (*locking.Backend, error) {
	if len(servers) == 0 {
		return nil, errors.New("the ensemble has no servers")
	}
	if user, password, ok := strings.Cut(auth, ":"); auth != "" && (!ok || user == "" || password == "") {
		return nil, errors.New("the credentials for ZooKeeper are not user:password")
	}
	l := &Locker{client: newClient(servers, term, auth, log), acl: zk.WorldACL(zk.PermAll), log: log}
	l.deletions.conn = func() *zk.Conn { return l.client.conn }
	if auth != "" {
		l.acl = zk.AuthACL(zk.PermAll)
	}
	return &locking.Backend{
		Name:     Name,
		Summary:  Summary,
		Fences:   true,
		Server:   l.client.String(),
		Locker:   l,
		HandOver: 4 * time.Millisecond,
		Identify: l.identify,
		Close:    l.client.close,
	}, nil
}

const (
	root         = "/fencepost"
	identityNode = root + "/identity" // no key's queue can have this name: keys have a slash in them
)

// queueOf is the node below which a resource's queue stands. It is never deleted: the numbers of its children would start
// again.
func queueOf(key domain.Key) string { return root + "/" + url.PathEscape(string(key)) }

// errNodeGone: our node is not there any more.
var errNodeGone = errors.New("the node is gone")

// Acquire implements locking.Locker.
func (l *Locker) Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
	for {
		lease, err := l.try(ctx, queueOf(key), hex.EncodeToString(id[:]))
		if errors.Is(err, errNodeGone) {
			continue // the session has ended while we stood in line; we go to its end
		}
		if err != nil {
			return nil, fmt.Errorf("waiting in line: %w", l.explain(ctx, err))
		}
		return lease, nil
	}
}

func (l *Locker) try(ctx context.Context, queue, id string) (lease *locking.Lease, err error) {
	p, err := bound(ctx, l.client, giveUp,
		func() (place, error) { return l.create(ctx, queue, id) },
		func(late place, _ error) {
			if late.node != "" {
				_ = l.remove(late.node)
			}
		})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			go l.remove(p.node)
		}
	}()
	waited := false
	if !p.first {
		if p.seen, waited, err = l.wait(ctx, queue, p.node); err != nil {
			return nil, err
		}
	}
	if lease, err = l.grant(p.node, p.seen); err == nil {
		lease.Waited = waited
	}
	return lease, err
}

// place is a node of ours in a queue.
type place struct {
	node  string
	first bool // it is known to be the first, and was seen there; if not, one has to look
	seen  sighting
}

// create makes our node. When the reply was lost, it looks for the node until a server has answered, however long ctx has
// been over: a node that nobody knows of would block the queue as long as the session lives.
func (l *Locker) create(ctx context.Context, queue, id string) (p place, err error) {
	for {
		s, err := l.client.ready(ctx, giveUp)
		if err != nil {
			return p, err
		}
		p, err = l.createIn(s, queue, id)
		if errors.Is(err, zk.ErrNoNode) {
			if err := l.createQueue(ctx, queue); err != nil {
				return p, err
			}
			continue
		}
		if !uncertain(err) {
			return p, err
		}
		if p.node, err = l.find(queue, id); p.node != "" || err != nil {
			return p, err
		}
	}
}

// createIn makes our node at the end of the queue, and has the server say in the same transaction what the queue is then. With
// nobody else in it, as nearly always, nothing has to be asked any more. The queue's data are written for the sake of that answer
// alone: it has the transaction's number, which is our node's, and counts the nodes. Nothing else that can be part of a
// transaction is answered so.
func (l *Locker) createIn(s session, queue, id string) (p place, err error) {
	sent := time.Now()
	answers, err := l.client.conn.Multi(
		&zk.CreateRequest{Path: queue + "/" + id + "-", Acl: l.acl, Flags: zk.FlagEphemeralSequential},
		&zk.SetDataRequest{Path: queue, Version: -1})
	if err != nil {
		return p, err
	}
	if len(answers) != 2 || answers[1].Stat == nil {
		return p, zk.ErrAPIError
	}
	p.node = answers[0].String
	p.seen = s.sighting(sent, answers[1].Stat.Mzxid)
	// On the connection of then, so that the node is this session's.
	p.first = answers[1].Stat.NumChildren == 1 && l.client.isOn(s)
	return p, nil
}

func (l *Locker) createQueue(ctx context.Context, queue string) error {
	err := l.createPersistent(ctx, queue, nil)
	if errors.Is(err, zk.ErrNoNode) { // these servers are new
		if err = l.createPersistent(ctx, root, nil); err == nil {
			err = l.createPersistent(ctx, queue, nil)
		}
	}
	return err
}

// createPersistent makes a node that stays. One that is there is left as it is.
func (l *Locker) createPersistent(ctx context.Context, node string, data []byte) error {
	_, err := retry(ctx, l.client, giveUp, func(session) (string, error) {
		return l.client.conn.Create(node, data, zk.FlagPersistent, l.acl)
	})
	if errors.Is(err, zk.ErrNodeExists) {
		return nil
	}
	return err
}

// find looks for the node of a create whose reply was lost.
func (l *Locker) find(queue, id string) (node string, err error) {
	return retry(l.client.life, l.client, keepTrying, func(s session) (string, error) {
		children, err := l.current(s, queue)
		if name := withID(children, id); name != "" {
			return queue + "/" + name, nil
		}
		return "", err
	})
}

// current is what is in the queue now. The sync is for an ensemble: without it, a server that we have come to could answer from
// before something that we know of. For the same reason both answers must be from one server.
func (l *Locker) current(s session, queue string) ([]string, error) {
	if _, err := l.client.conn.Sync(queue); err != nil {
		return nil, err
	}
	children, _, err := l.client.conn.Children(queue)
	if !l.client.isOn(s) {
		return nil, zk.ErrConnectionClosed
	}
	if errors.Is(err, zk.ErrNoNode) {
		return nil, nil
	}
	return children, err
}

// remove deletes a node of ours and returns when it is gone for certain. It runs in the background of whoever has no time
// for that. A node whose session has ended is gone as well.
func (l *Locker) remove(node string) error {
	tries := 0
	_, err := retry(l.client.life, l.client, keepTrying, func(session) (struct{}, error) {
		tries++
		return struct{}{}, l.deletions.send(node)
	})
	switch {
	case errors.Is(err, zk.ErrNoNode) && tries == 1:
		return fmt.Errorf("%w: %s is gone", domain.ErrLockLost, node)
	case err == nil, errors.Is(err, zk.ErrNoNode): // deleted, by a try before this one or by this one
		return nil
	case !errors.Is(err, errClosed):
		l.log.Error("a lock's node could not be deleted; it is gone when this instance ends", "node", node, "error", err)
	}
	return err
}

// wait returns when our node is the first of its queue, and was seen there. Servers that are away for a while do not end it:
// we keep our place as long as the session does. waited is false if it was the first from the start.
func (l *Locker) wait(ctx context.Context, queue, node string) (seen sighting, waited bool, err error) {
	for ; ; waited = true {
		var line []string
		if line, seen, err = l.look(ctx, queue, node); err != nil {
			return seen, waited, err
		}
		place := -1
		for i, name := range line {
			if name == path.Base(node) {
				place = i
			}
		}
		switch place {
		case -1:
			return seen, waited, errNodeGone
		case 0:
			return seen, waited, nil
		}
		// The one before us only. If all watched the holder, each release would wake them all. By its data and not by its
		// existence: a watch for a node that is not there would stay at the server for good, because names do not return.
		changed, err := ask(ctx, l.client, keepTrying, func(session) (<-chan zk.Event, error) {
			_, _, changed, err := l.client.conn.GetW(queue + "/" + line[place-1])
			return changed, err
		})
		if errors.Is(err, zk.ErrNoNode) {
			continue
		}
		if err != nil {
			return seen, waited, err
		}
		select {
		case <-changed: // deleted, or the session is over; which one, the next look tells
		case <-ctx.Done():
			return seen, waited, context.Cause(ctx)
		}
	}
}

// look asks who stands in the queue, and for our node at the same time: nearly always nobody stands before it by then, neither
// when it was just made nor when the one before it was deleted, and the lock is had one round trip earlier.
func (l *Locker) look(ctx context.Context, queue, node string) (line []string, seen sighting, err error) {
	var seeing errgroup.Group
	seeing.Go(func() (err error) {
		seen, err = l.see(ctx, node, anyServer)
		return err
	})
	line, err = l.line(ctx, keepTrying, queue)
	if seeErr := seeing.Wait(); err == nil {
		err = seeErr
	}
	return line, seen, err
}

// line is who stands in the queue, the holder first.
func (l *Locker) line(ctx context.Context, p patience, queue string) ([]string, error) {
	children, err := ask(ctx, l.client, p, func(session) ([]string, error) {
		children, _, err := l.client.conn.Children(queue)
		return children, err
	})
	if errors.Is(err, zk.ErrNoNode) {
		return nil, nil
	}
	return inLine(children), err
}

// sighting is a server's word that a node exists and belongs to our session.
type sighting struct {
	token   domain.Token
	session session
	until   time.Time // when it is too old to act upon
	expires time.Time // when the servers may have ended the session, if they have not heard of us since
}

// authority says whose word a sighting has to be.
type authority bool

const (
	// Who stands in line has just heard from his server what it had from the leader: that his node was created, or that
	// the one before it was deleted.
	anyServer authority = false
	// A server that is cut off from its leader answers from an old state, for as long as it takes to notice, while the
	// leader may end our session, of which it does not hear. So a holder has his server reach the leader first.
	theLeader authority = true
)

func (l *Locker) see(ctx context.Context, node string, of authority) (sighting, error) {
	return ask(ctx, l.client, keepTrying, func(s session) (sighting, error) {
		sent := time.Now()
		if of == theLeader {
			if _, err := l.client.conn.Sync(node); err != nil {
				return sighting{}, err
			}
		}
		exists, stat, err := l.client.conn.Exists(node)
		switch {
		case err != nil:
			return sighting{}, err
		case !exists, stat.EphemeralOwner != s.id: // of another session: this one has ended, or is going to
			return sighting{}, errNodeGone
		}
		return s.sighting(sent, stat.Czxid), nil
	})
}

// sighting is what the answer to a request that was sent then is worth.
func (s session) sighting(sent time.Time, created int64) sighting {
	return sighting{token: domain.Token(created), session: s, until: sent.Add(s.timeout * 2 / 3), expires: sent.Add(s.timeout)}
}

// grant makes the lease of a node that is the first of its queue.
func (l *Locker) grant(node string, seen sighting) (*locking.Lease, error) {
	if time.Until(seen.until) < seen.session.timeout/4 {
		return nil, fmt.Errorf("%w: ZooKeeper took too long to answer for a session of %s", domain.ErrLockLost, seen.session.timeout)
	}
	h := &held{locker: l, node: node, session: seen.session, expires: seen.expires, removed: make(chan struct{})}
	h.mu.Lock()
	h.timer = time.AfterFunc(time.Until(seen.expires), h.expire)
	h.mu.Unlock()
	return &locking.Lease{
		Token:   seen.token,
		Until:   seen.until,
		Term:    seen.session.timeout,
		Extend:  h.extend,
		Release: h.release,
		Gone:    seen.session.ended,
	}, nil
}

// held is a node that has the lock.
type held struct {
	locker  *Locker
	node    string
	session session

	mu      sync.Mutex
	expires time.Time
	timer   *time.Timer
	over    bool // the node is being deleted
	removed chan struct{}
	err     error // of the deletion; set when removed is closed
}

// extend asks whether the node is still there. It waits for a server as long as it may, and so has more than one try.
func (h *held) extend(ctx context.Context) (until time.Time, err error) {
	seen, err := h.locker.see(ctx, h.node, theLeader)
	if errors.Is(err, errNodeGone) {
		return until, fmt.Errorf("%w: %s is gone", domain.ErrLockLost, h.node)
	}
	if err != nil {
		return until, h.locker.explain(ctx, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return until, fmt.Errorf("%w: it was not extended for %s", domain.ErrLockLost, h.session.timeout)
	}
	h.expires = seen.expires
	h.timer.Reset(time.Until(seen.expires))
	return seen.until, nil
}

// expire ends a lease that nobody has extended, as every lock with a term does: else a holder that hangs would keep its
// lock as long as its process lives.
func (h *held) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !time.Now().Before(h.expires) { // it may have been extended while the timer fired
		h.remove()
	}
}

// release gives the lock back. The deletion goes on when ctx ends.
func (h *held) release(ctx context.Context) error {
	h.mu.Lock()
	h.remove()
	h.mu.Unlock()
	select {
	case <-h.removed:
		return h.err
	case <-h.session.ended:
		return fmt.Errorf("%w: its session has ended", domain.ErrLockLost)
	case <-ctx.Done():
		return h.locker.explain(ctx, context.Cause(ctx))
	}
}

// remove begins the deletion. The caller holds mu.
func (h *held) remove() {
	if h.over {
		return
	}
	h.over = true
	h.timer.Stop()
	go func() {
		defer close(h.removed)
		h.err = h.locker.remove(h.node)
	}()
}

// Break takes the lock away from whoever has it, as an operator would, and returns whether anybody had.
func (l *Locker) Break(ctx context.Context, key domain.Key) (bool, error) {
	queue, holder, tries := queueOf(key), "", 0
	held, err := ask(ctx, l.client, giveUp, func(s session) (bool, error) {
		if holder == "" { // or else the answer to its deletion was lost, and the next one is not to lose his lock as well
			children, err := l.current(s, queue)
			line := inLine(children)
			if err != nil || len(line) == 0 {
				return false, err
			}
			holder = line[0]
		}
		if ctx.Err() != nil { // the caller was told that it has failed
			return false, context.Cause(ctx)
		}
		tries++
		err := l.client.conn.Delete(queue+"/"+holder, -1)
		if errors.Is(err, zk.ErrNoNode) { // deleted by a try before this one; if this is the first, its holder was faster
			return tries > 1, nil
		}
		return err == nil, err
	})
	return held, l.explain(ctx, err)
}

// How long the servers are given to say who they are: who wants to know waits for an answer, not for the servers.
const identifyTimeout = 3 * time.Second

// identify returns an id that is kept beside the queues. Every instance reads the same one, by whatever server; when the
// ensemble's data are wiped it goes with them, and a new one shows that the tokens start again.
func (l *Locker) identify(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	read := func(session) ([]byte, error) {
		id, _, err := l.client.conn.Get(identityNode)
		return id, err
	}
	id, err := ask(ctx, l.client, giveUp, read)
	if errors.Is(err, zk.ErrNoNode) {
		id, err = bound(ctx, l.client, giveUp, func() ([]byte, error) {
			err := l.createPersistent(ctx, root, nil)
			if err == nil {
				err = l.createPersistent(ctx, identityNode, []byte(uuid.NewString()))
			}
			if err != nil {
				return nil, err
			}
			return retry(ctx, l.client, giveUp, read) // what is there: another instance may have been faster
		}, func([]byte, error) {})
	}
	if err != nil {
		return "", l.unavailable(err)
	}
	return "zookeeper/" + string(id), nil
}

// explain says what an error means for the caller. The end of its context is its own affair, unless there was no
// connection to wait on.
func (l *Locker) explain(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, domain.ErrLockLost):
		return err
	case ctx.Err() != nil && l.client.isConnected():
		return err
	}
	return l.unavailable(err)
}

func (l *Locker) unavailable(err error) error {
	if errors.Is(err, zk.ErrNoAuth) {
		err = fmt.Errorf("the nodes below %s belong to somebody else; use that user and password: %w", root, err)
	}
	return &domain.UnavailableError{Server: "ZooKeeper", Err: fmt.Errorf("%s: %w", l.client, err)}
}
