package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
	"fencepost/handlers"
	"fencepost/handlers/contracttest"
)

// instance is the whole program, serving on a port of the system's choice.
type instance struct {
	url    string
	signal context.CancelFunc
	exit   chan int
}

func start(t *testing.T, env map[string]string) instance {
	t.Helper()
	clean(t, env)
	ctx, cancel := context.WithCancel(t.Context())
	i := instance{signal: cancel, exit: make(chan int, 1)}
	logs, stderr := io.Pipe()
	go func() {
		i.exit <- run(ctx, []string{"serve", "--listen=127.0.0.1:0"}, io.Discard, stderr)
		stderr.Close()
	}()
	t.Cleanup(cancel)
	address := make(chan string, 1)
	listening := regexp.MustCompile(`msg=listening address=(\S+)`)
	go func() {
		defer close(address)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			t.Log(lines.Text())
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	var ok bool
	i.url, ok = <-address
	require.True(t, ok, "the service ended before it listened")
	t.Cleanup(func() { // the log must not be written to after the test
		cancel()
		for range address {
		}
	})
	return i
}

// contract is read once: that takes longer than a request.
var contract = sync.OnceValues(func() (*contracttest.Document, error) { return contracttest.Load(handlers.OpenAPI) })

func (i instance) call(t *testing.T, method, path, body string, headers ...string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, i.url+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	for n := 0; n < len(headers); n += 2 {
		r.Header.Set(headers[n], headers[n+1])
	}
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	if path == "/" {
		return response.StatusCode, string(content) // the page is no part of the contract
	}
	document, err := contract()
	require.NoError(t, err)
	require.NoError(t, document.Check(t.Context(), contracttest.Exchange{
		Method: method, URL: r.URL, Header: r.Header, Body: []byte(body),
		Status: response.StatusCode, Answer: response.Header, AnswerBody: content,
	}))
	return response.StatusCode, string(content)
}

func TestMigrateThenServe(t *testing.T) {
	db := postgrestest.Empty(t)
	env := map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_OWNER_URL": db.OwnerURL, "FENCEPOST_AUTH": "off"}

	code, _, stderr := runIn(t, env, "serve")
	assert.Equal(t, exitFailed, code)
	assert.Equal(t, "fencepost: the database has no Fencepost schema yet: run 'fencepost migrate' with FENCEPOST_OWNER_URL set\n", stderr)

	code, stdout, _ := runIn(t, env, "migrate")
	require.Equal(t, exitOK, code)
	assert.Regexp(t, `^Applied \d+ migrations; the schema is up to date\.\n$`, stdout)
	code, stdout, _ = runIn(t, env, "migrate")
	require.Equal(t, exitOK, code)
	assert.Equal(t, "The schema is up to date.\n", stdout)

	i := start(t, env)
	status, _ := i.call(t, "GET", "/readyz", "")
	assert.Equal(t, 200, status)
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"lamp","name":"Lamp","stock":1}`)
	require.Equal(t, 201, status, answer)
	status, _ = i.call(t, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	assert.Equal(t, 201, status)
	status, answer = i.call(t, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	assert.Equal(t, 409, status)
	assert.Contains(t, answer, "out_of_stock")
	status, answer = i.call(t, "GET", "/", "")
	assert.Equal(t, 200, status)
	assert.Contains(t, answer, "<html")
	i.signal()
	assert.Equal(t, exitOK, <-i.exit)
}

// What was begun before the signal is finished after it, and meanwhile the instance says that it is going.
func TestShutdownFinishesWhatBegan(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "500ms"})
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"lamp","name":"Lamp","stock":1}`)
	require.Equal(t, 201, status, answer)

	// Somebody else holds the row, so the reservation waits.
	other := postgrestest.Connect(t, db.OwnerURL)
	held, err := other.Begin(t.Context())
	require.NoError(t, err)
	_, err = held.Exec(t.Context(), `SELECT FROM fences WHERE resource = 'item/lamp' FOR UPDATE`)
	require.NoError(t, err)
	reserved := make(chan int, 1)
	go func() {
		response, err := http.Post(i.url+"/v1/items/lamp/reservations", "application/json", strings.NewReader(`{"quantity":1}`))
		if err != nil {
			reserved <- 0
			return
		}
		response.Body.Close()
		reserved <- response.StatusCode
	}()
	watcher := postgrestest.Connect(t, db.OwnerURL)
	require.Eventually(t, func() bool {
		var waiting bool
		require.NoError(t, watcher.QueryRow(t.Context(),
			`SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND $1 = ANY (pg_blocking_pids(pid)))`, other.PgConn().PID()).Scan(&waiting))
		return waiting
	}, 5*time.Second, 5*time.Millisecond, "the reservation does not wait for the row")

	i.signal()
	require.Eventually(t, func() bool {
		status, answer := i.call(t, "GET", "/readyz", "")
		return status == 503 && strings.Contains(answer, "shutting down")
	}, 400*time.Millisecond, 5*time.Millisecond)
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	}, 5*time.Second, 5*time.Millisecond, "the instance still listens")
	require.NoError(t, held.Rollback(t.Context()))
	assert.Equal(t, 201, <-reserved)
	assert.Equal(t, exitOK, <-i.exit)
}

