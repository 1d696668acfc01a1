package redislock

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/singleflight"

	"fencepost/domain"
	"fencepost/locking"
)

// Name and summary of the strategy over several servers.
const (
	RedlockName    = "redlock"
	RedlockSummary = "a lease on a majority of independent Redis servers; the token is agreed on by two majorities"
)

var (
	//go:embed claim.lua
	claimLua string
	//go:embed confirm.lua
	confirmLua string

	claimScript   = redis.NewScript(claimLua)
	confirmScript = redis.NewScript(confirmLua)
)

// Below redlockPrefix are the keys of this strategy. They are not those of the strategy redis, because both may use the same
// server.
const redlockPrefix = "fencepost:redlock:"

// MinNodes is the least number of servers that survives the loss of one.
const MinNodes = 3

// Redlock takes leases on a majority of independent Redis servers, its nodes.
type Redlock struct {
	nodes []*node
	ttl   time.Duration
	bell  *bell
	crowd crowd
}

var _ locking.Locker = (*Redlock)(nil)

// OpenRedlock makes the backend for the servers at urls, an odd number of them. It does not need them to answer yet.
func OpenRedlock(urls []string, ttl time.Duration, traces trace.TracerProvider, log *slog.Logger) (*locking.Backend, error) {
	// With an even number one more has to answer, and no more may fail than with one server less.
	if len(urls) < MinNodes || len(urls)%2 == 0 {
		return nil, fmt.Errorf("redlock needs three, five or another odd number of Redis servers, not %d", len(urls))
	}
	l := &Redlock{ttl: ttl, crowd: crowd{pause: minPause}}
	var servers []server
	var addrs []string
	for _, url := range urls {
		options, err := parseURL(url)
		if err == nil && (options.MasterName != "" || options.IsClusterMode) {
			err = errors.New("is not that of one server: name independent masters")
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("a URL of Redlock %w", err), l.close())
		}
		s := newServer(options, nodeTimeout(ttl))
		if err := traceCalls(s.UniversalClient, traces); err != nil {
			return nil, errors.Join(err, s.Close(), l.close())
		}
		l.nodes = append(l.nodes, &node{server: s, timeout: nodeTimeout(ttl)})
		servers = append(servers, s)
		addrs = append(addrs, s.addr)
	}
	l.bell = newBell(log, servers...)
	return &locking.Backend{
		Name:     RedlockName,
		Summary:  RedlockSummary,
		Fences:   true,
		Server:   strings.Join(addrs, ","),
		Locker:   l,
		HandOver: 2500 * time.Microsecond,
		Identify: l.identify,
		Close: func() error {
			l.bell.close()
			return l.close()
		},
	}, nil
}

