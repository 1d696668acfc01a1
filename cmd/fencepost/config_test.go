package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// configVariables lists the environment variables that the configuration reads.
func configVariables() []string {
	var names []string
	for f := range reflect.TypeFor[Config]().Fields() {
		if name, ok := f.Tag.Lookup("env"); ok {
			names = append(names, name)
		}
	}
	return names
}

// clean is an environment with nothing in it but what the test sets.
func clean(t *testing.T, env map[string]string) {
	t.Helper()
	for _, name := range configVariables() {
		t.Setenv(name, "")                    // remembers the value for the end of the test
		require.NoError(t, os.Unsetenv(name)) // kong takes an empty variable for a set one
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
}

func runIn(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	clean(t, env)
	return again(t, args...)
}

// again runs a command in the environment that is set, beside an instance that runs in it.
func again(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

const (
	goodURL = "postgres://fencepost_service:hunter2@db.example:5432/fencepost"
	// refuses connections at once
	deadURL = "postgres://fencepost_service:hunter2@127.0.0.1:1/fencepost"
)

func TestServeRefusesBadConfiguration(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"no database", map[string]string{"FENCEPOST_DATABASE_URL": ""}, `FENCEPOST_DATABASE_URL is not set: set it to a URL like postgres://USER:PASSWORD@HOST:PORT/NAME`},
		{"not a URL", map[string]string{"FENCEPOST_DATABASE_URL": "host=db password=hunter2"}, `FENCEPOST_DATABASE_URL is not a URL: `},
		{"another scheme", map[string]string{"FENCEPOST_DATABASE_URL": "mysql://u:hunter2@db/x"}, `FENCEPOST_DATABASE_URL is not a URL: write postgres://`},
		{"a password with a special character", map[string]string{"FENCEPOST_DATABASE_URL": "postgres://u:hunter2%@db/x"}, `FENCEPOST_DATABASE_URL is not a URL: `},
		{"both", map[string]string{"FENCEPOST_DATABASE_URL_FILE": "/dev/null"}, `FENCEPOST_DATABASE_URL_FILE and FENCEPOST_DATABASE_URL are both set: set one of them`},
		{"no such file", map[string]string{"FENCEPOST_REDIS_URL_FILE": "/no/such/file"}, `FENCEPOST_REDIS_URL_FILE cannot be read: open /no/such/file: no such file or directory`},
		{"connections", map[string]string{"FENCEPOST_DATABASE_CONNS": "0"}, `FENCEPOST_DATABASE_CONNS is 0: set it to 1 to 1000`},
		{"connections in words", map[string]string{"FENCEPOST_DATABASE_CONNS": "many"}, `FENCEPOST_DATABASE_CONNS is "many": write a whole number`},
		{"listen", map[string]string{"FENCEPOST_LISTEN": "8080"}, `FENCEPOST_LISTEN is "8080": write HOST:PORT`},
		{"port", map[string]string{"FENCEPOST_LISTEN": "127.0.0.1:70000"}, `FENCEPOST_LISTEN is "127.0.0.1:70000": write HOST:PORT`},
		{"auth", map[string]string{"FENCEPOST_AUTH": "none"}, `FENCEPOST_AUTH is "none": set it to keys or off`},
		{
			"open to the world",
			map[string]string{"FENCEPOST_AUTH": "off", "FENCEPOST_LISTEN": ":8080"},
			`FENCEPOST_AUTH is off and FENCEPOST_LISTEN is :8080: anybody could be an admin; set FENCEPOST_AUTH=keys, or listen on 127.0.0.1`,
		},
		{
			"open to the network",
			map[string]string{"FENCEPOST_AUTH": "off", "FENCEPOST_LISTEN": "10.0.0.7:8080"},
			`FENCEPOST_AUTH is off and FENCEPOST_LISTEN is 10.0.0.7:8080: `,
		},
		{"rate limit", map[string]string{"FENCEPOST_RATE_LIMIT": "-1"}, `FENCEPOST_RATE_LIMIT is -1: set it to 0 to 1000000000`},
		{"guesses", map[string]string{"FENCEPOST_COUPON_GUESSES": "few"}, `FENCEPOST_COUPON_GUESSES is "few": write a whole number`},
		{"strategy", map[string]string{"FENCEPOST_INVENTORY_LOCK": "paxos"}, `FENCEPOST_INVENTORY_LOCK is "paxos", which is no strategy: set it to one of none, local, postgres, redis, redlock, zookeeper`},
		{"no fence for none", map[string]string{"FENCEPOST_COUPON_LOCK": "none"}, `FENCEPOST_COUPON_LOCK is none, which issues no fencing tokens: set FENCEPOST_FENCING=off as well, or another strategy`},
		{"redis without a server", map[string]string{"FENCEPOST_INVENTORY_LOCK": "redis"}, `FENCEPOST_INVENTORY_LOCK is redis: set FENCEPOST_REDIS_URL to its server`},
		{"zookeeper without a server", map[string]string{"FENCEPOST_COUPON_LOCK": "zookeeper"}, `FENCEPOST_COUPON_LOCK is zookeeper: set FENCEPOST_ZOOKEEPER_SERVERS to its ensemble`},
		{"zookeeper's user", map[string]string{"FENCEPOST_ZOOKEEPER_AUTH": "hunter2"}, `FENCEPOST_ZOOKEEPER_AUTH is not a user and a password: write USER:PASSWORD`},
		{"fencing", map[string]string{"FENCEPOST_FENCING": "on"}, `FENCEPOST_FENCING is "on": set it to enforced or off`},
		{"redis", map[string]string{"FENCEPOST_REDIS_URL": "127.0.0.1:6379"}, `FENCEPOST_REDIS_URL is not a URL: write redis://`},
		{"two servers", map[string]string{"FENCEPOST_REDIS_URL": "redis://:hunter2@a:1,b:2"}, `FENCEPOST_REDIS_URL names several servers: write redis+sentinel://… or redis+cluster://…`},
		{"sentinels of nobody", map[string]string{"FENCEPOST_REDIS_URL": "redis+sentinel://:hunter2@a:1,b:2"}, `FENCEPOST_REDIS_URL names no master: write redis+sentinel://HOST:PORT,HOST:PORT/MASTER`},
		{"sentinels for redlock", map[string]string{"FENCEPOST_REDLOCK_URLS": "redis+sentinel://:hunter2@a:1/m"}, `FENCEPOST_REDLOCK_URLS is not a URL: write redis://`},
		{"redlock without servers", map[string]string{"FENCEPOST_INVENTORY_LOCK": "redlock"}, `FENCEPOST_INVENTORY_LOCK is redlock: set FENCEPOST_REDLOCK_URLS to its servers`},
		{"two for redlock", map[string]string{"FENCEPOST_REDLOCK_URLS": "redis://a:1,redis://b:2"}, `FENCEPOST_REDLOCK_URLS names 2: name three, five or another odd number of independent masters`},
		{"redlock", map[string]string{"FENCEPOST_REDLOCK_URLS": "redis://a:1,b:2"}, `FENCEPOST_REDLOCK_URLS is not a URL: write redis://`},
		{"zookeeper", map[string]string{"FENCEPOST_ZOOKEEPER_SERVERS": "a:2181,b"}, `FENCEPOST_ZOOKEEPER_SERVERS is "b": write HOST:PORT`},
		{"zookeeper with a path", map[string]string{"FENCEPOST_ZOOKEEPER_SERVERS": "a:2181,b:2181/app"}, `FENCEPOST_ZOOKEEPER_SERVERS has a path in "b:2181/app": write HOST:PORT; the nodes are always below /fencepost`},
		{"lease", map[string]string{"FENCEPOST_LEASE_TTL": "10"}, `FENCEPOST_LEASE_TTL is "10": write a duration such as "500ms", "10s" or "24h"`},
		{"short lease", map[string]string{"FENCEPOST_LEASE_TTL": "1ms"}, `FENCEPOST_LEASE_TTL is 1ms: set it to 100ms to 10m0s`},
		{"wait", map[string]string{"FENCEPOST_LOCK_WAIT": "15s"}, `FENCEPOST_LOCK_WAIT is 15s: set it to 1ms to 14s`},
		{"hold", map[string]string{"FENCEPOST_HOLD_TTL": "25h"}, `FENCEPOST_HOLD_TTL is 25h0m0s: set it to 1s to 24h0m0s`},
		{"longest hold", map[string]string{"FENCEPOST_MAX_HOLD_TTL": "0s"}, `FENCEPOST_MAX_HOLD_TTL is 0s: set it to 1s to 8760h0m0s`},
		{"instances", map[string]string{"FENCEPOST_INSTANCES": "http://a:1,b:2"}, `FENCEPOST_INSTANCES has an entry that is not a base URL: write http://HOST:PORT for each instance`},
		{"instances with a path", map[string]string{"FENCEPOST_INSTANCES": "http://a:1/v1"}, `FENCEPOST_INSTANCES has an entry that is not a base URL: write http://HOST:PORT for each instance`},
		{"shutdown", map[string]string{"FENCEPOST_SHUTDOWN_TIMEOUT": "-1s"}, `FENCEPOST_SHUTDOWN_TIMEOUT is -1s: set it to 1ms to 10m0s`},
		{"drain", map[string]string{"FENCEPOST_DRAIN_DELAY": "1h"}, `FENCEPOST_DRAIN_DELAY is 1h0m0s: set it to 0s to 1m0s`},
		{"audit", map[string]string{"FENCEPOST_AUDIT_INTERVAL": "-1s"}, `FENCEPOST_AUDIT_INTERVAL is -1s: set it to 0s to 24h0m0s`},
		{"demo", map[string]string{"FENCEPOST_DEMO": "yes"}, `FENCEPOST_DEMO is "yes": set it to on or off`},
		{"demo in production", map[string]string{"FENCEPOST_DEMO": "on"}, `FENCEPOST_DEMO is on and FENCEPOST_AUTH is keys: a demonstration breaks things on purpose; set FENCEPOST_DEMO=off, or FENCEPOST_AUTH=off`},
		{"demo on the network", map[string]string{"FENCEPOST_DEMO": "on", "FENCEPOST_AUTH": "off", "FENCEPOST_LISTEN": ":8080"}, `FENCEPOST_DEMO is on and FENCEPOST_LISTEN is :8080: whoever reached the page could end processes; set FENCEPOST_DEMO=off, or listen on 127.0.0.1`},
		{"demo on the network, with keys", map[string]string{"FENCEPOST_DEMO": "on", "FENCEPOST_LISTEN": "192.0.2.1:8080"}, `FENCEPOST_DEMO is on and FENCEPOST_LISTEN is 192.0.2.1:8080: `},
		{"laboratory without demo", map[string]string{"FENCEPOST_LAB_URL": "http://127.0.0.1:1"}, `FENCEPOST_LAB_URL is set and FENCEPOST_DEMO is not on: set FENCEPOST_DEMO=on, or leave it out`},
		{"laboratory", map[string]string{"FENCEPOST_DEMO": "on", "FENCEPOST_AUTH": "off", "FENCEPOST_LAB_URL": "lab:1"}, `FENCEPOST_LAB_URL has an entry that is not a base URL: write http://HOST:PORT`},
		{"log format", map[string]string{"FENCEPOST_LOG_FORMAT": "xml"}, `FENCEPOST_LOG_FORMAT is "xml": set it to text or json`},
		{"log level", map[string]string{"FENCEPOST_LOG_LEVEL": "loud"}, `FENCEPOST_LOG_LEVEL is "loud": set it to debug, info, warn or error`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := map[string]string{"FENCEPOST_DATABASE_URL": goodURL}
			for name, value := range tt.env {
				env[name] = value
			}
			code, stdout, stderr := runIn(t, env, "serve")
			assert.Equal(t, exitUsage, code)
			assert.Empty(t, stdout)
			assert.Equal(t, 1, strings.Count(stderr, "\n"), "one problem is one line: %s", stderr)
			assert.True(t, strings.HasPrefix(stderr, "fencepost: "+tt.want), stderr)
			assert.NotContains(t, stderr, "hunter2")
		})
	}
}

