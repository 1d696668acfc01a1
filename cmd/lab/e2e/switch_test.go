package e2e_test

import (
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/shop"
)

// fencing lists the strategies that an instance can use where fencing is enforced.
func fencing(t *testing.T, url string) (names []string) {
	t.Helper()
	var answer struct {
		Strategies []struct {
			Name              string
			Fences, Available bool
		}
	}
	require.Equal(t, http.StatusOK, exchange(t.Context(), http.MethodGet, url+"/v1/strategies", nil, &answer))
	for _, s := range answer.Strategies {
		if s.Fences {
			require.True(t, s.Available, "%s must be available in the laboratory", s.Name)
			names = append(names, s.Name)
		}
	}
	return names
}

// The strategy is exchanged for every other one while the load is running, with instances of both in use for a while: the
// new one takes over, the old one is refused, says so and turns not-ready, and nothing that was acknowledged is lost.
func TestSwitchUnderLoad(t *testing.T) {
	names := fencing(t, start(t, 1, "postgres")[0].URL)
	require.GreaterOrEqual(t, len(names), 2)
	for _, from := range names {
		for _, to := range names {
			if from == to {
				continue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				before := start(t, 2, from)
				item := createItem(t, before[0].URL)
				old := startBuyers(t, urls(before), item)
				old.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 50 })

				after := start(t, 1, to) // and is in charge when it is ready
				began := time.Now()
				fresh := startBuyers(t, urls(after), item)
				fresh.until(t, "reservations are made under "+to, func(b *buyers) bool { return len(b.Acknowledged) > 0 })
				dip := time.Since(began)
				old.until(t, "instances of "+from+" are refused", func(b *buyers) bool { return b.Codes["strategy_superseded"] >= 20 })
				fresh.until(t, "both have been in use", func(b *buyers) bool { return len(b.Acknowledged) >= 50 })
				for _, instance := range before {
					require.Equal(t, http.StatusServiceUnavailable, statusOf(t, instance.URL+"/readyz"))
				}
				require.Equal(t, http.StatusOK, statusOf(t, after[0].URL+"/readyz"))

				acknowledged := append(old.stop(), fresh.stop()...)
				require.Subset(t, reservations(t, item), acknowledged)
				requireLedgerAgrees(t, "item/"+item)
				require.Less(t, dip, 3*time.Second)
				t.Logf("%d acknowledged; the first under %s after %s; old: %v, new: %v", len(acknowledged), to, dip, old.Codes, fresh.Codes)
			})
		}
	}
}

// order runs the operator's command.
func order(t *testing.T, arguments ...string) (output string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), binary, append([]string{"switch"}, arguments...)...)
	command.Env = append(os.Environ(), lab.Env()...)
	printed, err := command.CombinedOutput()
	require.NoError(t, err, "%s", printed)
	return string(printed)
}

// inCharge is the strategy of a shared scope as an instance tells it.
func inCharge(t *testing.T, url, scope string) (name, epoch string) {
	t.Helper()
	var answer struct {
		Strategies []struct {
			Name     string
			InCharge []struct{ Scope, Epoch string } `json:"in_charge"`
		}
	}
	require.Equal(t, http.StatusOK, exchange(t.Context(), http.MethodGet, url+"/v1/strategies", nil, &answer))
	for _, s := range answer.Strategies {
		for _, a := range s.InCharge {
			if a.Scope == scope {
				name, epoch = s.Name, a.Epoch
			}
		}
	}
	return name, epoch
}