func TestShutdownCutsOffWhatTakesTooLong(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{
		"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off",
		"FENCEPOST_DRAIN_DELAY": "0s", "FENCEPOST_SHUTDOWN_TIMEOUT": "50ms",
	})
	status, _ := i.call(t, "GET", "/readyz", "")
	require.Equal(t, 200, status)
	// A request that never ends: its body does not come.
	conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "POST /v1/items HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n') // the handler has begun to read
	require.NoError(t, err)
	require.Contains(t, line, "100 Continue")
	i.signal()
	assert.Equal(t, exitFailed, <-i.exit)
}

// An instance that cannot listen must not take over and turn away the writes of the one that can.
func TestInstanceThatCannotListenTakesNothingOver(t *testing.T) {
	db, redis := postgrestest.New(t), redisURL(t)
	env := map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off"}
	i := start(t, env)

	env["FENCEPOST_REDIS_URL"], env["FENCEPOST_INVENTORY_LOCK"] = redis, "redis"
	env["FENCEPOST_LISTEN"] = strings.TrimPrefix(i.url, "http://")
	code, _, stderr := runIn(t, env, "serve")
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, stderr, "address already in use; end what listens there, or set FENCEPOST_LISTEN")

	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"lamp","name":"Lamp","stock":1}`)
	require.Equal(t, 201, status, answer)
	assert.Contains(t, answer, `"strategy":"postgres"`)
}

func TestLockServersThatDoNotAnswer(t *testing.T) {
	db := postgrestest.New(t)
	for says, env := range map[string]map[string]string{
		"Redis at 127.0.0.1:1 does not answer: start it or correct FENCEPOST_REDIS_URL": {
			"FENCEPOST_INVENTORY_LOCK": "redis", "FENCEPOST_REDIS_URL": "redis://:hunter2@127.0.0.1:1",
		},
		"ZooKeeper at 127.0.0.1:1,127.0.0.1:2 does not answer: start it or correct FENCEPOST_ZOOKEEPER_SERVERS": {
			"FENCEPOST_INVENTORY_LOCK": "zookeeper", "FENCEPOST_ZOOKEEPER_SERVERS": "127.0.0.1:1,127.0.0.1:2",
			"FENCEPOST_ZOOKEEPER_AUTH": "fencepost:hunter2",
		},
	} {
		env["FENCEPOST_DATABASE_URL"], env["FENCEPOST_AUTH"], env["FENCEPOST_LISTEN"] = db.ServiceURL, "off", "127.0.0.1:0"
		code, _, stderr := runIn(t, env, "serve")
		assert.Equal(t, exitFailed, code)
		assert.True(t, strings.HasPrefix(stderr, "fencepost: "+says+" ("), stderr)
		assert.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		assert.NotContains(t, stderr, "hunter2")
	}
}

func TestWhereTheOthersAreIsToldOnlyWithoutKeys(t *testing.T) {
	db := postgrestest.New(t)
	const other = "http://10.0.0.7:8080"
	for auth, told := range map[string]bool{"off": true, "keys": false} {
		i := start(t, map[string]string{
			"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": auth, "FENCEPOST_INSTANCES": other, "FENCEPOST_DRAIN_DELAY": "0s",
		})
		response, err := http.Get(i.url)
		require.NoError(t, err)
		response.Body.Close()
		assert.Equal(t, told, strings.Contains(response.Header.Get("Content-Security-Policy"), other), auth)
		status, _ := i.call(t, "GET", "/v1/instances", "")
		assert.Equal(t, told, status == 200, auth)
		i.signal()
		assert.Equal(t, exitOK, <-i.exit)
	}
}

func TestWhatAClientSentIsRepeatedInPart(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off"})
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"a","name":"a","stock":1,"lock":{"strategy":"`+strings.Repeat("paxos", 10000)+`"}}`)
	assert.Equal(t, 422, status)
	assert.Contains(t, answer, "paxospaxos")
	assert.Less(t, len(answer), 1000)
}

