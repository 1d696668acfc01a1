package locking

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"fencepost/domain"
)

// queues coalesces sections. Those that wait in this process for the same key form a queue, and each queue is served by one
// goroutine: it takes the lock, runs a batch of what waits in one transaction, answers, and goes on with the next batch
// until its turn is over or nobody has come for a while. A lock and a COMMIT so carry many sections, which is what makes a hot
// key fast; and what arrives once a batch has begun its work forms the next one, so that a cold key does not wait for company.
type queues struct {
	guard *Guard
	limit int

	serving sync.WaitGroup
	mu      sync.Mutex
	of      map[domain.Key]*queue // those with somebody waiting, or under way
}

// queue is the sections that wait for one key, the longest waiting first.
type queue struct {
	*queues
	key     domain.Key
	waiting []*call
	joined  chan struct{}      // has a token when somebody may have come
	giveUp  context.CancelFunc // ends the turn
	abandon context.CancelFunc // giveUp while nobody has begun; else nil
	tries   int                // holds in a row that were refused before anybody's section had begun
}

// call is one caller's section.
type call struct {
	ctx     context.Context
	section domain.Section
	arrived time.Time
	tries   int
	began   time.Time // when it was taken out of the queue

	done    chan struct{} // closed when the rest is set
	receipt domain.Receipt
	err     error
	panic   any
}

// do has the section run with others of its key. wait bounds how long it may take until it begins.
func (qs *queues) do(wait context.Context, key domain.Key, section domain.Section) (domain.Receipt, error) {
	c := &call{ctx: wait, section: section, arrived: time.Now(), done: make(chan struct{})}
	if err := qs.join(key, c); err != nil {
		return domain.Receipt{}, err
	}
	select {
	case <-c.done:
	case <-wait.Done():
		if qs.leave(key, c) {
			return domain.Receipt{LockWait: time.Since(c.arrived)}, fmt.Errorf("waiting for %s: %w", key, context.Cause(wait))
		}
		<-c.done // it has begun: its answer is on the way, and nobody else can tell what became of it
	}
	if c.panic != nil {
		panic(c.panic) // on the caller's goroutine, where it belongs
	}
	return c.receipt, c.err
}

func (qs *queues) join(key domain.Key, c *call) error {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.of[key]
	if q == nil {
		q = &queue{queues: qs, key: key, joined: make(chan struct{}, 1)}
		qs.of[key] = q
		qs.serving.Go(q.serve)
	}
	if len(q.waiting) >= qs.limit {
		return fmt.Errorf("%w: %d wait for %s", domain.ErrQueueFull, len(q.waiting), key)
	}
	q.waiting = append(q.waiting, c)
	select {
	case q.joined <- struct{}{}:
	default:
	}
	return nil
}

// leave drops a call that has not begun, and tells whether it has not.
func (qs *queues) leave(key domain.Key, c *call) bool {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.of[key]
	if q == nil {
		return false
	}
	i := slices.Index(q.waiting, c)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	if len(q.waiting) == 0 && q.abandon != nil {
		q.abandon()
	}
	return true
}

// serve works until nobody waits.
func (q *queue) serve() {
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			delete(q.of, q.key)
			q.mu.Unlock()
			return
		}
		// What is done for all of them is done in the name of the first, whose trace it belongs to, and not for its sake
		// alone: it ends when all of them have left before anybody's section has begun.
		ctx, abandon := context.WithCancel(context.WithoutCancel(q.waiting[0].ctx))
		q.giveUp, q.abandon = abandon, abandon
		q.mu.Unlock()
		q.turn(ctx)
		abandon()
	}
}

// turn takes the lock once, and serves whoever waits until the turn is over.
func (q *queue) turn(ctx context.Context) {
	h, err := q.hold(ctx)
	if err != nil {
		q.fail(ctx, err)
		return
	}
	defer h.end() // after the answers: nobody has to wait for it
	turn, pause := h.keep()
	single := false // the last batch was one caller, who had come in a pause
	for began := time.Now(); ; {
		came := q.waits(ctx, h, 0)
		var patience time.Duration
		switch {
		case !came && single && q.guard.carriers.spare():
			// One client sends a request after the other. So the next transaction begins while he is away, and he has to wait
			// for little more than its COMMIT. Of several clients it would take only the first to come.
			patience = pause
		case !came && !q.waits(ctx, h, pause):
			return
		}
		served, more := q.run(ctx, h, patience)
		if !more || time.Since(began) >= turn {
			return
		}
		single = !came && served == 1
	}
}

