package main

import (
	"context"
	"log/slog"
	"time"

	"fencepost/domain/postgres"
	"fencepost/handlers/observe"
)

const (
	// So many events are kept for readers that come back: some seconds of a sale, hours of an ordinary day.
	keptEvents = 8192
	// The longest that the audit in the background may keep PostgreSQL busy.
	auditTimeout = 10 * time.Minute
	// The longest that asking for the authorities may take.
	reignsTimeout = 10 * time.Second
	// The longest that sending the last traces may delay the end.
	traceTimeout = 3 * time.Second
)

// stopTraces sends the last of the traces, for which a collector that does not answer is not waited for long.
func stopTraces(ctx context.Context, traces *observe.Traces, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceTimeout)
	defer cancel()
	if err := traces.Stop(ctx); err != nil {
		log.Warn("the last traces could not be sent", "error", err)
	}
}

// poolState is how metrics see the connections to PostgreSQL.
func poolState(store *postgres.Store) func() observe.Pool {
	return func() observe.Pool {
		s := store.PoolStat()
		return observe.Pool{
			Max: s.MaxConns(), InUse: s.AcquiredConns(), Idle: s.IdleConns(),
			Acquires: s.AcquireCount(), Waits: s.EmptyAcquireCount(), Waited: s.EmptyAcquireWaitTime(),
		}
	}
}

// watchDatabase asks PostgreSQL again and again for what no event of this instance tells: which epochs are in charge, and what is
// oversold. It returns when ctx ends.
//
// The first audit comes after a pause, and not when all instances have just been started and everybody is waiting for them.
// The pause comes after the work, so that an audit which takes long is not followed at once by the next: it may use a
// twentieth of the time, however many rows there are to count.
func watchDatabase(ctx context.Context, store *postgres.Store, metrics *observe.Metrics, interval time.Duration, log *slog.Logger) {
	outOfDate := func(err error) {
		if err != nil && ctx.Err() == nil {
			log.Warn("the metrics of the database are out of date", "error", err)
		}
	}
	for pause := interval; ; {
		outOfDate(lookAtReigns(ctx, store, metrics))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		outOfDate(audit(ctx, store, metrics))
		pause = max(interval, 20*time.Since(began))
	}
}

func lookAtReigns(ctx context.Context, store *postgres.Store, metrics *observe.Metrics) error {
	ctx, cancel := context.WithTimeout(ctx, reignsTimeout)
	defer cancel()
	shared, err := store.Reigns(ctx)
	for _, a := range shared {
		metrics.Epoch(a)
	}
	return err
}

func audit(ctx context.Context, store *postgres.Store, metrics *observe.Metrics) error {
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	began := time.Now()
	sums, err := store.AuditSums(ctx)
	if err != nil {
		return err
	}
	metrics.Oversold(began, sums)
	return nil
}
