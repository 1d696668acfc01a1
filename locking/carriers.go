package locking

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"fencepost/domain"
)

// carriers are the transactions that the queues of a process have under way. There are only so many: when more keys than
// that want one, those that wait share the next. A COMMIT then carries the batches of many keys, which is what makes a
// thousand lukewarm keys fast, as a queue makes one hot key fast. A key that finds a transaction free has it to itself.
//
// Nobody pays for company. A carrier of several keys does not wait for a fence's row that somebody else has locked: that key goes
// on alone, in a transaction that does not count. (Where fencing is off there is no such row, and it can wait for the item's
// own.) And when a carrier fails for one of its keys, nothing was written and each of them goes on alone: the one that was
// the cause fails there by itself.
type carriers struct {
	guard *Guard
	limit int // 0: there is none, and every key has its own

	mu       sync.Mutex
	underWay int
	waiting  []*load // the longest waiting first
}

// A carrier keeps the rows of all its keys locked until its end, so it should not become long.
const maxKeys = 64

// How long a transaction counts that draws a row lock and does not have it yet. It is longer than most transactions take, so
// that a lock that only changes hands is waited for in place.
const rowPatience = 20 * time.Millisecond

// load is one key's part in a transaction.
type load struct {
	hold     *hold
	collect  domain.Collect
	sections []domain.Section // those that a carrier has collected
	locked   bool             // its row is somebody else's, so its sections have not run
	drive    chan []*load     // receives the loads that this one's goroutine has to carry; nil when another's has done it

	carried  bool // the rest is set; if not, the load goes on alone
	receipt  domain.Receipt
	outcomes []error
	err      error
}

// transact is h.transact for the hold of a single key, but for the company. Sections that were collected and whose row is
// somebody else's are put back, and collected again when it is ours: who waits for a row must be able to leave.
func (c *carriers) transact(ctx context.Context, h *hold, collect domain.Collect, putBack func()) (receipt domain.Receipt, outcomes []error, retry bool, err error) {
	if c.limit == 0 || !h.excludes { // without a lock, nobody shares a transaction
		return h.transact(ctx, c.guard.lockWait, false, collect)
	}
	l := &load{hold: h, collect: collect}
	loads, err := c.board(ctx, l)
	switch {
	case err != nil:
		return domain.Receipt{Grants: h.grants}, nil, false, err
	case len(loads) == 1:
		if receipt, outcomes, retry, err = c.alone(ctx, l); err != nil || !rowLocked(outcomes) {
			return receipt, outcomes, retry, err
		}
		l.locked = true
	case len(loads) > 1:
		c.carry(ctx, loads)
	} // else another's goroutine has carried it
	if l.carried {
		return l.receipt, l.outcomes, false, l.err
	}
	if l.locked {
		putBack()
		l.sections = nil
	}
	return h.transact(ctx, c.guard.lockWait, false, func(presented bool) []domain.Section {
		if l.locked && !presented {
			return nil // not before the row is ours
		}
		again := l.sections
		l.sections = nil
		return append(again, collect(presented)...)
	})
}

// board waits for a carrier, and returns its loads if the caller has to carry them. Who has nobody to carry any more, or has lost
// his lock, gets off before: he would be in the way of the others.
func (c *carriers) board(ctx context.Context, l *load) ([]*load, error) {
	c.mu.Lock()
	if c.underWay < c.limit {
		c.underWay++
		c.mu.Unlock()
		return []*load{l}, nil
	}
	l.drive = make(chan []*load, 1)
	c.waiting = append(c.waiting, l)
	c.mu.Unlock()
	select {
	case loads := <-l.drive:
		return loads, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	if i := slices.Index(c.waiting, l); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
		c.mu.Unlock()
		return nil, context.Cause(ctx)
	}
	c.mu.Unlock()
	return <-l.drive, nil // it is on a carrier already
}

// spare tells whether a transaction may begin that waits for somebody to carry: another one is left for those who have come. Two
// that ask at the same moment may leave none, and then those wait for as long as a client is waited for.
func (c *carriers) spare() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limit == 0 || c.underWay+1 < c.limit
}

// alight lets those who wait have the next carrier.
func (c *carriers) alight() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.waiting), maxKeys)
	if n == 0 {
		c.underWay--
		return
	}
	loads := slices.Clone(c.waiting[:n])
	c.waiting = slices.Delete(c.waiting, 0, n)
	loads[0].drive <- loads
}