// How long a lock is kept for one batch after another, in the time that it costs to hand it over. Nobody else has asked for
// it when it was taken: then long, because those who come meanwhile wait for it once, and after that are somebody else who
// has asked. Else only so long that handing over is a small part of what is done.
const (
	turnAlone   = 30
	turnInTurns = 10
)

// keep says how long a queue may keep the lock, and how long of that without anybody to use it. The second is the time that a
// hand-over costs: whoever comes within it would have had to get the lock again, and if nobody comes it was not kept for
// longer in vain than that would have taken (the ski rental problem; Karlin et al., Competitive snoopy caching, 1988). It is
// half of that where somebody else waits. Without it a turn would end with the first batch, which all of a hot key's clients
// are in, a moment before they are back.
func (h *hold) keep() (turn, pause time.Duration) {
	if h.waited {
		return turnInTurns * h.handOver, h.handOver / 2
	}
	return turnAlone * h.handOver, h.handOver
}

// waits tells whether there is anybody to serve. If not, it waits for somebody until the pause is over or the lock is lost.
// When ctx is over, whoever has come since gets a turn of his own.
func (q *queue) waits(ctx context.Context, h *hold, pause time.Duration) bool {
	var over <-chan time.Time
	for {
		q.mu.Lock()
		n := len(q.waiting)
		q.mu.Unlock()
		if n > 0 || pause == 0 || ctx.Err() != nil {
			return n > 0 && ctx.Err() == nil
		}
		if over == nil {
			timer := time.NewTimer(pause)
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-q.joined:
		case <-over:
			pause = 0
		case <-h.section.Done():
			return false
		}
	}
}

// next takes the longest waiting calls out of the queue. They cannot leave any more. If ctx is over, it takes nobody: all had
// left, and whoever has come since must not fail for that.
func (q *queue) next(ctx context.Context, limit int) []*call {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	q.abandon, q.tries = nil, 0
	n := min(limit, len(q.waiting))
	batch := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	for _, c := range batch {
		c.began = time.Now()
	}
	return batch
}

// fail gives everybody who waits the same error: the lock could not be had. If ctx is over, then because all had left; those
// who have come since get a turn of their own. And a time-out is each caller's own affair.
func (q *queue) fail(ctx context.Context, err error) {
	if ctx.Err() != nil || errors.Is(err, domain.ErrLockTimeout) {
		return
	}
	for _, c := range q.next(ctx, math.MaxInt) {
		c.receipt.LockWait = time.Since(c.arrived)
		c.err = err
		close(c.done)
	}
}

// run runs a batch and answers its callers. It returns how many they were, and false if the hold is of no more use. When nobody
// has come by the time the grant is presented, it waits for somebody for as long as patience says.
func (q *queue) run(ctx context.Context, h *hold, patience time.Duration) (served int, more bool) {
	limit := q.guard.maxBatch
	if !h.excludes {
		limit = 1 // the strategy was changed while they waited; a lock that does not exclude must not look as if it did
	}
	bounded, cancel := context.WithTimeoutCause(h.section, q.guard.lockWait+transactionTimeout, errSilent)
	defer cancel()
	var batch []*call
	receipt, outcomes, retry, err := q.transact(bounded, h, func(presented bool) []domain.Section {
		if presented && len(batch) == 0 && patience > 0 && !q.waits(ctx, h, patience) {
			return nil
		}
		joining := q.next(ctx, limit-len(batch))
		batch = append(batch, joining...)
		sections := make([]domain.Section, len(joining))
		for i, c := range joining {
			sections[i] = c.section
			sections[i].Run = func(ctx context.Context, tx domain.Tx) error { return c.run(ctx, tx, q.guard.log) }
		}
		return sections
	}, func() {
		q.putBack(batch)
		batch = nil
	})
	switch {
	case len(batch) == 0 && patience > 0: // nobody was taken; whoever has come, or does now, gets a turn of his own
		return 0, false
	case len(batch) == 0 && (retry || h.section.Err() != nil) && ctx.Err() == nil && q.tries < maxTries-1:
		q.tries++ // nobody's section has begun, and under another hold it can: the lock was lost, or its epoch is over
		return 0, false
	case len(batch) == 0 && err != nil:
		q.fail(ctx, err)
		return 0, false
	case len(batch) == 0: // all have left
		return 0, true
	case retry:
		// Each by its own count: who came last must not fail because the one before him has tried so often.
		if batch, outcomes = q.tryAgain(batch), nil; len(batch) == 0 {
			return 0, false
		}
	}
	if len(outcomes) == 0 {
		outcomes = make([]error, len(batch)) // nobody knows them: err is everybody's
	}
	q.guard.observe(domain.Event{Kind: domain.EventBatch, Grants: receipt.Grants, Batch: len(batch)})
	for i, c := range batch {
		c.receipt = receipt
		c.receipt.LockWait = c.began.Sub(c.arrived)
		c.receipt.Database = min(receipt.Database, time.Since(c.began)) // the transaction may have begun before he came
		c.err = outcomes[i]
		if err != nil {
			// Also for a section that was refused: what it decided on may never have been. But if it leaves no answer, it
			// has put nothing, and that is certain whatever became of the transaction.
			c.err = err
			if outcomes[i] != nil && c.section.Once == nil && errors.Is(err, domain.ErrOutcomeUnknown) {
				c.err = &domain.UnavailableError{Server: "PostgreSQL", Err: errors.New("the transaction that it shared has an unknown outcome")}
			}
		}
		close(c.done)
	}
	return len(batch), err == nil
}

