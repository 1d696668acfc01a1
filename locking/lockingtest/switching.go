package lockingtest

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

// another is a strategy with tokens, and servers of its own, that is not the one under test.
func (w *world) another() string {
	if w.row.Name == "redis" {
		return "zookeeper"
	}
	return "redis"
}

// order is what an operator's command does.
func (w *world) order(n *node, scope domain.Scope, strategy string) domain.Authority {
	w.t.Helper()
	_, after, err := n.Switch(w.t.Context(), scope, strategy, false)
	require.NoError(w.t, err)
	return after
}

// adds writes to the keys, and requires that it is done under the strategy in the epoch.
func (w *world) adds(n *node, strategy string, epoch int64, keys ...domain.Key) {
	w.t.Helper()
	receipt, err := n.addTo(w.t.Context(), keys...)
	require.NoError(w.t, err)
	for _, grant := range receipt.Grants {
		require.Equal(w.t, strategy, grant.Strategy, "%s", grant.Key)
		require.Equal(w.t, epoch, grant.Epoch, "%s", grant.Key)
	}
}

// nodeWithout starts an instance that has no servers for the other strategy.
func (w *world) nodeWithout(other string) *node {
	w.t.Helper()
	config := w.config
	defer func() { w.config = config }()
	if other == "redis" {
		w.config.RedisURL = ""
	} else {
		w.config.ZooKeeperServers = nil
	}
	return w.node()
}

// An operator puts another strategy in charge. Instances that have its servers follow; one that has not is superseded; one
// that starts as it was configured follows as well. When the configuration has caught up, it decides again.
func testOrder(t *testing.T, w *world) {
	ours, other := w.row.Name, w.another()
	running, idle, lacking := w.node(), w.node(), w.nodeWithout(other)
	key, configured := w.item(running, domain.FencingEnforced), map[domain.Scope]string{domain.ScopeInventory: ours}
	unfenced := w.item(running, domain.FencingOff)
	for _, n := range []*node{running, idle, lacking} {
		w.adds(n, ours, 1, key, unfenced)
	}

	before, after, err := running.Switch(t.Context(), domain.ScopeInventory, other, true)
	require.NoError(t, err)
	require.Equal(t, ours, before.Strategy)
	require.Equal(t, other, after.Strategy)
	w.adds(running, ours, 1, key) // it was a trial

	require.EqualValues(t, 2, w.order(running, domain.ScopeInventory, other).Epoch)
	w.adds(running, other, 2, key)
	require.NoError(t, idle.Ready(t.Context()))
	w.adds(idle, other, 2, unfenced) // where nobody would have refused it
	for _, n := range []*node{running, idle} {
		spec, err := n.Spec(t.Context(), domain.KindItem, "", domain.FencingEnforced)
		require.NoError(t, err)
		require.Empty(t, spec.Strategy)
		status, err := n.Strategies(t.Context())
		require.NoError(t, err)
		for _, s := range status {
			for _, a := range s.InCharge {
				require.Equal(t, a.Scope == domain.ScopeInventory, s.Name == other, "%s is in charge of %s", s.Name, a.Scope)
			}
		}
	}
	_, err = lacking.addTo(t.Context(), key)
	require.ErrorIs(t, err, domain.ErrSuperseded)
	require.ErrorIs(t, lacking.Ready(t.Context()), domain.ErrSuperseded)
	require.Error(t, lacking.Claim(t.Context(), configured), "nor can it start again")

	restarted := w.node()
	w.adds(restarted, other, 2, key)
	require.NoError(t, restarted.Ready(t.Context()))

	// A restart with the new configuration changes nothing for those who run, and one with the old one takes over then.
	require.NoError(t, restarted.Claim(t.Context(), map[domain.Scope]string{domain.ScopeInventory: other}))
	for _, n := range []*node{running, idle, restarted} {
		w.adds(n, other, 2, key)
	}
	last := w.node()
	for _, n := range []*node{last, running, idle, lacking} {
		w.adds(n, ours, 3, key)
		require.NoError(t, n.Ready(t.Context()))
	}
	_, err = restarted.addTo(t.Context(), key)
	require.ErrorIs(t, err, domain.ErrSuperseded, "it was configured otherwise, and nobody has ordered this")
}