func TestServeListsAllProblems(t *testing.T) {
	_, _, stderr := runIn(t, map[string]string{"FENCEPOST_AUTH": "maybe", "FENCEPOST_LEASE_TTL": "soon", "FENCEPOST_LOG_FORMAT": "xml"}, "serve")
	assert.Equal(t, 4, strings.Count(stderr, "\n"), stderr)
	for _, name := range []string{"FENCEPOST_DATABASE_URL", "FENCEPOST_AUTH", "FENCEPOST_LEASE_TTL", "FENCEPOST_LOG_FORMAT"} {
		assert.Equal(t, 1, strings.Count(stderr, "fencepost: "+name+" "), stderr)
	}
}

func TestGoodConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "url")
	require.NoError(t, os.WriteFile(file, []byte(goodURL+"\n"), 0o600))
	code, stdout, stderr := runIn(t, map[string]string{
		"FENCEPOST_LISTEN":            "[::1]:0",
		"FENCEPOST_AUTH":              "off",
		"FENCEPOST_DATABASE_URL_FILE": file,
		"FENCEPOST_INVENTORY_LOCK":    "none",
		"FENCEPOST_COUPON_LOCK":       "redis",
		"FENCEPOST_FENCING":           "off",
		"FENCEPOST_REDIS_URL":         "rediss://:hunter2@redis.example:6380/1",
		"FENCEPOST_REDLOCK_URLS":      "redis://:hunter2@a:1, redis://b:2,redis://c:3,",
		"FENCEPOST_ZOOKEEPER_SERVERS": "a:2181,b:2181",
		"FENCEPOST_ZOOKEEPER_AUTH":    "fencepost:hunter2:hunter2",
		"FENCEPOST_OWNER_URL":         "postgres://db.example/fencepost?user=o&password=hunter2",
		"FENCEPOST_INSTANCES":         "http://127.0.0.1:8080, https://b.example/",
		"FENCEPOST_LOG_LEVEL":         "DEBUG",
	}, "config", "--lock-wait=1s")
	assert.Equal(t, exitOK, code)
	assert.Empty(t, stderr)
	assert.NotContains(t, stdout, "hunter2")
	for _, line := range []string{
		"FENCEPOST_DATABASE_URL=postgres://fencepost_service:xxxxx@db.example:5432/fencepost",
		"FENCEPOST_OWNER_URL=postgres://db.example/fencepost?password=xxxxx&user=o",
		"FENCEPOST_REDIS_URL=rediss://:xxxxx@redis.example:6380/1",
		"FENCEPOST_REDLOCK_URLS=redis://:xxxxx@a:1,redis://b:2,redis://c:3",
		"FENCEPOST_ZOOKEEPER_SERVERS=a:2181,b:2181",
		"FENCEPOST_ZOOKEEPER_AUTH=fencepost:xxxxx",
		"FENCEPOST_INSTANCES=http://127.0.0.1:8080,https://b.example/",
		"FENCEPOST_LOCK_WAIT=1s",
		"FENCEPOST_LEASE_TTL=10s",
	} {
		assert.Contains(t, stdout, line+"\n")
	}
}

