package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/control"
	"fencepost/cmd/lab/internal/instances"
)

// The faults of the demonstration are done to the instance and the server that were named, and to no others; what is not
// possible is refused with a reason. The stories of the page test what comes of them.
func TestControl(t *testing.T) {
	faults, err := control.New(t.Context(), lab, 2)
	require.NoError(t, err)
	t.Cleanup(faults.Close)
	addresses := make([]string, 2)
	for i := range addresses {
		addresses[i], err = lab.FreeAddress()
		require.NoError(t, err)
	}
	running, err := instances.Start(t.Context(), lab, instances.Config{
		Binary: binary, Addresses: addresses, EnvOf: faults.Env, Env: []string{"FENCEPOST_DRAIN_DELAY=0s"},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		require.NoError(t, instances.Stop(context.WithoutCancel(t.Context()), running))
	})
	faults.Serve(running)

	do := func(fault, target string) (status int, said string) {
		t.Helper()
		r := httptest.NewRequest(http.MethodPost, "/"+fault, strings.NewReader(target))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		faults.ServeHTTP(w, r)
		var answer struct{ Did, Detail string }
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer))
		return w.Code, answer.Did + answer.Detail
	}
	for _, refused := range []struct{ fault, target, says string }{
		{"kill", `{"instance":3}`, "instance must be between 1 and 2"},
		{"kill", `{}`, "instance must be between 1 and 2"},
		{"resume", `{"instance":1}`, "instance 1 is running"},
		{"start", `{"instance":1}`, "instance 1 is running"},
		{"hold", `{"instance":1,"message":"write"}`, "resource must name the item"},
		{"hold", `{"instance":1,"resource":"item/x","message":"all"}`, "message must be write or presentation"},
		{"flush", `{"server":"zookeeper"}`, "zookeeper is no Redis"},
		{"stop-server", `{"server":"postgres"}`, "PostgreSQL is the judge"},
		{"stop-server", `{"server":"etcd"}`, `the laboratory has no server "etcd"`},
		{"erase", `{}`, "no fault of this name"},
		{"kill", `nonsense`, "Send a JSON object"},
	} {
		status, said := do(refused.fault, refused.target)
		require.GreaterOrEqual(t, status, 400, refused)
		require.Contains(t, said, refused.says)
	}
	r := httptest.NewRequest(http.MethodPost, "/kill", strings.NewReader(`{"instance":1}`))
	w := httptest.NewRecorder()
	faults.ServeHTTP(w, r)
	require.Equal(t, http.StatusBadRequest, w.Code, "what a page of another site could send is not declared as JSON")

	status, said := do("kill", `{"instance":1}`)
	require.Equal(t, http.StatusOK, status, said)
	require.Zero(t, statusOf(t, running[0].URL+"/readyz"))
	require.Equal(t, http.StatusOK, statusOf(t, running[1].URL+"/readyz"))
	status, said = do("start", `{"instance":1}`)
	require.Equal(t, http.StatusOK, status, said)
	require.Equal(t, fmt.Sprintf("started instance 1 again, as process %d", running[0].PID()), said)
	require.Equal(t, http.StatusOK, statusOf(t, running[0].URL+"/readyz"))

	w = httptest.NewRecorder()
	faults.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Contains(t, w.Body.String(), `"storage":"fsync on, synchronous_commit on"`)
	require.Contains(t, w.Body.String(), fmt.Sprintf(`{"url":%q,"state":"running"}`, running[0].URL))
}
