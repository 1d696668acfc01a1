package locking

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"fencepost/domain"
)

// Backend is a strategy, opened: its driver and what is known of its servers. With a Locker it is of the lease family, with
// RowLocks of the other one, with neither it excludes nobody.
type Backend struct {
	Name     string
	Summary  string
	Fences   bool   // its grants carry tokens
	Server   string // address without credentials; empty if it needs none of its own
	Locker   Locker
	RowLocks bool
	// HandOver is about what it costs to give the lock back and to get it again. By it a queue decides how long to keep the lock
	// for one batch of sections after another. Zero: it is given back after each batch.
	HandOver time.Duration
	// Identify asks the servers who they are. The answer is the same from every instance, and another one when the servers,
	// or the counters they keep, are not the same any more. Nil if the strategy needs no server of its own.
	Identify func(ctx context.Context) (string, error)
	Close    func() error // nil: nothing to close
	// Problem says why the strategy cannot be used and what to do about it: it was not configured. Empty if it was.
	Problem string

	identity atomic.Pointer[string]
}

func (b *Backend) excludes() bool { return b.Locker != nil || b.RowLocks }

// fingerprint is the identity of the servers, asked for once and kept. fresh asks again.
func (b *Backend) fingerprint(ctx context.Context, fresh bool) (string, error) {
	if b.Problem != "" {
		return "", &domain.UnavailableError{Server: b.Name, Err: errors.New(b.Problem)}
	}
	if b.Identify == nil {
		return b.Name, nil
	}
	if known := b.identity.Load(); known != nil && !fresh {
		return *known, nil
	}
	identity, err := b.Identify(ctx)
	if err != nil {
		return "", err
	}
	b.identity.Store(&identity)
	return identity, nil
}

// Backends are the strategies that an instance knows, in the order in which they are shown.
type Backends []*Backend

// find returns the backend of a strategy, or an error that lists the known ones.
func (bs Backends) find(strategy string) (*Backend, error) {
	var names []string
	for _, b := range bs {
		if b.Name == strategy {
			return b, nil
		}
		names = append(names, b.Name)
	}
	// A client may have sent the name, and is sent it back: so much of it and no more.
	return nil, fmt.Errorf("there is no strategy %.64q; the strategies are %s", strategy, strings.Join(names, ", "))
}

// Close closes every backend.
func (bs Backends) Close() error {
	var errs []error
	for _, b := range slices.Backward(bs) {
		if b.Close != nil {
			errs = append(errs, b.Close())
		}
	}
	return errors.Join(errs...)
}
