package locking

import (
	"context"
	"fmt"
	"sync"

	"fencepost/domain"
)

// reigns remembers which authority is in charge of what, so that a section need not ask PostgreSQL before its acquire. A
// memory that is out of date is safe: it can only make a grant lose. The zero value is ready.
type reigns struct {
	mu      sync.Mutex
	ours    map[domain.Scope]domain.Authority // the reigns over shared scopes that this instance began or joined
	scopes  map[domain.Key]domain.Scope       // never changes for a key
	current map[domain.Scope]domain.Authority
}

// How many keys are remembered. Beyond that the memory starts anew; it costs one query a key.
const maxScopes = 100_000

// bound is a key with the authority and the backend that are in charge of it.
type bound struct {
	authority domain.Authority
	backend   *Backend
}

// bind finds who is in charge of key.
func (r *reigns) bind(ctx context.Context, g *Guard, key domain.Key) (bound, error) {
	r.mu.Lock()
	scope, known := r.scopes[key]
	authority, fresh := r.current[scope]
	r.mu.Unlock()
	if !known || !fresh {
		var err error
		if authority, err = g.db.Authority(ctx, key); err != nil {
			return bound{}, fmt.Errorf("finding the authority of %s: %w", key, err)
		}
		if authority, err = r.accept(ctx, g, authority); err != nil {
			return bound{}, err
		}
		r.remember(key, authority)
	}
	backend, err := g.backends.find(authority.Strategy)
	if err != nil {
		return bound{}, &domain.UnavailableError{Server: authority.Strategy, Err: err}
	}
	return bound{authority, backend}, nil
}

// accept checks that this instance may act under the authority: it runs the same strategy on the same servers. There are
// two harmless ways in which the servers can be others. Those of this instance have lost their memory, and with it their
// identity, since it took charge of a shared scope: it goes on with the next epoch. Or the authority is that of a single
// resource, which has no instance in charge: whoever finds its servers changed takes over. Anything else means that another
// instance has taken over.
func (r *reigns) accept(ctx context.Context, g *Guard, a domain.Authority) (domain.Authority, error) {
	r.mu.Lock()
	ours, shared := r.ours[a.Scope]
	r.mu.Unlock()
	if shared && ours.Strategy != a.Strategy {
		return a, g.superseded(a, ours.Strategy)
	}
	backend, err := g.backends.find(a.Strategy)
	if err != nil {
		return a, &domain.UnavailableError{Server: a.Strategy, Err: err}
	}
	fingerprint, err := backend.fingerprint(ctx, false)
	if err == nil && fingerprint != a.Fingerprint {
		fingerprint, err = backend.fingerprint(ctx, true)
	}
	switch {
	case err != nil:
		return a, err
	case fingerprint == a.Fingerprint:
	case shared && ours.Fingerprint != a.Fingerprint:
		return a, g.superseded(a, ours.Strategy)
	default:
		if a, err = g.db.ClaimAuthority(ctx, a.Scope, a.Strategy, fingerprint); err != nil {
			return a, err
		}
		g.observe(domain.Event{Kind: domain.EventRaised, Authority: &a})
		g.log.Warn("a lock authority has lost its memory; its epoch was raised", "scope", a.Scope, "strategy", a.Strategy, "epoch", a.Epoch)
	}
	if shared {
		r.claim(a)
	}
	return a, nil
}

func (r *reigns) remember(key domain.Key, a domain.Authority) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.scopes == nil || len(r.scopes) >= maxScopes {
		r.scopes = map[domain.Key]domain.Scope{}
		r.current = map[domain.Scope]domain.Authority{}
	}
	r.scopes[key] = a.Scope
	r.current[a.Scope] = a
}

// forget makes the next section ask PostgreSQL who is in charge of the scope, unless somebody has asked since epoch.
func (r *reigns) forget(scope domain.Scope, epoch int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current[scope].Epoch <= epoch {
		delete(r.current, scope)
	}
}

// refresh forgets the authority under which epoch was presented, and tells whether a new try can succeed.
func (r *reigns) refresh(ctx context.Context, g *Guard, key domain.Key, epoch int64) bool {
	r.mu.Lock()
	scope := r.scopes[key]
	r.mu.Unlock()
	r.forget(scope, epoch)
	_, err := r.bind(ctx, g, key)
	return err == nil
}

// raise begins a new reign of the same authority after its counter has gone back.
func (r *reigns) raise(ctx context.Context, g *Guard, key domain.Key, from int64) bool {
	r.mu.Lock()
	scope := r.scopes[key]
	r.mu.Unlock()
	a, err := g.db.RaiseEpoch(ctx, scope, from)
	if err != nil {
		g.log.Error("an authority's counter has gone back, and its epoch could not be raised", "scope", scope, "error", err)
		return false
	}
	g.observe(domain.Event{Kind: domain.EventRaised, Authority: &a})
	g.log.Warn("an authority's counter has gone back; its epoch was raised", "scope", scope, "strategy", a.Strategy, "epoch", a.Epoch)
	r.forget(scope, from)
	return true
}

// claim remembers a reign over a shared scope as this instance's.
func (r *reigns) claim(a domain.Authority) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ours == nil {
		r.ours = map[domain.Scope]domain.Authority{}
	}
	r.ours[a.Scope] = a
}

// known is what a grant of the key would carry, as far as it is remembered.
func (r *reigns) known(key domain.Key) domain.Grant {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.current[r.scopes[key]]
	return domain.Grant{Key: key, Strategy: a.Strategy, Epoch: a.Epoch}
}
