package locking

import (
	"context"
	"errors"
	"fmt"

	"fencepost/domain"
)

// Claim puts a strategy in charge of each shared scope and makes this instance use it. Where another strategy, or the same
// on other servers, was in charge, a new epoch begins and the instances that run the old one are refused from now on. Where
// an operator has ordered another strategy, this instance follows the order: a restart does not undo it.
//
// Every server is asked before the first scope is claimed: an instance that cannot start must not turn away the others first.
func (g *Guard) Claim(ctx context.Context, strategies map[domain.Scope]string) error {
	fingerprints, orders, before := map[domain.Scope]string{}, map[domain.Scope]domain.Authority{}, map[domain.Scope]int64{}
	for scope, strategy := range strategies {
		a, err := g.db.AuthorityOf(ctx, scope)
		if err != nil && !errors.Is(err, domain.ErrNotFound) {
			return err
		}
		before[scope] = a.Epoch
		if a.DecidedBy == domain.ByOperator && a.Strategy != strategy {
			// The servers of the configured strategy are not asked: they may be what the operator has switched away from.
			strategy, orders[scope] = a.Strategy, a
		}
		backend, err := g.backends.find(strategy)
		if err != nil {
			return err
		}
		if fingerprints[scope], err = backend.fingerprint(ctx, false); err != nil {
			return fmt.Errorf("taking charge of %s with %s: %w", scope, strategy, err)
		}
	}
	g.reigns.configure(strategies)
	for scope, strategy := range strategies {
		a, ordered := orders[scope]
		if !ordered {
			var err error
			if a, err = g.db.ClaimAuthority(ctx, scope, strategy, fingerprints[scope], domain.ByConfiguration); err != nil {
				return fmt.Errorf("taking charge of %s with %s: %w", scope, strategy, err)
			}
		}
		if _, err := g.reigns.accept(ctx, g, a); err != nil {
			return fmt.Errorf("joining those who run %s: %w", scope, err)
		}
		if a.Epoch != before[scope] {
			g.observe(domain.Event{Kind: domain.EventTakenOver, Authority: &a})
		}
		g.log.Info("lock authority", "scope", a.Scope, "strategy", a.Strategy, "epoch", a.Epoch, "since", a.Since)
	}
	return nil
}

// Switch puts a strategy in charge of a shared scope or of a single resource, by an operator's order, and returns who was in
// charge and who is. A single resource that followed its kind becomes a scope of its own; an empty strategy takes it back.
// Instances that have the strategy's servers follow at their next write; those that have not are superseded there. dryRun
// checks everything and changes nothing; the epoch to come is not known then and left out.
func (g *Guard) Switch(ctx context.Context, scope domain.Scope, strategy string, dryRun bool) (before, after domain.Authority, err error) {
	key, single := domain.Key(scope), scope != domain.ScopeInventory && scope != domain.ScopeCoupons
	if single {
		before, err = g.db.Authority(ctx, key)
	} else if before, err = g.db.AuthorityOf(ctx, scope); errors.Is(err, domain.ErrNotFound) {
		err = nil // no instance has started yet
	}
	if err != nil {
		return before, after, err
	}
	after = domain.Authority{Scope: scope, Strategy: strategy, DecidedBy: domain.ByOperator}
	if strategy == "" {
		if after, err = g.db.AuthorityOf(ctx, scopeOf(key.Kind())); err != nil {
			return before, after, err
		}
	}
	backend, err := g.backends.find(after.Strategy)
	if err != nil {
		return before, after, err
	}
	if !backend.Fences {
		fenced, err := g.db.Fenced(ctx, scope)
		if err == nil && fenced {
			err = fmt.Errorf("switching %s to %s: %w; choose a strategy that does", scope, after.Strategy, domain.ErrFencingRequired)
		}
		if err != nil {
			return before, after, err
		}
	}
	if after.Fingerprint, err = backend.fingerprint(ctx, true); err != nil {
		return before, after, fmt.Errorf("switching %s to %s: %w", scope, after.Strategy, err)
	}
	switch {
	case dryRun:
	case single:
		after, err = g.db.SwitchResource(ctx, key, strategy, after.Fingerprint)
	default:
		after, err = g.db.ClaimAuthority(ctx, scope, strategy, after.Fingerprint, domain.ByOperator)
	}
	return before, after, err
}

// Spec implements domain.Guard.
func (g *Guard) Spec(ctx context.Context, kind domain.Kind, strategy string, fencing domain.Fencing) (domain.LockSpec, error) {
	spec := domain.LockSpec{Strategy: strategy, Fencing: fencing}
	effective := strategy
	if effective == "" {
		effective = g.reigns.strategy(scopeOf(kind))
	}
	backend, err := g.backends.find(effective)
	if err != nil {
		return spec, domain.Invalid("lock.strategy", "is not known: %s", err)
	}
	if fencing == domain.FencingEnforced && !backend.Fences {
		return spec, domain.Invalid("lock.fencing", "cannot be enforced with the strategy %s, which issues no tokens: set it to %q, or choose another strategy",
			backend.Name, domain.FencingOff)
	}
	if strategy == "" {
		return spec, nil
	}
	if spec.Fingerprint, err = backend.fingerprint(ctx, false); err != nil {
		if backend.Problem != "" {
			return spec, domain.Invalid("lock.strategy", "%q is not available: %s", strategy, backend.Problem)
		}
		return spec, err
	}
	return spec, nil
}

func scopeOf(kind domain.Kind) domain.Scope {
	if kind == domain.KindCoupon {
		return domain.ScopeCoupons
	}
	return domain.ScopeInventory
}

// Ready tells whether this instance can do its work: its strategies are in charge and their servers answer.
func (g *Guard) Ready(ctx context.Context) error {
	shared, err := g.db.Reigns(ctx)
	if err != nil {
		return err
	}
	for _, a := range shared {
		if _, err := g.reigns.accept(ctx, g, a); err != nil {
			return err
		}
		backend, err := g.backends.find(a.Strategy)
		if err != nil {
			return err
		}
		if _, err := backend.fingerprint(ctx, true); err != nil {
			return err
		}
	}
	return nil
}

// Strategies describes every strategy that this instance knows, as it is now.
func (g *Guard) Strategies(ctx context.Context) ([]domain.StrategyStatus, error) {
	shared, err := g.db.Reigns(ctx)
	if err != nil {
		return nil, err
	}
	own, err := g.db.OwnReigns(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]domain.StrategyStatus, len(g.backends))
	for i, b := range g.backends {
		s := domain.StrategyStatus{
			Name: b.Name, Summary: b.Summary, Fences: b.Fences, Server: b.Server, Problem: b.Problem, Resources: own[b.Name],
		}
		if s.Problem == "" {
			if _, err := b.fingerprint(ctx, true); err != nil {
				var unavailable *domain.UnavailableError
				if !errors.As(err, &unavailable) {
					return nil, fmt.Errorf("asking %s for its identity: %w", b.Name, err)
				}
				s.Problem = fmt.Sprintf("%s does not answer; it is used again as soon as it does", unavailable.Server)
			}
		}
		s.Available = s.Problem == ""
		for _, a := range shared {
			if a.Strategy == b.Name {
				s.InCharge = append(s.InCharge, a)
			}
		}
		list[i] = s
	}
	return list, nil
}