// Clients that keep many connections open, and send nothing, must not make the instance look dead.
func TestIdleConnections(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off"})
	for range 2000 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
		require.NoError(t, err)
		defer conn.Close()
	}
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(i.url + "/healthz")
	require.NoError(t, err)
	response.Body.Close()
	assert.Equal(t, 200, response.StatusCode)
}

func TestKeysCommand(t *testing.T) {
	db := postgrestest.New(t)
	env := map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_DRAIN_DELAY": "0s"}
	_, key, _ := runIn(t, env, "keys", "create", "--name=boss", "--role=admin")
	_, list, _ := runIn(t, env, "keys", "list")
	key = strings.TrimSpace(key)
	require.Regexp(t, `^fp_[A-Za-z0-9_-]{43}$`, key)
	require.NotContains(t, list, key)
	row := regexp.MustCompile(`(?m)^(\S+)\s+boss\s+admin\s+\S+\s+-$`).FindStringSubmatch(list)
	require.NotNil(t, row, list)

	i := start(t, env)
	status, _ := i.call(t, "GET", "/v1/audit", "")
	assert.Equal(t, 401, status)
	status, _ = i.call(t, "GET", "/v1/audit", "", "Authorization", "Bearer "+key)
	assert.Equal(t, 200, status)

	code, _, stderr := again(t, "keys", "revoke", row[1])
	assert.Equal(t, exitOK, code, stderr)
	code, _, _ = again(t, "keys", "revoke", "unknown")
	assert.Equal(t, exitFailed, code)
	i.signal()
	assert.Equal(t, exitOK, <-i.exit)
}