// One item gets a strategy of its own, and follows its kind again. The other item notices nothing.
func testOrderForOne(t *testing.T, w *world) {
	ours, other := w.row.Name, w.another()
	a, b := w.node(), w.node()
	one, rest := w.item(a, domain.FencingEnforced), w.item(a, domain.FencingEnforced)
	w.adds(a, ours, 1, one, rest)
	w.adds(b, ours, 1, one, rest)

	require.EqualValues(t, 2, w.order(a, domain.Scope(one), other).Epoch)
	w.adds(a, other, 2, one)
	w.adds(a, ours, 1, rest)
	receipt, err := b.addTo(t.Context(), one, rest)
	require.NoError(t, err, "a section may need both")
	require.Len(t, receipt.Grants, 2)

	after := w.order(b, domain.Scope(one), "")
	require.Equal(t, domain.ScopeInventory, after.Scope)
	require.EqualValues(t, 3, after.Epoch)
	for _, n := range []*node{a, b} {
		w.adds(n, ours, 3, one, rest)
	}

	_, _, err = a.Switch(t.Context(), domain.Scope(one), "none", false)
	require.ErrorIs(t, err, domain.ErrFencingRequired)
	_, _, err = a.Switch(t.Context(), domain.ScopeInventory, "local", false)
	require.ErrorIs(t, err, domain.ErrFencingRequired)
	_, _, err = a.Switch(t.Context(), "item/ghost", other, false)
	require.ErrorIs(t, err, domain.ErrNotFound)
	w.adds(a, ours, 3, one, rest)
}

// An instance that has not heard that an item has left the scope must not present the scope's epoch for it, not even when the
// two epochs are the same number by then: the tokens may be those of other servers.
func testEqualEpochs(t *testing.T, w *world) {
	n := w.node()
	one, rest := w.item(n, domain.FencingEnforced), w.item(n, domain.FencingEnforced)
	w.adds(n, w.row.Name, 1, one, rest)
	own, err := n.store.SwitchResource(t.Context(), one, w.row.Name, "other servers")
	require.NoError(t, err)
	require.EqualValues(t, 2, own.Epoch)
	_, err = n.store.RaiseEpoch(t.Context(), domain.ScopeInventory, 1)
	require.NoError(t, err)
	w.adds(n, w.row.Name, 2, rest) // which knows from now on that the scope's epoch is 2

	w.adds(n, w.row.Name, 3, one) // it has found the item's own authority on other servers, and begun the next epoch
}

// The strategy is exchanged under load, for everything and for one item, to and fro: no update is lost. Where the fence is
// off, an instance that has heard of the order and one that has not use two locks at once, and updates must get lost.
func testOrderUnderLoad(t *testing.T, w *world) {
	operator := w.node()
	key := w.item(operator, domain.FencingEnforced)
	var done atomic.Int64
	count := func(ctx context.Context, n *node, _, _ int) error {
		_, err := n.addTo(ctx, key)
		if err == nil {
			done.Add(1)
		}
		return err
	}
	var over atomic.Bool
	switched, switchErr := async(func() error {
		defer over.Store(true)
		enough := int64(0)
		for _, o := range []struct {
			scope    domain.Scope
			strategy string
		}{
			{domain.ScopeInventory, w.another()},
			{domain.Scope(key), w.row.Name},
			{domain.Scope(key), w.another()},
			{domain.ScopeInventory, w.row.Name},
			{domain.Scope(key), ""},
			{domain.ScopeInventory, w.another()},
		} {
			if _, _, err := operator.Switch(t.Context(), o.scope, o.strategy, false); err != nil {
				return err
			}
			for enough = done.Load() + 20; done.Load() < enough && t.Context().Err() == nil; {
				if _, err := operator.addTo(t.Context(), key); err != nil {
					return err
				}
				done.Add(1)
			}
		}
		return nil
	})
	w.crowd(4, 100_000, over.Load, count)
	w.await("the operator is through", switched)
	require.NoError(t, *switchErr)
	require.Equal(t, done.Load(), w.stock(key))

	// The control.
	w.order(operator, domain.ScopeInventory, w.row.Name)
	unfenced := w.item(operator, domain.FencingOff)
	knows, knowsNot := w.node(), w.node()
	w.adds(knowsNot, w.row.Name, w.order(operator, domain.ScopeInventory, w.row.Name).Epoch, unfenced)
	w.order(operator, domain.Scope(unfenced), w.another())
	done.Store(1)
	w.crowdOn([]*node{knows, knowsNot}, 4, 10_000, func() bool { return w.lost(unfenced, &done) }, func(ctx context.Context, n *node, _, _ int) error {
		_, err := n.addTo(ctx, unfenced)
		if err == nil {
			done.Add(1)
		}
		return err
	})
	require.Less(t, w.stock(unfenced), done.Load(), "with two locks at once, updates must get lost")
}