func TestConfigShowsAllSentinels(t *testing.T) {
	_, stdout, stderr := runIn(t, map[string]string{
		"FENCEPOST_DATABASE_URL": goodURL,
		"FENCEPOST_REDIS_URL":    "rediss+sentinel://u:hunter2@a:1,b:2/m/1?sentinel_password=hunter2",
	}, "config")
	assert.Empty(t, stderr)
	assert.Contains(t, stdout, "FENCEPOST_REDIS_URL=rediss+sentinel://u:xxxxx@a:1,b:2/m/1?sentinel_password=xxxxx\n")
}

func TestConfigHidesWhatIsNoURL(t *testing.T) {
	for _, value := range []string{"host=db password=hunter2", "user:hunter2@db/x", "postgres://u:hunter2%@db"} {
		code, stdout, stderr := runIn(t, map[string]string{"FENCEPOST_DATABASE_URL": value}, "config")
		assert.Equal(t, exitUsage, code)
		assert.Contains(t, stdout, "FENCEPOST_DATABASE_URL=(hidden: not a URL)\n")
		assert.NotContains(t, stdout+stderr, "hunter2")
	}
}

func TestConfigHidesWhatIsNoPair(t *testing.T) {
	code, stdout, stderr := runIn(t, map[string]string{"FENCEPOST_DATABASE_URL": goodURL, "FENCEPOST_ZOOKEEPER_AUTH": "hunter2"}, "config")
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, stdout, "FENCEPOST_ZOOKEEPER_AUTH=(hidden: not a user and a password)\n")
	assert.NotContains(t, stdout+stderr, "hunter2")
}