// An operator exchanges the strategy while the load is running, for all items and for one. No buyer of an instance that has
// the servers is refused; an instance that has not says so and turns not-ready. Nothing that was acknowledged is lost.
func TestOrderUnderLoad(t *testing.T) {
	names := fencing(t, start(t, 1, "postgres")[0].URL)
	for i, from := range names {
		to := names[(i+1)%len(names)]
		t.Run(from+" to "+to, func(t *testing.T) {
			running := start(t, 2, from)
			lacking := map[string]string{
				"redis": "FENCEPOST_REDIS_URL=", "redlock": "FENCEPOST_REDLOCK_URLS=", "zookeeper": "FENCEPOST_ZOOKEEPER_SERVERS=",
			}[to]
			var without []*instances.Instance
			if lacking != "" { // everybody has PostgreSQL
				without = start(t, 1, from, lacking)
			}
			item, other := createItem(t, running[0].URL), createItem(t, running[0].URL)
			crowd, others := startBuyers(t, urls(running), item), startBuyers(t, urls(running), other)
			refused := &buyers{new(shop.Crowd)} // nobody, unless something is lacking
			if len(without) > 0 {
				refused = startBuyers(t, urls(without), item)
			}
			more := func(what string) {
				t.Helper()
				for _, b := range []*buyers{crowd, others} {
					count := b.Count()
					b.until(t, what, func(b *buyers) bool { return len(b.Acknowledged) >= count+20 })
				}
			}
			more("reservations are made under " + from)

			t.Log(order(t, "inventory", to))
			order(t, "coupons", to) // as the instances that are started below have it
			more("reservations are made under " + to)
			strategy, epoch := inCharge(t, running[1].URL, "inventory")
			require.Equal(t, to, strategy)
			var view struct {
				Strategy string
				Fence    struct{ Epoch string }
			}
			require.Equal(t, http.StatusOK, exchange(t.Context(), http.MethodGet, running[0].URL+"/v1/items/"+item, nil, &view))
			require.Equal(t, to, view.Strategy)
			require.Equal(t, epoch, view.Fence.Epoch, "what was acknowledged since was written in the new epoch")
			for _, instance := range without {
				refused.until(t, "an instance without servers is refused", func(b *buyers) bool { return b.Codes["strategy_superseded"] >= 5 })
				require.Equal(t, http.StatusServiceUnavailable, statusOf(t, instance.URL+"/readyz"))
			}

			t.Log(order(t, "item/"+item, from))
			more("one item is sold under " + from + " again")
			t.Log(order(t, "item/"+item, "--shared"))
			more("both items are sold under " + to)

			restarted := start(t, 1, from) // the configuration was not changed: the order stands
			require.Equal(t, http.StatusOK, statusOf(t, restarted[0].URL+"/readyz"))
			strategy, _ = inCharge(t, restarted[0].URL, "inventory")
			require.Equal(t, to, strategy)
			changed := start(t, 1, to)
			more("reservations are made when the configuration has caught up")
			for _, instance := range append(running, restarted[0], changed[0]) {
				require.Equal(t, http.StatusOK, statusOf(t, instance.URL+"/readyz"))
			}

			for _, b := range []*buyers{crowd, others} {
				b.stop()
				require.Equal(t, map[string]int{"created": len(b.Acknowledged)}, b.Codes, "no buyer has noticed: %v", b.LastProblem)
			}
			require.Subset(t, reservations(t, item), append(refused.stop(), crowd.Acknowledged...))
			require.Subset(t, reservations(t, other), others.Acknowledged)
			requireLedgerAgrees(t, "item/"+item)
			requireLedgerAgrees(t, "item/"+other)
			t.Logf("%d and %d acknowledged; without the servers of %s: %v", len(crowd.Acknowledged), len(others.Acknowledged), to, refused.Codes)
		})
	}
}

// Every unit is sold once, whatever is in charge when: the limit is reached while the strategy changes under the buyers.
func TestOrderOversellsNothing(t *testing.T) {
	running := start(t, 2, "redis")
	item := createStock(t, running[0].URL, 400)
	crowd := startBuyers(t, urls(running), item)
	for i, strategy := range []string{"zookeeper", "postgres", "redlock", "redis"} {
		crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 70*(i+1) })
		order(t, "inventory", strategy)
	}
	crowd.until(t, "all is sold", func(b *buyers) bool { return b.Codes["out_of_stock"] >= 16 })
	require.Len(t, crowd.stop(), 400)
	require.ElementsMatch(t, crowd.Acknowledged, reservations(t, item))
	requireLedgerAgrees(t, "item/"+item)
	start(t, 1, "redis") // agrees with the last order, and ends it for the tests that follow
}
