package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

// What a caller may do is bounded in the program as a whole; an admin is not bounded.
func TestCallersAreBounded(t *testing.T) {
	db := postgrestest.New(t)
	env := map[string]string{
		"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_DRAIN_DELAY": "0s",
		"FENCEPOST_MAX_OPEN_HOLDS": "3", "FENCEPOST_COUPON_GUESSES": "4", "FENCEPOST_RATE_LIMIT": "1000",
	}
	_, boss, _ := runIn(t, env, "keys", "create", "--name=boss", "--role=admin")
	_, shop, _ := runIn(t, env, "keys", "create", "--name=shop", "--role=client")
	_, bot, _ := runIn(t, env, "keys", "create", "--name=bot", "--role=client")
	i := start(t, env)
	as := func(key, method, path, body string) (status int, answer string) {
		return i.call(t, method, path, body, "Authorization", "Bearer "+strings.TrimSpace(key))
	}
	status, answer := as(boss, "POST", "/v1/items", `{"sku":"lamp","name":"Lamp","stock":100}`)
	require.Equal(t, 201, status, answer)
	status, answer = as(boss, "POST", "/v1/coupons", `{"code":"REAL","max_redemptions":100}`)
	require.Equal(t, 201, status, answer)

	const reserve = "/v1/items/lamp/reservations"
	for range 2 {
		status, answer = as(shop, "POST", reserve, `{"quantity":1}`)
		require.Equal(t, 201, status, answer)
	}
	// Who asks again for what he holds already is told so.
	again := func() (int, string) {
		return i.call(t, "POST", reserve, `{"quantity":1}`, "Authorization", "Bearer "+strings.TrimSpace(shop), "Idempotency-Key", "the-third")
	}
	status, third := again()
	require.Equal(t, 201, status, third)
	for range 3 {
		status, answer = again()
		assert.Equal(t, 201, status)
		assert.Equal(t, third, answer)
		status, answer = i.call(t, "POST", reserve, `{"quantity":1}`, "Authorization", "Bearer "+strings.TrimSpace(shop), "Idempotency-Key", "a-fourth")
		assert.Equal(t, 409, status, answer)
		status, answer = as(shop, "POST", reserve, `{"quantity":1}`)
		assert.Equal(t, 409, status)
		assert.Contains(t, answer, `"code":"too_many_holds"`)
		status, answer = as(boss, "POST", reserve, `{"quantity":1}`)
		require.Equal(t, 201, status, answer)
	}

	// What was refused for that reason is no answer to keep: when there is room again, the same request gets it.
	var held struct{ ID string }
	require.NoError(t, json.Unmarshal([]byte(third), &held))
	status, answer = as(shop, "POST", "/v1/reservations/"+held.ID+"/release", "")
	require.Equal(t, 200, status, answer)
	status, answer = i.call(t, "POST", reserve, `{"quantity":1}`, "Authorization", "Bearer "+strings.TrimSpace(shop), "Idempotency-Key", "a-fourth")
	assert.Equal(t, 201, status, answer)

	for _, code := range []string{"G1", "G2", "G3", "G4"} {
		status, answer = as(bot, "POST", "/v1/coupons/"+code+"/redemptions", `{"customer_id":"c"}`)
		assert.Equal(t, 410, status, answer)
	}
	for _, code := range []string{"G5", "REAL"} { // whether it exists makes no difference
		status, answer = as(bot, "POST", "/v1/coupons/"+code+"/redemptions", `{"customer_id":"c"}`)
		assert.Equal(t, 429, status)
		assert.Contains(t, answer, `"code":"rate_limited"`)
	}
	status, answer = as(shop, "POST", "/v1/coupons/REAL/redemptions", `{"customer_id":"c"}`)
	assert.Equal(t, 201, status, answer)
}

// Admins have a limit of their own, which they do not share with clients of the same name.
func TestAdminsHaveALimitOfTheirOwn(t *testing.T) {
	db := postgrestest.New(t)
	const limit = 5
	env := map[string]string{
		"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_DRAIN_DELAY": "0s", "FENCEPOST_RATE_LIMIT": "5", "FENCEPOST_ADMIN_RATE_LIMIT": "5",
	}
	_, client, _ := runIn(t, env, "keys", "create", "--name=shop", "--role=client")
	_, admin, _ := runIn(t, env, "keys", "create", "--name=shop", "--role=admin")
	i := start(t, env)
	for _, key := range []string{client, admin} {
		passed := 0
		for {
			status, answer := i.call(t, "GET", "/v1/items", "", "Authorization", "Bearer "+strings.TrimSpace(key))
			if status == http.StatusTooManyRequests {
				break
			}
			require.Equal(t, 200, status, answer)
			passed++
			require.LessOrEqual(t, passed, 3*limit, "in two minutes at most")
		}
		assert.GreaterOrEqual(t, passed, limit)
	}
}
