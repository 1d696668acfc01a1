package e2e_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
				old.until(t, "reservations are made", func(b *buyers) bool { return len(b.acknowledged) >= 50 })

				after := start(t, 1, to) // and is in charge when it is ready
				began := time.Now()
				fresh := startBuyers(t, urls(after), item)
				fresh.until(t, "reservations are made under "+to, func(b *buyers) bool { return len(b.acknowledged) > 0 })
				dip := time.Since(began)
				old.until(t, "instances of "+from+" are refused", func(b *buyers) bool { return b.codes["strategy_superseded"] >= 20 })
				fresh.until(t, "both have been in use", func(b *buyers) bool { return len(b.acknowledged) >= 50 })
				for _, instance := range before {
					require.Equal(t, http.StatusServiceUnavailable, statusOf(t, instance.URL+"/readyz"))
				}
				require.Equal(t, http.StatusOK, statusOf(t, after[0].URL+"/readyz"))

				acknowledged := append(old.stop(), fresh.stop()...)
				require.Subset(t, reservations(t, item), acknowledged)
				requireLedgerAgrees(t, "item/"+item)
				require.Less(t, dip, 3*time.Second)
				t.Logf("%d acknowledged; the first under %s after %s; old: %v, new: %v", len(acknowledged), to, dip, old.codes, fresh.codes)
			})
		}
	}
}
