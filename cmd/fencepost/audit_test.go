package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

func TestAuditCommand(t *testing.T) {
	db := postgrestest.New(t)
	env := map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off"}
	code, stdout, stderr := runIn(t, env, "audit")
	assert.Equal(t, exitOK, code)
	assert.Equal(t, "0 resources audited, nothing is off\n", stderr)
	assert.Regexp(t, `^RESOURCE .* VERDICT\n$`, stdout)

	i := start(t, env)
	for _, sku := range []string{"lamp", "vase"} {
		status, answer := i.call(t, "POST", "/v1/items", `{"sku":"`+sku+`","name":"A","stock":10}`)
		require.Equal(t, 201, status, answer)
		status, answer = i.call(t, "POST", "/v1/items/"+sku+"/reservations", `{"quantity":3}`)
		require.Equal(t, 201, status, answer)
	}
	code, stdout, stderr = runIn(t, env, "audit")
	assert.Equal(t, exitOK, code)
	assert.Equal(t, "2 resources audited, nothing is off\n", stderr)
	assert.Regexp(t, `(?m)^item/lamp +10 +0 +3 +0 +ok$`, stdout)
	code, _, stderr = runIn(t, env, "audit", "item/lamp")
	assert.Equal(t, exitOK, code)
	assert.Equal(t, "1 resource audited, nothing is off\n", stderr)

	// By hand, as the owner. The guard has to be switched off for that.
	owner := postgrestest.Connect(t, db.OwnerURL)
	for _, sql := range []string{`ALTER TABLE items DISABLE TRIGGER guard_update`, `UPDATE items SET reserved = 1 WHERE resource = 'item/vase'`} {
		_, err := owner.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	const finding = "the counters are off by 2"
	code, stdout, stderr = runIn(t, env, "audit")
	assert.Equal(t, exitFailed, code)
	assert.Equal(t, "fencepost: 1 of 2 resources are off\n", stderr)
	assert.Regexp(t, `(?m)^item/vase +10 +0 +3 +0 +`+finding+`$`, stdout)
	assert.Regexp(t, `(?m)^item/lamp .* ok$`, stdout)

	code, stdout, _ = runIn(t, env, "audit", "--json")
	assert.Equal(t, exitFailed, code)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	require.Len(t, lines, 2)
	var verdict struct {
		Resource, Token string
		OK              bool
		Findings        []string
	}
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &verdict))
	assert.Equal(t, "item/vase", verdict.Resource)
	assert.Equal(t, "1", verdict.Token)
	assert.False(t, verdict.OK)
	assert.Equal(t, []string{finding}, verdict.Findings)
	_, answer := i.call(t, "GET", "/v1/audit?resource=item/vase", "")
	assert.JSONEq(t, `{"ok":false,"resources":[`+lines[1]+`]}`, answer)

	code, _, _ = runIn(t, env, "audit", "item/lamp")
	assert.Equal(t, exitOK, code)
	code, stdout, _ = runIn(t, env, "audit", "item/vase")
	assert.Equal(t, exitFailed, code)
	assert.NotContains(t, stdout, "lamp")
}

// No verdict must not look like one.
func TestAuditWithoutAVerdict(t *testing.T) {
	db := postgrestest.New(t)
	empty := postgrestest.Empty(t)
	for _, tt := range []struct{ url, resource, want string }{
		{db.ServiceURL, "item/ghost", "item/ghost: not found"},
		{empty.ServiceURL, "", "the database has no Fencepost schema yet"},
		{deadURL, "", "PostgreSQL at 127.0.0.1:1/fencepost does not answer"},
		{"", "", "FENCEPOST_DATABASE_URL is not set"},
	} {
		args := []string{"audit"}
		if tt.resource != "" {
			args = append(args, tt.resource)
		}
		code, _, stderr := runIn(t, map[string]string{"FENCEPOST_DATABASE_URL": tt.url}, args...)
		assert.Equal(t, exitUsage, code)
		assert.Contains(t, stderr, tt.want)
		assert.NotContains(t, stderr, "hunter2")
	}
}
