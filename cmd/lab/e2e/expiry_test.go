package e2e_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Holds expire by the hundred while an instance is killed in the middle of it: the others end what it was at, each hold ends
// once, and the stock is back.
func TestInstanceIsKilledWhileItSweeps(t *testing.T) {
	for _, strategy := range []string{"postgres", "redis"} {
		t.Run(strategy, func(t *testing.T) {
			running := start(t, 3, strategy, "FENCEPOST_LEASE_TTL=1s")
			items := make([]string, 10)
			for i := range items {
				items[i] = createStock(t, running[0].URL, 100)
			}
			var buying sync.WaitGroup
			for i, item := range items {
				buying.Go(func() {
					for range 50 {
						// Sent again if need be: a term so short leaves Redis a quarter of a second for an answer.
						hold := keyed{"/v1/items/" + item + "/reservations", uuid.NewString(), `{"quantity": 2, "ttl_seconds": 3}`}
						r := hold.send(t.Context(), http.DefaultClient, []string{running[i%3].URL})
						if !assert.Equal(t, http.StatusCreated, r.status, r.body) {
							return
						}
					}
				})
			}
			buying.Wait()
			left := func() (held, ended int) {
				require.NoError(t, judge.QueryRow(t.Context(), `
					SELECT count(*) FILTER (WHERE state = 'held'), count(*) FILTER (WHERE state = 'expired')
					  FROM reservation_lines WHERE substr(resource, 6) = ANY($1)`, items).Scan(&held, &ended))
				return held, ended
			}
			require.Eventually(t, func() bool { _, ended := left(); return ended > 0 }, patience, time.Millisecond)
			require.NoError(t, running[0].Kill())
			held, _ := left()
			require.Eventually(t, func() bool { held, _ := left(); return held == 0 }, patience, 10*time.Millisecond)

			var entries, returned int
			var most, median time.Duration
			require.NoError(t, judge.QueryRow(t.Context(), `
				SELECT (SELECT count(*) FROM ledger WHERE kind = 'expire' AND substr(resource, 6) = ANY($1)),
				       (SELECT sum(on_hand - reserved) FROM items WHERE substr(resource, 6) = ANY($1)),
				       max(settled_at - expires_at), percentile_disc(0.5) WITHIN GROUP (ORDER BY settled_at - expires_at)
				  FROM reservation_lines WHERE substr(resource, 6) = ANY($1)`, items).Scan(&entries, &returned, &most, &median))
			t.Logf("%d of 500 holds were left at the kill; back after a median of %s, at most %s", held, median, most)
			require.Equal(t, 500, entries, "each hold has ended once")
			require.Equal(t, 1000, returned, "all stock is there again")
			for _, item := range items {
				requireLedgerAgrees(t, "item/"+item)
			}
			require.Less(t, median, 2*time.Second)
		})
	}
}

// The stock of a hold that nobody confirms is back within two seconds.
func TestStockComesBack(t *testing.T) {
	running := start(t, 2, "postgres")
	item := createStock(t, running[0].URL, 1)
	var hold struct {
		ExpiresAt time.Time `json:"expires_at"`
	}
	reserve := func() bool {
		return exchange(t.Context(), http.MethodPost, running[1].URL+"/v1/items/"+item+"/reservations",
			map[string]any{"quantity": 1, "ttl_seconds": 1}, &hold) == http.StatusCreated
	}
	require.True(t, reserve())
	for range 5 {
		due := hold.ExpiresAt
		require.Eventually(t, reserve, patience, 10*time.Millisecond)
		late := time.Since(due)
		t.Logf("back after %s", late)
		require.Positive(t, late, "it was held until then")
		require.Less(t, late, 2*time.Second)
	}
}