// tryAgain puts those back that may try once more, and returns the others.
func (q *queue) tryAgain(batch []*call) (others []*call) {
	var again []*call
	for _, c := range batch {
		if c.tries++; c.tries < maxTries {
			again = append(again, c)
		} else {
			others = append(others, c)
		}
	}
	q.putBack(again)
	return others
}

// putBack has calls wait again that have written nothing. Those whose time is over do not: they have been told that they
// cannot leave, so nobody else would end their wait.
func (q *queue) putBack(batch []*call) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var again []*call
	for _, c := range batch {
		if c.ctx.Err() == nil {
			again = append(again, c)
			continue
		}
		c.receipt.LockWait = time.Since(c.arrived)
		c.err = fmt.Errorf("waiting for %s: %w", q.key, context.Cause(c.ctx))
		close(c.done)
	}
	q.waiting = append(again, q.waiting...)
	if q.abandon = q.giveUp; len(q.waiting) == 0 {
		q.abandon()
	}
}

// errSilent is the end of a shared transaction that takes too long.
var errSilent = &domain.UnavailableError{Server: "PostgreSQL", Err: errors.New("a transaction got no answer in time")}

// hold and transact are the guard's, but for a panic, such as one in the making of an answer. This goroutine is nobody's, so
// that it would take the whole process with it. Nor can it be told whose it was: it is the error of everybody in the batch.
func (q *queue) hold(ctx context.Context) (h *hold, err error) {
	defer q.recovered(ctx, &err)
	return q.guard.hold(ctx, ctx, []domain.Key{q.key})
}

func (q *queue) transact(ctx context.Context, h *hold, collect domain.Collect, putBack func()) (receipt domain.Receipt, outcomes []error, retry bool, err error) {
	defer q.recovered(ctx, &err)
	return q.guard.carriers.transact(ctx, h, collect, putBack)
}

func (q *queue) recovered(ctx context.Context, err *error) {
	if v := recover(); v != nil {
		q.guard.log.ErrorContext(ctx, "a shared transaction has panicked", "resource", q.key, "panic", v, "stack", string(debug.Stack()))
		*err = errBroken
	}
}

// errBroken promises nothing: the panic may have come after the COMMIT was sent.
var errBroken = errors.New("a transaction that was shared has panicked; another line of the log has the stack")

// run is the section's Run, but for a panic, which would take the whole process with it: it is kept for the caller.
func (c *call) run(ctx context.Context, tx domain.Tx, log *slog.Logger) (err error) {
	defer func() {
		if c.panic = recover(); c.panic != nil {
			log.Error("a section has panicked", "panic", c.panic, "stack", string(debug.Stack())) // its goroutine's, not the caller's
			err = errPanicked
		}
	}()
	return c.section.Run(ctx, tx)
}

var errPanicked = errors.New("the section has panicked")
