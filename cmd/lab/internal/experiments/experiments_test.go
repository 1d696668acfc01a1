package experiments

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/servers"
)

func TestMain(m *testing.M) {
	servers.RunJanitor()
	m.Run()
}

// Every claim is confirmed, and every control fails as it should.
func TestExperiments(t *testing.T) {
	lab, err := servers.Start(context.Background(), servers.Options{
		Require: []string{servers.Postgres, servers.Redis, servers.ZooKeeper},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, lab.Close()) })
	_, err = Perform(t.Context(), lab, Options{
		Experiments: All, Short: true, Progress: func(string) {},
		Done: func(r Result) {
			t.Logf("%s: %s, %.1f s", r.Name, r.Verdict(), r.Seconds)
			assert.Empty(t, r.Error, r.Name)
			for _, f := range r.Findings {
				t.Logf("  %s: %s: %s", f.Of, f.Want, f.Saw)
				assert.True(t, f.OK, "%s: %s: %s", r.Name, f.Want, f.Saw)
			}
			assert.True(t, r.OK)
		},
	})
	require.NoError(t, err)
}
