package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// keyed is one logical request: a client sends it, under one key, until it has an answer that is no invitation to try again.
type keyed struct {
	path string
	key  string
	body string
}

// reply is an answer as it came.
type reply struct {
	status   int // 0: none came
	location string
	body     string
	replayed bool
}

func (r reply) final() bool {
	return r.status >= 200 && r.status < 500 && r.status != http.StatusTooManyRequests
}

func (k keyed) sendOnce(ctx context.Context, client *http.Client, url string) reply {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+k.path, bytes.NewReader([]byte(k.body)))
	if err != nil {
		panic(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", k.key)
	response, err := client.Do(request)
	if err != nil {
		return reply{}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return reply{} // cut off
	}
	return reply{response.StatusCode, response.Header.Get("Location"), string(body), response.Header.Get("Idempotent-Replayed") == "true"}
}

// send tries the instances in turn. When patience is over it returns the last answer that came, which says what is wrong.
func (k keyed) send(ctx context.Context, client *http.Client, urls []string) (last reply) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i := rand.IntN(len(urls)); ctx.Err() == nil && !last.final(); i++ {
		if r := k.sendOnce(ctx, client, urls[i%len(urls)]); r.status != 0 {
			last = r
		}
	}
	return last
}

// manyConnections is a client for so many requests at once.
func manyConnections(t *testing.T, n int) *http.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: n}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: answers.watch(transport)}
}

// Requests that are sent one to five times at once, to any of three instances, are carried out once, and all who asked are
// told the same, byte for byte. The stock runs out half-way, so refusals are among the answers.
func TestRetriesAtOnce(t *testing.T) {
	keys := 5_000
	if *soak {
		keys = 50_000
	}
	const workers = 32
	running := start(t, 3, "redis")
	item := createStock(t, running[0].URL, keys/2)
	client := manyConnections(t, 5*workers)
	var next, created, refused, replayed atomic.Int64
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for next.Add(1) <= int64(keys) && !t.Failed() {
				request := keyed{"/v1/items/" + item + "/reservations", uuid.NewString(), `{"quantity": 1}`}
				replies := make([]reply, 1+rand.IntN(5))
				var copies sync.WaitGroup
				for i := range replies {
					copies.Go(func() { replies[i] = request.send(t.Context(), client, urls(running)) })
				}
				copies.Wait()
				originals := 0
				for _, r := range replies {
					assert.Equal(t, replies[0].status, r.status)
					assert.Equal(t, replies[0].location, r.location)
					assert.Equal(t, replies[0].body, r.body)
					if r.replayed {
						replayed.Add(1)
					} else {
						originals++
					}
				}
				assert.LessOrEqual(t, originals, 1, "one of them did the work")
				switch replies[0].status {
				case http.StatusCreated:
					created.Add(1)
				case http.StatusConflict:
					refused.Add(1)
				default:
					t.Errorf("%d %s", replies[0].status, replies[0].body)
				}
			}
		})
	}
	group.Wait()
	t.Logf("%d keys: %d created, %d refused, %d replayed", keys, created.Load(), refused.Load(), replayed.Load())
	require.EqualValues(t, keys/2, created.Load())
	require.EqualValues(t, keys-keys/2, refused.Load())
	require.Positive(t, replayed.Load())
	require.Len(t, reservations(t, item), keys/2)
	requireLedgerAgrees(t, "item/"+item)
	requireAuditClean(t, running[0].URL, "item/"+item)
}

// Instances are killed at random moments under load, and started again. What was acknowledged is in the database; what was
// not is settled by sending the request again with its key: in the end each request has happened once.
func TestInstancesAreKilled(t *testing.T) {
	kills := 5
	if *soak {
		kills = 50
	}
	running := start(t, 3, "redis", "FENCEPOST_LEASE_TTL=1s")
	item := createItem(t, running[0].URL)
	client := manyConnections(t, 64)
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	promised := map[string]string{} // key → reservation
	var group sync.WaitGroup
	var acknowledged, resent atomic.Int64
	progress := make(chan struct{}, 1)
	for worker := range 16 {
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				request := keyed{"/v1/items/" + item + "/reservations", fmt.Sprintf("%s-worker-%d-request-%d", item, worker, n), `{"quantity": 1}`}
				r := request.sendOnce(context.WithoutCancel(ctx), client, running[rand.IntN(len(running))].URL)
				if !r.final() {
					resent.Add(1)
					r = request.send(context.WithoutCancel(ctx), client, urls(running))
				}
				var made struct{ ID string }
				if assert.Equal(t, http.StatusCreated, r.status, r.body) && assert.NoError(t, json.Unmarshal([]byte(r.body), &made)) {
					mu.Lock()
					promised[request.key] = made.ID
					mu.Unlock()
				}
				acknowledged.Add(1)
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	for range kills {
		for seen := acknowledged.Load() + 20 + rand.Int64N(80); acknowledged.Load() < seen; {
			<-progress // any moment will do
		}
		victim := running[rand.IntN(len(running))]
		require.NoError(t, victim.Kill())
		require.NoError(t, victim.Start(t.Context()))
	}
	stop()
	group.Wait()
	stored := reservations(t, item)
	t.Logf("%d kills: %d requests, %d of them sent again, %d reservations", kills, len(promised), resent.Load(), len(stored))
	var ids []string
	for _, id := range promised {
		ids = append(ids, id)
	}
	require.ElementsMatch(t, ids, stored, "each request has happened once")
	require.Positive(t, resent.Load(), "a kill must have hit a request: otherwise this has shown nothing")
	requireLedgerAgrees(t, "item/"+item)
	requireAuditClean(t, running[0].URL, "item/"+item)
}
