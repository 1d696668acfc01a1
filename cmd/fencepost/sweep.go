package main

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"fencepost/domain"
	"fencepost/domain/postgres"
)

const (
	// How long a sweep waits for locks. Who waits for one that does not come free keeps others waiting whose locks are free.
	sweepWait    = time.Second
	sweepTimeout = 10 * time.Second // for a sweep as a whole, should PostgreSQL not answer
	leastRest    = time.Second
	longestRest  = 10 * time.Second
	purgePause   = time.Minute
)

// sweeper ends holds whose time is over, and throws old answers away, beside the requests. All instances sweep, and share
// the work.
type sweeper struct {
	store     *postgres.Store
	service   *domain.Service
	interval  time.Duration
	answerTTL time.Duration
	log       *slog.Logger

	purge   time.Time // when to look for old answers again
	failing bool      // PostgreSQL was not to be had the last time
	// What has failed is left alone for a while, longer each time: a lock server that is down, or another strategy in charge,
	// must neither fill the log nor keep the holds of other items from their end.
	resting map[string]rest
}

type rest struct {
	pause time.Duration
	until time.Time
}

func newSweeper(store *postgres.Store, service *domain.Service, c *Config, log *slog.Logger) *sweeper {
	return &sweeper{
		store: store, service: service, interval: c.SweepInterval, answerTTL: c.AnswerTTL, log: log, resting: map[string]rest{},
	}
}

// run sweeps until ctx ends.
func (w *sweeper) run(ctx context.Context) {
	for ctx.Err() == nil {
		pause := w.pause(w.sweep(ctx))
		w.purgeAnswers(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// sweep ends what is due, and returns when the next hold is; zero if that is not known.
func (w *sweeper) sweep(ctx context.Context) time.Time {
	for {
		now := w.service.Now()
		var ended int
		var failed map[string]error
		bounded, cancel := context.WithTimeout(ctx, sweepTimeout)
		found, next, err := w.store.Sweep(bounded, now, w.asleep(now), func(due []domain.Reservation) {
			ctx, cancel := context.WithTimeoutCause(bounded, sweepWait, domain.ErrLockTimeout)
			defer cancel()
			ended, failed = w.service.Expire(ctx, due)
		})
		cancel()
		if ctx.Err() != nil {
			return time.Time{}
		}
		if err != nil {
			if !w.failing {
				w.log.Warn("holds that are due cannot be looked for; this is said once until they can", "error", err)
			}
			w.failing = true
			return time.Time{}
		}
		w.failing = false
		w.putToRest(failed)
		if ended > 0 {
			w.log.Debug("holds have expired", "holds", ended)
		}
		if found == 0 {
			return next
		}
	}
}

// asleep are those who rest. Who woke up long ago, and has not failed since, is forgotten.
func (w *sweeper) asleep(now time.Time) []string {
	maps.DeleteFunc(w.resting, func(_ string, r rest) bool { return now.After(r.until.Add(longestRest)) })
	names := make([]string, 0, len(w.resting))
	for name, r := range w.resting {
		if now.Before(r.until) {
			names = append(names, name)
		}
	}
	return names
}

func (w *sweeper) putToRest(failed map[string]error) {
	now := w.service.Now()
	for name := range failed {
		pause := min(max(2*w.resting[name].pause, leastRest), longestRest)
		w.resting[name] = rest{pause: pause, until: now.Add(pause)}
	}
	if len(failed) > 0 {
		first := slices.Min(slices.Collect(maps.Keys(failed)))
		w.log.Warn("holds that are due could not be ended yet", "failed", len(failed), "for_example", first, "error", failed[first])
	}
}

// pause is until the next hold is due, but never longer than the interval, as another instance may make one that is due
// sooner, and not so short that a stream of holds would have it look all the time. Chance keeps the instances from looking
// at the same moment.
func (w *sweeper) pause(next time.Time) time.Duration {
	pause := w.interval
	if !next.IsZero() {
		pause = min(max(next.Sub(w.service.Now()), w.interval/10), w.interval)
	}
	return pause + rand.N(w.interval/10)
}

func (w *sweeper) purgeAnswers(ctx context.Context) {
	now := w.service.Now()
	if now.Before(w.purge) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	more, err := w.store.PurgeAnswers(ctx, w.answerTTL)
	if err != nil && ctx.Err() == nil {
		w.log.Warn("old answers could not be thrown away", "error", err)
	}
	if !more {
		w.purge = now.Add(purgePause)
	}
}
