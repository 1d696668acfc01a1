package e2e_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/instances"
)

// Of many admins who have seen the same stock, one adds to it, over whichever instances they ask. If-Match is only as good as
// the lock it is compared under: without one, several find the stock unchanged.
func TestAdminsRestock(t *testing.T) {
	const admins = 8
	for _, strategy := range []string{"postgres", "redis"} {
		t.Run(strategy, func(t *testing.T) {
			running := start(t, 3, strategy)
			sku := createItem(t, running[0].URL)
			for range 20 {
				require.EqualValues(t, 1, restocks(t, running, sku, admins))
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		running := start(t, 3, "none", "FENCEPOST_FENCING=off")
		sku := createItem(t, running[0].URL)
		for range 1000 {
			if restocks(t, running, sku, admins) > 1 {
				return
			}
		}
		t.Fatal("without a lock, two admins must both find the stock unchanged")
	})
}

// restocks has all admins read the item, and then restock it if it is still what they have read. It returns how many did.
func restocks(t *testing.T, running []*instances.Instance, sku string, admins int) (done int64) {
	t.Helper()
	path := "/v1/items/" + sku
	response, err := ask(t.Context(), http.MethodGet, running[0].URL+path, "", "")
	require.NoError(t, err)
	etag := response.Header.Get("ETag")
	require.NotEmpty(t, etag)
	var restocked atomic.Int64
	var group sync.WaitGroup
	for admin := range admins {
		group.Go(func() {
			response, err := ask(t.Context(), http.MethodPost, running[admin%len(running)].URL+path+"/restocks", `{"quantity":1}`, etag)
			switch {
			case err != nil:
				t.Error(err)
			case response.StatusCode == http.StatusOK:
				restocked.Add(1)
			case response.StatusCode != http.StatusPreconditionFailed:
				t.Errorf("a restock was answered %s", response.Status)
			}
		})
	}
	group.Wait()
	return restocked.Load()
}

// ask sends a request, and returns the answer without its body.
func ask(ctx context.Context, method, url, body, ifMatch string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if ifMatch != "" {
		request.Header.Set("If-Match", ifMatch)
	}
	response, err := http.DefaultClient.Do(request)
	if err == nil {
		err = response.Body.Close()
	}
	return response, err
}
