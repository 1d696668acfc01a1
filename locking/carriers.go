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
	limit int // 0: none

	mu       sync.Mutex
	underWay int
	waiting  []*load // the longest waiting first
}

// A carrier keeps the rows of all its keys locked until its end, so it should not become long.
const maxKeys = 64

// How long a key may wait for its row in a transaction that counts. It is longer than a transaction takes.
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

// transact is h.transact for the hold of a single key, but for the company. Sections that were collected and have not run are put
// back before they are collected again: who waits for a row must be able to leave.
func (c *carriers) transact(ctx context.Context, h *hold, collect domain.Collect, putBack func()) (receipt domain.Receipt, outcomes []error, retry bool, err error) {
	if c.limit == 0 {
		return h.transact(ctx, c.guard.lockWait, collect)
	}
	l := &load{hold: h, collect: collect}
	switch loads := c.board(l); len(loads) {
	case 0: // another's goroutine has carried it
	case 1:
		return c.alone(ctx, l)
	default:
		c.carry(ctx, loads)
	}
	switch {
	case l.carried:
		return l.receipt, l.outcomes, false, l.err
	case l.locked:
		putBack()
		l.sections = nil
	}
	return h.transact(ctx, c.guard.lockWait, func(presented bool) []domain.Section {
		again := l.sections
		l.sections = nil
		return append(again, collect(presented)...)
	})
}

// board waits for a carrier, and returns its loads if the caller has to carry them.
func (c *carriers) board(l *load) []*load {
	c.mu.Lock()
	if c.underWay < c.limit {
		c.underWay++
		c.mu.Unlock()
		return []*load{l}
	}
	l.drive = make(chan []*load, 1)
	c.waiting = append(c.waiting, l)
	c.mu.Unlock()
	return <-l.drive
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
	slices.SortFunc(loads, func(a, b *load) int { return strings.Compare(string(a.key()), string(b.key())) })
	ctx, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	defer lose(nil)
	ctx, cancel := context.WithTimeoutCause(ctx, c.guard.lockWait+transactionTimeout, errSilent)
	defer cancel()
	var grants []domain.Grant
	for _, l := range loads {
		grants = append(grants, l.hold.grants...)
		defer context.AfterFunc(l.hold.section, func() { lose(context.Cause(l.hold.section)) })()
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
		if err == nil && slices.ContainsFunc(own, func(err error) bool { return errors.Is(err, domain.ErrRowLocked) }) {
			l.locked = true
			continue
		}
		l.carried, l.receipt, l.outcomes, l.err = true, receipt, own, err
		l.receipt.Grants, l.receipt.Batch = receipt.Grants[i:i+1], len(own)
		l.hold.took(l.receipt)
	}
}

// alone runs the sections of a key that has the transaction to itself, and waits for its row: to see first whether that is free
// would cost a key that is hot in several instances two transactions for most of its batches. But those of other keys do not
// wait for somebody else's lock for long: then the transaction counts no more.
func (c *carriers) alone(ctx context.Context, l *load) (domain.Receipt, []error, bool, error) {
	alight := sync.OnceFunc(c.alight)
	defer alight()
	patience := time.AfterFunc(rowPatience, alight)
	defer patience.Stop()
	return l.hold.transact(ctx, c.guard.lockWait, func(presented bool) []domain.Section {
		if presented {
			patience.Stop() // the row is locked
		}
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