func TestSwitchCommand(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_REDIS_URL": redisURL(t)})
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"lamp","name":"Lamp","stock":9}`)
	require.Equal(t, 201, status, answer)
	sells := func(strategy string) {
		t.Helper()
		status, answer := i.call(t, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
		require.Equal(t, 201, status, answer)
		_, answer = i.call(t, "GET", "/v1/items/lamp", "")
		assert.Contains(t, answer, `"strategy":"`+strategy+`"`)
	}

	code, stdout, stderr := again(t, "switch", "inventory", "redis", "--dry-run")
	require.Equal(t, exitOK, code, stderr)
	assert.Regexp(t, `(?m)^before +inventory +postgres +1 +\S+Z\nafter +inventory +redis +- +-$`, stdout)
	assert.Contains(t, stderr, "Nothing was changed.")
	sells("postgres")

	code, stdout, stderr = again(t, "switch", "inventory", "redis")
	require.Equal(t, exitOK, code, stderr)
	assert.Regexp(t, `(?m)^before +inventory +postgres +1 +\S+Z\nafter +inventory +redis +2 +\S+Z$`, stdout)
	assert.Contains(t, stderr, "Set FENCEPOST_INVENTORY_LOCK=redis as well")
	sells("redis")
	_, answer = i.call(t, "GET", "/v1/strategies", "")
	assert.Regexp(t, `"name":"redis"[^}]*"in_charge":\[\{"scope":"inventory","epoch":"2"`, answer)

	code, stdout, stderr = again(t, "switch", "item/lamp", "postgres")
	require.Equal(t, exitOK, code, stderr)
	assert.Regexp(t, `(?m)^before +inventory +redis +2 +\S+Z\nafter +item/lamp +postgres +3 +\S+Z$`, stdout)
	sells("postgres")
	_, answer = i.call(t, "GET", "/v1/strategies", "")
	assert.Regexp(t, `"name":"postgres"[^}]*"in_charge":\[\{"scope":"coupons"[^]]*\],"resources":1`, answer)

	code, stdout, stderr = again(t, "switch", "item/lamp", "--shared")
	require.Equal(t, exitOK, code, stderr)
	assert.Regexp(t, `(?m)^before +item/lamp +postgres +3 +\S+Z\nafter +inventory +redis +4 +\S+Z$`, stdout)
	sells("redis")
	_, answer = i.call(t, "GET", "/v1/strategies", "")
	assert.NotContains(t, answer, `"resources":1`)

	for _, wrong := range []struct {
		args string
		code int
		says string
	}{
		{"inventory magic", exitUsage, `there is no strategy "magic"; the strategies are none, local, postgres, redis, redlock, zookeeper`},
		{"inventory", exitUsage, "name one strategy of none, local, postgres, redis, redlock, zookeeper, or --shared"},
		{"item/lamp redis --shared", exitUsage, "name one strategy of"},
		{"inventory --shared", exitUsage, "--shared is for one item or coupon"},
		{"lamp redis", exitUsage, `"lamp" cannot be switched: name inventory, coupons, item/SKU or coupon/CODE`},
		{"item/ redis", exitUsage, `"item/" cannot be switched`},
		{"item/ghost redis", exitFailed, "item/ghost: not found"},
		{"coupon/ghost --shared", exitFailed, "coupon/ghost: not found"},
		{"item/lamp none", exitFailed, "switching item/lamp to none: the resource is fenced and the strategy issues no fencing tokens; choose a strategy that does"},
		{"inventory local --fencing=off", exitFailed, "switching inventory to local: the resource is fenced"},
		{"inventory none", exitUsage, "FENCEPOST_INVENTORY_LOCK is none, which issues no fencing tokens"},
		{"coupons zookeeper", exitUsage, "FENCEPOST_COUPON_LOCK is zookeeper: set FENCEPOST_ZOOKEEPER_SERVERS"},
		{"item/lamp zookeeper", exitFailed, "set FENCEPOST_ZOOKEEPER_SERVERS"},
		{"item/lamp redis --redis-url=redis://:hunter2@127.0.0.1:1/0", exitFailed, "Redis at 127.0.0.1:1/0 does not answer: start it or correct FENCEPOST_REDIS_URL"},
		{"item/lamp redis --database-url=" + deadURL, exitFailed, "PostgreSQL at 127.0.0.1:1/fencepost does not answer"},
	} {
		code, stdout, stderr := again(t, append([]string{"switch"}, strings.Fields(wrong.args)...)...)
		assert.Equal(t, wrong.code, code, wrong.args)
		assert.Empty(t, stdout, wrong.args)
		assert.Contains(t, stderr, wrong.says)
		assert.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		assert.NotContains(t, stderr, "hunter2")
	}
	sells("redis")
}