func (l *Redlock) close() error {
	var errs []error
	for _, n := range l.nodes {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// nodeTimeout is how long one node may take to answer. It is far below the term: when a majority has to be waited for that
// does not come, most of the term must be left for another try.
func nodeTimeout(ttl time.Duration) time.Duration {
	return min(max(ttl/20, 50*time.Millisecond), 500*time.Millisecond, ttl/4)
}

// Acquire implements locking.Locker.
func (l *Redlock) Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
	n := namesOf(redlockPrefix, key)
	others, err := l.crowd.standAside(ctx, n.lock) // they pause as well before they try
	if err != nil {
		return nil, err
	}
	waited := others > 0
	var rung <-chan struct{} // nil, so never received from, until this is a waiter
	if l.bell.awaited(n.released) {
		var behind bool
		var stop func()
		rung, behind, stop = l.bell.listen(n.released)
		defer stop()
		if behind {
			if err := await(ctx, rung, l.ttl); err != nil {
				return nil, err
			}
		}
		waited = true
	}
	failures, patience := 0, halfOf(ctx)
	for try, window := 0, minPause; ; try++ {
		c := l.claim(n, owner(id, try))
		lease, err := c.run(ctx)
		switch {
		case lease != nil:
			lease.Waited = waited || try > 0
			return lease, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == nil:
			failures = 0
		default:
			// That a majority did not answer in time may be the fault of this process, when it has too much to do.
			if failures++; failures >= maxFailures && (!l.silent(c.errs) || time.Now().After(patience)) {
				return nil, err
			}
		}
		if rung == nil {
			// A release between the try and the subscription is not missed: the bell rings when it has subscribed.
			var stop func()
			rung, _, stop = l.bell.listen(n.released)
			defer stop()
		}
		// Nobody may have won: several have taken some nodes each and given them back. Then they must not meet again in the
		// same moment, so each pauses for a random time; if they do, for a longer one.
		if err := c.settle(ctx, rand.N(window)); err != nil {
			return nil, err
		}
		until, held := c.heldUntil()
		if !held {
			window = min(2*window, maxPause)
			others = 0 // whoever was met is somebody else
			continue
		}
		if err := await(ctx, rung, time.Until(until)); err != nil {
			return nil, err
		}
		window = minPause
		if others == 1 {
			continue // most likely it had the lock, and nobody else was woken
		}
		// The waiters of other instances were woken by the same ring, and it may not have reached every node yet.
		if err := sleep(ctx, rand.N(window)); err != nil {
			return nil, err
		}
	}
}

const (
	// A pause is random, from zero to these.
	minPause = 4 * time.Millisecond
	maxPause = 64 * time.Millisecond
	// So many tries in a row must find no majority that answers, before the caller is told; and if it is only that answers are
	// missing, and nobody has refused to answer, half of the caller's wait must be over.
	maxFailures = 3
)

// halfOf is until when the silence of nodes is borne: for half of the caller's wait, and not at all if nobody says how long that is.
func halfOf(ctx context.Context) (end time.Time) {
	end = time.Now()
	if deadline, bounded := ctx.Deadline(); bounded {
		end = end.Add(time.Until(deadline) / 2)
	}
	return end
}

// silent tells whether a majority might be there and only too slow: too few nodes for that have said that they cannot be had.
func (l *Redlock) silent(errs []error) bool {
	gone := 0
	for _, err := range errs {
		var timeout net.Error
		if !(errors.As(err, &timeout) && timeout.Timeout()) && !errors.Is(err, redis.ErrPoolTimeout) {
			gone++
		}
	}
	return len(l.nodes)-gone >= majority(len(l.nodes))
}

// owner is what a try writes where the lock is. Each try has its own: what an earlier one has left to be given back in the
// background must not take away the lock of a later one. The first is the same for the same grant, so that a caller that
// asks again for a lock which it has finds it to be its own.
func owner(id domain.GrantID, try int) string {
	if try == 0 {
		return uuid.UUID(id).String()
	}
	return uuid.UUID(id).String() + "/" + strconv.Itoa(try)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// claim is one try to get a lock, and what may be held because of it.
type claim struct {
	l       *Redlock
	names   names
	owner   string
	round   round
	replies chan reply // room for all that can come: nobody waits for a claim that is over
	// Per node, closed when its phase 1 is over. A release waits for it: one that overtook the request on its way would
	// leave the lock there until its term ends.
	claimed []chan struct{}
	skipped []bool // per node, to be read after that: nothing was sent, so there is nothing to give back

	refusals []refusal
	errs     []error
}

// reply is what one node has said in one phase.
type reply struct {
	node    int
	phase   int
	yes     bool
	number  domain.Token // phase 1, yes: the node's number
	refusal refusal      // phase 1, no
	err     error
}

// refusal says who has a node's lock, and when that ends.
type refusal struct {
	owner string
	until time.Time
}

func (l *Redlock) claim(n names, owner string) *claim {
	c := &claim{
		l: l, names: n, owner: owner,
		round:   newRound(len(l.nodes), majority(len(l.nodes))),
		replies: make(chan reply, 2*len(l.nodes)),
		claimed: make([]chan struct{}, len(l.nodes)),
		skipped: make([]bool, len(l.nodes)),
	}
	for i := range c.claimed {
		c.claimed[i] = make(chan struct{})
	}
	return c
}

// run asks the nodes, and returns as soon as a majority has acknowledged or cannot any more. Without a lease and an error the
// lock is somebody else's, or nobody's. What was taken in vain is given back in the background.
func (c *claim) run(ctx context.Context) (*locking.Lease, error) {
	sent := time.Now()
	for i := range c.l.nodes {
		go c.ask(ctx, i)
	}
	var silent <-chan time.Time
	for overdue := false; !c.round.won() && !c.round.lost() && !overdue; {
		select {
		case r := <-c.replies:
			for _, i := range c.take(r) {
				go c.confirm(ctx, i)
			}
			// When a majority has answered and the outcome hangs on a node that stays silent, another try is the better bet:
			// what was in the way at the others is likely to be on its way out.
			if c.round.count(asked) < majority(len(c.l.nodes)) {
				silent = time.After(max(time.Since(sent), nodeTimeout(c.l.ttl)/10))
			}
		case <-silent:
			overdue = true
		case <-ctx.Done():
			c.giveBack(ctx)
			return nil, context.Cause(ctx)
		}
	}
	until := sent.Add(c.l.ttl - drift(c.l.ttl))
	if c.round.won() && time.Until(until) >= c.l.ttl/4 {
		return &locking.Lease{Token: c.round.token, Until: until, Term: c.l.ttl, Extend: c.extend, Release: c.release}, nil
	}
	c.giveBack(ctx)
	if len(c.errs) >= majority(len(c.l.nodes)) {
		return nil, unavailable(c.errs)
	}
	return nil, nil
}

// take takes in a reply and returns the nodes to which phase 2 goes now.
func (c *claim) take(r reply) (confirm []int) {
	switch {
	case r.err != nil:
		c.errs = append(c.errs, r.err)
		c.round.fail(r.node)
	case r.phase == 2 && r.yes:
		c.round.acknowledge(r.node)
	case r.phase == 2:
		c.round.fail(r.node)
	case r.yes:
		return c.round.grant(r.node, r.number)
	default:
		c.refusals = append(c.refusals, r.refusal)
		c.round.refuse(r.node)
	}
	return nil
}

// ask is phase 1 at one node. Like everything that is sent to a node, it does not end with the caller's context: then nobody
// would know whether the lock was taken.
func (c *claim) ask(ctx context.Context, i int) {
	defer close(c.claimed[i])
	r := reply{node: i, phase: 1}
	c.skipped[i], r.err = c.l.nodes[i].call(ctx, func(ctx context.Context, s server) error {
		answer, err := claimScript.Run(ctx, s, []string{c.names.lock, c.names.token}, c.owner, c.l.ttl.Milliseconds()).Slice()
		if err != nil {
			return err
		}
		yes, number, rest, err := parseReply(answer)
		switch {
		case err != nil:
			return err
		case yes:
			r.yes, r.number = true, domain.Token(number)
		default:
			r.refusal.owner = fmt.Sprint(rest...)
			if number < 0 { // a lock without a term is none of ours
				number = c.l.ttl.Milliseconds()
			}
			r.refusal.until = time.Now().Add(time.Duration(number) * time.Millisecond)
		}
		return nil
	})
	c.replies <- r
}

// confirm is phase 2 at one node.
func (c *claim) confirm(ctx context.Context, i int) {
	r := reply{node: i, phase: 2}
	_, r.err = c.l.nodes[i].call(ctx, func(ctx context.Context, s server) (err error) {
		r.yes, err = confirmScript.Run(ctx, s, []string{c.names.lock, c.names.token}, c.owner,
			strconv.FormatInt(int64(c.round.token), 10)).Bool()
		return err
	})
	c.replies <- r
}

// settle pauses after a try in vain, and takes in the answers that were not waited for: they tell whether there is a holder.
func (c *claim) settle(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case r := <-c.replies:
			c.take(r) // a grant comes too late, and is being given back
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// heldUntil tells whether one owner has a majority of the nodes, and when so many of the locks will have expired, if nobody
// renews them, that somebody else can get one.
func (c *claim) heldUntil() (until time.Time, held bool) {
	need := majority(len(c.l.nodes))
	nodes := map[string]int{}
	for _, r := range c.refusals {
		nodes[r.owner]++
		held = held || nodes[r.owner] >= need
	}
	if !held {
		return time.Time{}, false
	}
	slices.SortFunc(c.refusals, func(a, b refusal) int { return a.until.Compare(b.until) })
	return c.refusals[len(c.refusals)-need].until, true
}

// giveBack releases in the background what a try in vain has taken, or may have.
func (c *claim) giveBack(ctx context.Context) {
	// If so many nodes have refused that this try never had a majority, nobody waits for its release: those who met it have
	// tried in vain as well, and try again by themselves. To wake them now would only make them meet again.
	ring := uuid.NewString()
	if c.round.count(refused) >= majority(len(c.l.nodes)) {
		ring = ""
	}
	for i := range c.l.nodes {
		if s := c.round.states[i]; s != refused {
			go c.releaseAt(ctx, i, ring)
		}
	}
}

// releaseAt gives the lock of one node back, and does not give up as long as the node does not answer.
func (c *claim) releaseAt(ctx context.Context, i int, ring string) (ours bool, err error) {
	<-c.claimed[i]
	if c.skipped[i] {
		return false, nil
	}
	release := func(ctx context.Context) (ours bool, err error) {
		_, err = c.l.nodes[i].call(ctx, func(ctx context.Context, s server) error {
			var awaited int64
			if ours, awaited, err = s.release(ctx, c.names, c.owner, ring); awaited > 0 {
				c.l.crowd.note(c.names.lock, awaited)
			}
			return err
		})
		return ours, err
	}
	if ours, err = release(ctx); err != nil {
		locking.Abandon(func(ctx context.Context) error {
			ours, err := release(ctx)
			if err == nil && !ours {
				err = notOurs(c.names)
			}
			return err
		})
	}
	return ours, err
}

// release implements locking.Lease. It returns when a majority has given the lock back. A node that does not answer is seen
// to in the background, so the only error is that the lock was lost.
func (c *claim) release(ctx context.Context) error {
	ring := uuid.NewString()
	v := c.l.poll(ctx, func(i int) (bool, error) { return c.releaseAt(ctx, i, ring) })
	if v.no >= majority(len(c.l.nodes)) {
		return notOurs(c.names)
	}
	return nil
}

// extend implements locking.Lease. The lock is lost when a majority of the nodes says that it is not ours; nodes that do not
// answer may answer the next time.
func (c *claim) extend(ctx context.Context) (until time.Time, err error) {
	sent := time.Now()
	v := c.l.poll(ctx, func(i int) (ours bool, err error) {
		_, err = c.l.nodes[i].call(ctx, func(ctx context.Context, s server) (err error) {
			ours, err = s.extend(ctx, c.names, c.owner, c.l.ttl)
			return err
		})
		return ours, err
	})
	switch need := majority(len(c.l.nodes)); {
	case v.yes >= need:
		return sent.Add(c.l.ttl - drift(c.l.ttl)), nil
	case v.no >= need:
		return time.Time{}, notOurs(c.names)
	case ctx.Err() != nil:
		return time.Time{}, context.Cause(ctx)
	}
	return time.Time{}, unavailable(v.errs)
}

// votes is what the nodes have answered to one question.
type votes struct {
	yes, no int
	errs    []error
}

// poll asks all nodes at once, and returns when the rest cannot change the outcome, or ctx ends. The question goes to the
// rest all the same.
func (l *Redlock) poll(ctx context.Context, ask func(node int) (bool, error)) (v votes) {
	type vote struct {
		yes bool
		err error
	}
	answers := make(chan vote, len(l.nodes))
	for i := range l.nodes {
		go func() {
			yes, err := ask(i)
			answers <- vote{yes, err}
		}()
	}
	need := majority(len(l.nodes))
	for v.yes < need && v.no < need && v.yes+v.no+len(v.errs) < len(l.nodes) {
		select {
		case answer := <-answers:
			switch {
			case answer.err != nil:
				v.errs = append(v.errs, answer.err)
			case answer.yes:
				v.yes++
			default:
				v.no++
			}
		case <-ctx.Done():
			return v
		}
	}
	return v
}

// Break takes the lock away from whoever has it, as an operator would, and returns whether anybody had a majority. The
// numbers stay.
func (l *Redlock) Break(ctx context.Context, key domain.Key) (bool, error) {
	ring := uuid.NewString()
	v := l.poll(ctx, func(i int) (held bool, err error) {
		_, err = l.nodes[i].call(ctx, func(ctx context.Context, s server) (err error) {
			held, err = s.remove(ctx, namesOf(redlockPrefix, key), ring)
			return err
		})
		return held, err
	})
	need := majority(len(l.nodes))
	if v.yes+v.no < need {
		return false, unavailable(v.errs)
	}
	return v.yes >= need, nil
}

const quorumKey = redlockPrefix + "identity"

// identify returns an id that a majority of the nodes carries beside their numbers. The nodes have to be what the strategy
// rests on: masters, that keep what they are told, and each another server.
//
// The id belongs to the nodes together, so it stays the same while a minority is down, and when a node that was lost comes
// back empty and is given it again. When a majority was emptied, the numbers may have gone back, and a new id shows it.
// Instances that begin at once on empty nodes may each place an id of their own on some; the one on most nodes wins, of
// equals the smallest, and is written over the others. Should two instances that see different nodes differ for a moment,
// each begins a reign of its own, which costs a refused write and no more.
func (l *Redlock) identify(ctx context.Context) (string, error) {
	for patience := halfOf(ctx); ; {
		id, silent, err := l.askIdentity(ctx)
		if !silent || ctx.Err() != nil || time.Now().After(patience) {
			return id, err
		}
	}
}

// askIdentity asks once. silent means that it failed because a majority was not heard of in time.
func (l *Redlock) askIdentity(ctx context.Context) (id string, silent bool, err error) {
	type answer struct {
		run, quorum string
		err         error
	}
	answers := make([]answer, len(l.nodes))
	proposal := uuid.NewString()
	var group sync.WaitGroup
	for i, n := range l.nodes {
		group.Go(func() {
			a := &answers[i]
			_, a.err = n.call(ctx, func(ctx context.Context, s server) error {
				info, err := infoOf(ctx, s)
				if err != nil {
					return err
				}
				a.run = info["run_id"]
				if err := refuseReplica(info); err != nil {
					return &unfitError{s.addr, err}
				}
				if err := refuseEviction(info); err != nil {
					return &unfitError{s.addr, err}
				}
				if err := s.SetNX(ctx, quorumKey, proposal, 0).Err(); err != nil {
					return err
				}
				a.quorum, err = s.Get(ctx, quorumKey).Result()
				return err
			})
		})
	}
	group.Wait()

	servers := map[string]string{} // run id → address
	carriers := map[string]int{}   // quorum id → nodes
	var errs []error
	for i, a := range answers {
		var unfit *unfitError
		if errors.As(a.err, &unfit) {
			return "", false, unavailable([]error{unfit})
		}
		if a.err != nil {
			errs = append(errs, a.err)
			continue
		}
		addr := l.nodes[i].addr
		if other, known := servers[a.run]; known {
			return "", false, unavailable([]error{fmt.Errorf(
				"%s and %s are the same server, whose loss would count twice: name each server once", other, addr)})
		}
		servers[a.run] = addr
		carriers[a.quorum]++
	}
	if len(servers) < majority(len(l.nodes)) {
		return "", l.silent(errs), unavailable(errs)
	}
	for quorum, nodes := range carriers {
		if c := cmp.Compare(nodes, carriers[id]); c > 0 || c == 0 && quorum < id {
			id = quorum
		}
	}
	for i, a := range answers {
		if a.err == nil && a.quorum != id {
			if _, err := l.nodes[i].call(ctx, func(ctx context.Context, s server) error {
				return s.Set(ctx, quorumKey, id, 0).Err()
			}); err != nil {
				return "", l.silent([]error{err}), unavailable([]error{err})
			}
		}
	}
	// With other servers added or left out, two majorities need not meet: that is another authority.
	return fmt.Sprintf("redlock/%d/%s", len(l.nodes), id), false, nil
}

// refuseReplica: what a replica knows is a copy, and its loss and its master's are one.
func refuseReplica(info map[string]string) error {
	if info["role"] != "master" {
		return errors.New("it is a replica: name independent masters")
	}
	return nil
}

// unfitError is about a server that must not be a node.
type unfitError struct {
	addr string
	err  error
}

func (e *unfitError) Error() string { return e.addr + ": " + e.err.Error() }

// unavailable: too few nodes answer.
func unavailable(errs []error) error {
	var texts []string
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	return &domain.UnavailableError{Server: "Redlock", Err: errors.New(strings.Join(texts, "; "))}
}

// node is a server that may be away without anybody noticing.
type node struct {
	server
	timeout time.Duration

	// The last call has failed. Then nothing is sent before a ping was answered, and one ping at a time is under way: a
	// request that may arrive when the node is back could take a lock for somebody who has long gone, and would have to be
	// followed by its release.
	suspect atomic.Bool
	pings   singleflight.Group
}

// call runs f within the node's time-out, whatever becomes of the caller's context. skipped means that nothing was sent.
func (n *node) call(ctx context.Context, f func(context.Context, server) error) (skipped bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.timeout)
	defer cancel()
	if n.suspect.Load() {
		_, err, _ := n.pings.Do("", func() (any, error) { return nil, n.Ping(ctx).Err() })
		if err != nil && !errors.Is(err, redis.ErrClosed) { // f meets a closed client as well
			return true, fmt.Errorf("%s: %w", n.addr, err)
		}
		n.suspect.Store(false)
	}
	if err := f(ctx, n.server); err != nil {
		n.suspect.Store(true)
		return false, fmt.Errorf("%s: %w", n.addr, err)
	}
	return false, nil
}
