package main

import (
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

// Tokens of answers never go back, refusals among them, and what a write shows is what the fence has seen. A lease may be kept for
// the next request, and shows its token again; a row issues one for each transaction, and two answers never show the same.
func TestTokensOfAnswers(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{
		"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "0s",
		"FENCEPOST_REDIS_URL": os.Getenv("FENCEPOST_REDIS_URL"), "FENCEPOST_REDLOCK_URLS": os.Getenv("FENCEPOST_REDLOCK_URLS"),
		"FENCEPOST_ZOOKEEPER_SERVERS": os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"),
	})
	for _, strategy := range []string{"postgres", "redis", "redlock", "zookeeper"} {
		status, answer := i.call(t, "POST", "/v1/items", `{"sku":"`+strategy+`","name":"Lamp","stock":2,"lock":{"strategy":"`+strategy+`"}}`)
		require.Equal(t, 201, status, answer)
		newest := int64(0)
		for n, step := range []struct {
			path, body string
			status     int
		}{
			{"reservations", `{"quantity":1}`, 201},
			{"reservations", `{"quantity":9}`, 409},
			{"reservations", `{"quantity":1}`, 201},
			{"reservations", `{"quantity":9}`, 409},
			{"reservations", `{"quantity":1}`, 409},
			{"restocks", `{"quantity":1}`, 200},
			{"reservations", `{"quantity":1}`, 201},
		} {
			r, err := http.NewRequestWithContext(t.Context(), "POST", i.url+"/v1/items/"+strategy+"/"+step.path, strings.NewReader(step.body))
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/json")
			if n%2 == 1 { // a refusal that is kept is written down
				r.Header.Set("Idempotency-Key", strategy+"-request-"+strconv.Itoa(n))
			}
			response, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			response.Body.Close()
			require.Equal(t, step.status, response.StatusCode)
			assert.Equal(t, strategy, response.Header.Get("Fencepost-Strategy"))
			shown := response.Header.Get("Fencepost-Token")
			if step.status == 409 && strategy == "postgres" {
				assert.Empty(t, shown, "it may be undone")
				continue
			}
			_, text, _ := strings.Cut(shown, ".")
			token, err := strconv.ParseInt(text, 10, 64)
			require.NoError(t, err, "%q", shown)
			assert.GreaterOrEqual(t, token, newest, "%s: %s", strategy, shown)
			assert.False(t, strategy == "postgres" && token == newest, shown)
			newest = token
			if step.status == 409 {
				continue
			}
			_, answer := i.call(t, "GET", "/v1/items/"+strategy, "")
			var item struct {
				Fence struct{ Epoch, Token string }
			}
			require.NoError(t, json.Unmarshal([]byte(answer), &item))
			assert.Equal(t, shown, item.Fence.Epoch+"."+item.Fence.Token)
		}
	}
}