// carry runs the sections of the loads in one transaction. The first load is the caller's own.
func (c *carriers) carry(ctx context.Context, loads []*load) {
	others := slices.Clone(loads[1:])
	defer func() {
		c.alight()
		for _, l := range others {
			l.drive <- nil
		}
	}()
	loads = slices.DeleteFunc(loads, func(l *load) bool { return l.hold.section.Err() != nil }) // it would take the others with it
	if len(loads) == 0 {
		return
	}
	slices.SortFunc(loads, func(a, b *load) int { return strings.Compare(string(a.key()), string(b.key())) })
	ctx, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	defer lose(nil)
	ctx, cancel := context.WithTimeoutCause(ctx, c.guard.lockWait+transactionTimeout, errSilent)
	defer cancel()
	var grants []domain.Grant
	for _, l := range loads {
		grants = append(grants, l.hold.grants...)
		defer context.AfterFunc(l.hold.section, func() {
			// Else all its callers have left before they were collected: then it carries nobody, and is in nobody's way.
			if cause := context.Cause(l.hold.section); errors.Is(cause, domain.ErrLockLost) {
				lose(cause)
			}
		})()
	}
	var counts []int // of sections, once they are known
	receipt, outcomes, err := c.present(ctx, grants, func(presented bool) (all []domain.Section) {
		if counts != nil { // who comes later comes after those of the other keys
			return nil
		}
		var each []int
		for _, l := range loads {
			l.sections = l.collect(presented)
			all, each = append(all, l.sections...), append(each, len(l.sections))
		}
		counts = each
		return all
	})
	if err != nil && !everybodys(err) {
		return
	}
	for i, l := range loads {
		var own []error
		if counts != nil {
			own, outcomes = outcomes[:counts[i]], outcomes[counts[i]:]
		}
		if rowLocked(own) && (err == nil || errors.Is(err, domain.ErrOutcomeUnknown)) {
			l.locked = true // its sections have not run, whatever became of the others
			continue
		}
		l.carried, l.receipt, l.outcomes, l.err = true, receipt, own, err
		l.receipt.Grants, l.receipt.Batch = receipt.Grants[i:i+1], len(own)
		l.hold.took(l.receipt)
	}
}

// alone runs the sections of a key that has the transaction to itself. If the row is the lock, it waits for it there: to see
// first whether it is free would cost a key that is hot in several instances two transactions for most of its batches. But those
// of other keys do not wait for somebody else's lock for long: then the transaction counts no more. Under any other lock a row
// that is not free is out of the ordinary: a holder that has lost his lock is still at it.
func (c *carriers) alone(ctx context.Context, l *load) (domain.Receipt, []error, bool, error) {
	alight := sync.OnceFunc(c.alight)
	defer alight()
	if !l.hold.grants[0].RowLock {
		return l.hold.transact(ctx, c.guard.lockWait, true, l.collect)
	}
	patience := time.AfterFunc(rowPatience, alight)
	defer patience.Stop()
	return l.hold.transact(ctx, c.guard.lockWait, false, func(presented bool) []domain.Section {
		patience.Stop() // it draws the lock before it collects
		return l.collect(presented)
	})
}

// present is the database's Transact, but for a panic, after which nobody knows what became of anybody's section.
func (c *carriers) present(ctx context.Context, grants []domain.Grant, collect domain.Collect) (receipt domain.Receipt, outcomes []error, err error) {
	collected := 0
	defer func() {
		if v := recover(); v != nil {
			c.guard.log.ErrorContext(ctx, "a shared transaction has panicked", "panic", v, "stack", string(debug.Stack()))
			outcomes, err = make([]error, collected), errBroken
		}
		if receipt.Grants == nil {
			receipt.Grants = grants
		}
	}()
	return c.guard.db.Transact(ctx, grants, c.guard.lockWait, true, func(presented bool) []domain.Section {
		all := collect(presented)
		collected += len(all)
		return all
	})
}

// everybodys tells whether an error of a carrier is that of each of its loads: it says nothing of any of them, or too little
// to try again.
func everybodys(err error) bool {
	return errors.Is(err, domain.ErrUnavailable) || errors.Is(err, domain.ErrOutcomeUnknown) || errors.Is(err, errBroken)
}

func (l *load) key() domain.Key { return l.hold.grants[0].Key }

// rowLocked tells whether sections have not run because their row was somebody else's.
func rowLocked(outcomes []error) bool {
	return slices.ContainsFunc(outcomes, func(err error) bool { return errors.Is(err, domain.ErrRowLocked) })
}
