package locking

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"fencepost/domain"
)

// reigns remembers which authority is in charge of what, so that a section need not ask PostgreSQL before its acquire. A
// memory that is out of date is safe: it can only make a grant lose. The zero value is ready.
type reigns struct {
	mu         sync.Mutex
	configured map[domain.Scope]string            // what this instance was started with, for the shared scopes
	current    map[domain.Scope]*domain.Authority // the newest reign that this instance has accepted
	// What was read for a key counts as long as it still is the current reign of its scope. Without that, an instance that
	// has not heard that the key has left the scope could carry an epoch of the scope that began afterwards, and the fence
	// knows it as one of the key's own.
	known map[domain.Key]*domain.Authority
}

// configure notes what this instance is started with for shared scopes.
func (r *reigns) configure(strategies map[domain.Scope]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.configured == nil {
		r.configured = map[domain.Scope]string{}
	}
	maps.Copy(r.configured, strategies)
}

// strategy is what this instance uses for a shared scope: as configured, or as an operator has ordered.
func (r *reigns) strategy(scope domain.Scope) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if current := r.current[scope]; current != nil {
		return current.Strategy
	}
	return r.configured[scope]
}

// How many keys are remembered. Beyond that the memory starts anew; it costs one query a key.
const maxKnown = 100_000

// bound is a key with the authority and the backend that are in charge of it.
type bound struct {
	authority domain.Authority
	backend   *Backend
}

// bind finds who is in charge of key.
func (r *reigns) bind(ctx context.Context, g *Guard, key domain.Key) (bound, error) {
	authority, known := r.recall(key)
	for !known {
		var err error
		if authority, err = g.db.Authority(ctx, key); err != nil {
			return bound{}, fmt.Errorf("finding the authority of %s: %w", key, err)
		}
		// A reign that begins here counts once it was read together with the key's scope, which may be another one by then.
		if known, err = r.accept(ctx, g, authority); err != nil {
			return bound{}, err
		}
	}
	r.remember(key, authority)
	backend, err := g.backends.find(authority.Strategy)
	if err != nil {
		return bound{}, &domain.UnavailableError{Server: authority.Strategy, Err: err}
	}
	return bound{authority, backend}, nil
}

// accept checks that this instance may act under the authority: it is the one that this instance was started with, or an
// operator has ordered it, or it is that of a single resource; and this instance uses the same servers.
//
// There are two harmless ways in which the servers can be others, and in both this instance begins the next epoch; accept
// then returns false, and the authority has to be read again. Those of this instance have lost their memory, and with it
// their identity, since it accepted the reign over a shared scope. Or the authority is that of a single resource, which has
// no instance in charge: whoever finds its servers changed takes over. Anything else means that others have taken over.
func (r *reigns) accept(ctx context.Context, g *Guard, a domain.Authority) (bool, error) {
	r.mu.Lock()
	configured, shared := r.configured[a.Scope]
	var last domain.Authority
	if current := r.current[a.Scope]; current != nil {
		last = *current
	}
	r.mu.Unlock()
	if shared && a.Strategy != configured && a.DecidedBy == domain.ByConfiguration {
		return false, g.superseded(a, "this instance uses "+configured)
	}
	backend, err := g.backends.find(a.Strategy)
	if err != nil {
		return false, &domain.UnavailableError{Server: a.Strategy, Err: err}
	}
	if shared && backend.Problem != "" {
		return false, g.superseded(a, backend.Problem)
	}
	fingerprint, err := backend.fingerprint(ctx, false)
	if err == nil && fingerprint != a.Fingerprint {
		fingerprint, err = backend.fingerprint(ctx, true)
	}
	switch {
	case err != nil:
		return false, err
	case fingerprint == a.Fingerprint:
		r.accepted(g, a)
		return true, nil
	case shared && (last.Strategy != a.Strategy || last.Fingerprint != a.Fingerprint):
		return false, g.superseded(a, "this instance uses other servers of it")
	}
	if a, err = g.db.ClaimAuthority(ctx, a.Scope, a.Strategy, fingerprint, ""); err != nil {
		return false, err
	}
	g.observe(domain.Event{Kind: domain.EventRaised, Authority: &a})
	g.log.Warn("a lock authority has lost its memory, and with it its reign", "scope", a.Scope, "strategy", a.Strategy, "epoch", a.Epoch)
	return false, nil
}

// accepted makes the authority the current one of its scope, unless a newer one is known.
func (r *reigns) accepted(g *Guard, a domain.Authority) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.current[a.Scope]
	if last != nil && last.Epoch >= a.Epoch {
		return
	}
	if r.current == nil {
		r.current = map[domain.Scope]*domain.Authority{}
	}
	r.current[a.Scope] = &a
	if last != nil && last.Strategy != a.Strategy {
		g.observe(domain.Event{Kind: domain.EventTakenOver, Authority: &a})
	}
	if configured, shared := r.configured[a.Scope]; shared && a.Strategy != configured && (last == nil || last.Strategy != a.Strategy) {
		g.log.Warn("following an operator's order instead of the configuration", "scope", a.Scope, "strategy", a.Strategy,
			"configured", configured, "epoch", a.Epoch, "since", a.Since)
	}
}

// recall finds what was read for the key, if it still counts.
func (r *reigns) recall(key domain.Key) (a domain.Authority, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	read := r.known[key]
	if read == nil || r.current[read.Scope] != read {
		return a, false
	}
	return *read, true
}

// remember keeps what was read for the key, if it is the current reign.
func (r *reigns) remember(key domain.Key, a domain.Authority) {
	r.mu.Lock()
	defer r.mu.Unlock()
	current := r.current[a.Scope]
	if current == nil || current.Epoch != a.Epoch {
		return
	}
	if r.known == nil || len(r.known) >= maxKnown {
		r.known = map[domain.Key]*domain.Authority{}
		maps.DeleteFunc(r.current, func(scope domain.Scope, _ *domain.Authority) bool {
			_, shared := r.configured[scope]
			return !shared
		})
	}
	r.known[key] = current
}

// forget makes the next section ask PostgreSQL who is in charge of the key, unless somebody has asked since epoch.
func (r *reigns) forget(key domain.Key, epoch int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if read := r.known[key]; read != nil && read.Epoch <= epoch {
		delete(r.known, key)
	}
}

// refresh forgets the authority under which epoch was presented, and tells whether a new try can succeed.
func (r *reigns) refresh(ctx context.Context, g *Guard, key domain.Key, epoch int64) bool {
	r.forget(key, epoch)
	_, err := r.bind(ctx, g, key)
	return err == nil
}

// raise begins a new reign of the same authority after its counter has gone back, unless a later one has begun already.
func (r *reigns) raise(ctx context.Context, g *Guard, key domain.Key, from int64) bool {
	bound, err := r.bind(ctx, g, key)
	if err != nil || bound.authority.Epoch != from {
		return err == nil
	}
	scope := bound.authority.Scope
	a, err := g.db.RaiseEpoch(ctx, scope, from)
	if err != nil {
		g.log.Error("an authority's counter has gone back, and its epoch could not be raised", "scope", scope, "error", err)
		return false
	}
	g.observe(domain.Event{Kind: domain.EventRaised, Authority: &a})
	g.log.Warn("an authority's counter has gone back; its epoch was raised", "scope", scope, "strategy", a.Strategy, "epoch", a.Epoch)
	r.forget(key, from)
	return true
}
