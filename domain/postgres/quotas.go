package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"fencepost/domain"
)

// callers keeps something of each caller in memory, and forgets all when there are too many: that costs each of them one
// question to PostgreSQL, where what counts is kept.
type callers[T any] struct {
	mu     sync.Mutex
	byName map[string]*T
}

const maxCallers = 4096

func (c *callers[T]) of(name string) *T {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.byName[name]
	if v == nil {
		if len(c.byName) >= maxCallers || c.byName == nil {
			c.byName = map[string]*T{}
		}
		v = new(T)
		c.byName[name] = v
	}
	return v
}

// turn is a mutex that can be waited for as long as a context lasts. It is held while PostgreSQL is asked, so that a caller's
// requests do not all ask at once.
type turn struct {
	once sync.Once
	busy chan struct{}
}

func (t *turn) take(ctx context.Context) error {
	t.once.Do(func() { t.busy = make(chan struct{}, 1) })
	select {
	case t.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *turn) giveBack() { <-t.busy }

// Requests bounds the requests of each caller in each window of time, over all instances. An instance takes a share of what
// is left from PostgreSQL and spends it from memory, so one request in many costs a round trip. What it has not spent when
// the window ends is lost: near the limit each instance can be short of one share. Windows are PostgreSQL's, so that
// instances need not agree on the time. It is safe for concurrent use.
type Requests struct {
	store   *Store
	limit   int64
	window  time.Duration
	callers callers[window]
}

type window struct {
	turn
	ends  time.Time // a little too early rather than too late
	left  int64     // of the share
	other int64     // what nobody had taken when the share was
}

// RequestWindow is the time for which requests are counted.
const RequestWindow = time.Minute

// Requests returns the bound of limit requests in a RequestWindow for each caller.
func (s *Store) Requests(limit int64) *Requests {
	return &Requests{store: s, limit: limit, window: RequestWindow}
}

// shares is how many shares a limit has. More mean that less is lost, and that more requests pay.
const shares = 50

// Take spends one request of the caller's, or answers a *domain.LimitedError.
func (r *Requests) Take(ctx context.Context, caller string) (domain.Quota, error) {
	w := r.callers.of(caller)
	if err := w.take(ctx); err != nil {
		return domain.Quota{}, err
	}
	defer w.giveBack()
	now := time.Now()
	over := !now.Before(w.ends)
	if over || w.left == 0 && w.other > 0 {
		var taken int64
		var reset float64
		err := r.store.pool.QueryRow(ctx, `
			INSERT INTO request_quotas AS q (caller, began, taken, granted)
			VALUES ($1, date_bin($4::interval, statement_timestamp(), 'epoch'), $3, $3)
			ON CONFLICT (caller) DO UPDATE SET
				began = greatest(q.began, excluded.began),
				granted = CASE WHEN q.began < excluded.began THEN $3 ELSE greatest(least($3, $2 - q.taken), 0) END,
				taken = CASE WHEN q.began < excluded.began THEN $3 ELSE greatest(least(q.taken + $3, $2), q.taken) END
			RETURNING granted, taken, extract(epoch FROM began + $4::interval - statement_timestamp())::float8`,
			caller, r.limit, max(r.limit/shares, 1), r.window).Scan(&w.left, &taken, &reset)
		if err != nil {
			w.left = 0
			return domain.Quota{}, fmt.Errorf("counting a request: %w", domainError(ctx, err))
		}
		w.other = max(r.limit-taken, 0)
		w.ends = now.Add(time.Duration(reset * float64(time.Second)))
	}
	quota := domain.Quota{Limit: r.limit, Window: r.window, Reset: max(w.ends.Sub(now), 0)}
	if w.left == 0 {
		return quota, &domain.LimitedError{After: quota.Reset}
	}
	w.left--
	quota.Remaining = w.left + w.other
	return quota, nil
}

// Guesses bounds how many codes a caller can try that are none. A caller who fails more than limit times in a window is cut
// off. Attempts that were under way by then still end, in each instance, but are counted: he stays cut off until the window
// has passed as often as he has used it up. So over any longer time no more than limit codes are tried in a window. It is
// safe for concurrent use.
type Guesses struct {
	store   *Store
	limit   int64
	callers callers[cutOff]
}

type cutOff struct {
	mu    sync.Mutex
	until time.Time
}

// GuessWindow is the time for which failures are counted.
const GuessWindow = time.Minute

// Guesses returns the bound of limit failures in a GuessWindow for each caller.
func (s *Store) Guesses(limit int64) *Guesses { return &Guesses{store: s, limit: limit} }

// Try makes an attempt to use a code, unless the caller is cut off. Admins, who can look up codes, are not bounded.
func (g *Guesses) Try(ctx context.Context, caller domain.Caller, attempt func() error) error {
	if caller.Admin {
		return attempt()
	}
	c := g.callers.of(caller.ID)
	c.mu.Lock()
	after := time.Until(c.until)
	c.mu.Unlock()
	if after > 0 {
		return &domain.LimitedError{After: after}
	}
	err := attempt()
	if !errors.Is(err, domain.ErrCouponExpired) {
		return err
	}
	// Whoever hangs up has tried all the same. If it cannot be counted, he does not learn either whether it is a code.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	began := time.Now()
	var used float64
	countErr := g.store.pool.QueryRow(ctx, `
		INSERT INTO coupon_guesses AS g (caller, until) VALUES ($1, statement_timestamp() + $2::interval)
		ON CONFLICT (caller) DO UPDATE SET until = greatest(g.until, statement_timestamp()) + $2::interval
		RETURNING extract(epoch FROM until - statement_timestamp())::float8`, caller.ID, GuessWindow/time.Duration(g.limit)).Scan(&used)
	if countErr != nil {
		return fmt.Errorf("counting a code that was tried in vain: %w", domainError(ctx, countErr))
	}
	// With room for one more in the window he may go on.
	room := GuessWindow - GuessWindow/time.Duration(g.limit)
	c.mu.Lock()
	defer c.mu.Unlock()
	if until := began.Add(time.Duration(used*float64(time.Second)) - room); until.After(c.until) {
		c.until = until
	}
	return err
}

// Holds bounds how many open holds each caller has, over all instances, and is never exceeded: an instance asks PostgreSQL for
// leave to make some, and PostgreSQL counts what is open and what others have leave for. What is being made is counted twice
// for a moment, and what an instance that has died had leave for is lost for a holdTerm; so near the limit a caller may be
// refused a little early. It is safe for concurrent use.
type Holds struct {
	store   *Store
	limit   int64
	share   int64
	callers callers[holder]
}

type holder struct {
	turn               // of who takes from left, or asks for more
	instance uuid.UUID // to PostgreSQL. A holder that was forgotten keeps what it had leave for until its term is over
	until    time.Time // when what is left must not be used any more

	mu     sync.Mutex
	making int64 // holds that are being made
	left   int64 // that may be made
	told   int64 // what PostgreSQL takes for the sum of both
}

const (
	// How long an instance may begin to make holds that it has leave for. PostgreSQL reserves them for longer than any
	// request takes that was begun at the end of it.
	holdUse  = 10 * time.Second
	holdTerm = holdUse + 50*time.Second
)

// Holds returns the bound of limit open holds for each caller.
func (s *Store) Holds(limit int64) *Holds {
	return &Holds{store: s, limit: limit, share: max(limit/shares, 1)}
}

// Try makes an attempt to hold something, unless the caller has as many open holds as allowed. Admins are not bounded.
func (h *Holds) Try(ctx context.Context, caller domain.Caller, attempt func() error) (err error) {
	if caller.Admin {
		return attempt()
	}
	c := h.callers.of(caller.ID)
	if err := h.begin(ctx, c, caller.ID); err != nil {
		return err
	}
	made := true // also after a panic: nobody knows
	defer func() { h.end(ctx, c, caller.ID, made) }()
	err = attempt()
	made = err == nil || errors.Is(err, domain.ErrOutcomeUnknown)
	return err
}

func (h *Holds) begin(ctx context.Context, c *holder, caller string) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.giveBack()
	c.mu.Lock()
	if !time.Now().Before(c.until) {
		c.left = 0
	}
	none := c.left == 0
	c.mu.Unlock()
	if none {
		if err := h.ask(ctx, c, caller, h.share); err != nil {
			return fmt.Errorf("counting the open holds of a caller: %w", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 {
		return fmt.Errorf("%w: %d", domain.ErrTooManyHolds, h.limit)
	}
	c.left--
	c.making++
	return nil
}

// end does not wait for its turn: what was made is open by now, and until making says so it counts twice.
func (h *Holds) end(ctx context.Context, c *holder, caller string, made bool) {
	c.mu.Lock()
	c.making--
	if !made {
		c.left++
	}
	idle := c.making == 0 && c.told >= c.left+h.share
	c.mu.Unlock()
	if !idle {
		return
	}
	// The next to ask may be another instance, or nobody for long. If this fails, the end of the term does it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if c.take(ctx) == nil {
		defer c.giveBack()
		_ = h.ask(ctx, c, caller, 0)
	}
}

// ask tells PostgreSQL what this instance has in hand, and asks for leave to make more holds. It is the asker's turn, so
// meanwhile holds can only come to their end.
func (h *Holds) ask(ctx context.Context, c *holder, caller string, want int64) error {
	if c.instance == uuid.Nil {
		c.instance = newUUID()
	}
	c.mu.Lock()
	inHand := c.making + c.left
	c.mu.Unlock()
	now := time.Now()
	var granted int64
	err := h.store.pool.QueryRow(ctx, `SELECT lease_holds($1, $2, $3, $4, $5, $6)`,
		caller, c.instance, inHand, want, h.limit, holdTerm).Scan(&granted)
	if err != nil {
		return domainError(ctx, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left += granted
	c.told = inHand + granted
	c.until = now.Add(holdUse)
	return nil
}