func TestConfigurationVariables(t *testing.T) {
	names := configVariables()
	for _, name := range []string{"FENCEPOST_LISTEN", "FENCEPOST_DATABASE_URL", "FENCEPOST_DATABASE_URL_FILE", "FENCEPOST_LOG_LEVEL"} {
		assert.Contains(t, names, name)
	}
	_, stdout, _ := runIn(t, nil, "config")
	for _, name := range names {
		assert.True(t, strings.HasPrefix(name, "FENCEPOST_"), name)
		assert.Equal(t, 1, strings.Count("\n"+stdout, "\n"+name+"="), name)
	}
}

// A placeholder takes the default's place in the help, so the words have to give it.
func TestHelpTellsTheDefaults(t *testing.T) {
	for f := range reflect.TypeFor[Config]().Fields() {
		_, hidden := f.Tag.Lookup("placeholder")
		if _, given := f.Tag.Lookup("default"); given && hidden {
			assert.Contains(t, f.Tag.Get("help"), "(${default})", f.Name)
		}
	}
}

func TestServersThatDoNotAnswer(t *testing.T) {
	for _, args := range [][]string{{"serve"}, {"keys", "list"}} {
		code, _, stderr := runIn(t, map[string]string{"FENCEPOST_DATABASE_URL": deadURL}, args...)
		assert.Equal(t, exitFailed, code)
		assert.True(t, strings.HasPrefix(stderr, "fencepost: PostgreSQL at 127.0.0.1:1/fencepost does not answer: start it or correct FENCEPOST_DATABASE_URL ("), stderr)
		assert.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		assert.NotContains(t, stderr, "hunter2")
	}
	code, _, stderr := runIn(t, map[string]string{"FENCEPOST_OWNER_URL": deadURL}, "migrate")
	assert.Equal(t, exitFailed, code)
	assert.True(t, strings.HasPrefix(stderr, "fencepost: PostgreSQL at 127.0.0.1:1/fencepost, as FENCEPOST_OWNER_URL has it: "), stderr)
	assert.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	assert.NotContains(t, stderr, "hunter2")
}

func TestCommandLineThatIsWrong(t *testing.T) {
	for _, args := range [][]string{{}, {"unknown"}, {"serve", "--unknown"}, {"keys", "create", "--name=shop", "--role=god"}} {
		code, _, stderr := runIn(t, nil, args...)
		assert.Equal(t, exitUsage, code)
		assert.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	}
}

// Whatever stands around a password, it is not printed, also where it was not escaped.
func FuzzRedacted(f *testing.F) {
	for _, url := range []string{
		"postgres://u:@@db/x", "postgres://u:@@db:5432/x?sslmode=disable", "redis://:@@h:6379/0", "rediss://u:@@h,i/0", "redis://:1/2:@@h",
		"redis+sentinel://u:@@h:1,i:2/m", "postgres:u:@@", "host=db password=:@@", "://u:@@", "postgres://u:%:@@h/", "//u:@@h",
		"postgres://u:p?:@@h/x", "postgres://u:1#:@@h/x", "postgres://u:p@h/x?a;:@@",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, form string) {
		url := strings.ReplaceAll(form, ":@@", ":Canary7secret@")
		if shown := redacted(url) + address(url); url != form && strings.Contains(shown, "Canary7secret") {
			t.Errorf("%q is shown as %q", url, shown)
		}
	})
}
