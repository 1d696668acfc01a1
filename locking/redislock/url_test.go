package redislock

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestURLs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ raw, shown string }{
		{"redis://h", "h:6379"},
		{"redis://u:secret@h:1/2", "h:1"},
		{"rediss://[::1]:1?skip_verify=true&pool_size=7", "[::1]:1"},
		{"redis+sentinel://u:secret@h:1,i:2/m", "h:1,i:2/m"},
		{"redis+sentinel://h:1/m/3?sentinel_username=s&sentinel_password=secret", "h:1/m"},
		{"rediss+cluster://u:secret@h:1,i:2", "h:1,i:2"},
		{"redis+cluster://h:1/0", "h:1"},
	} {
		o, err := parseURL(test.raw)
		require.NoError(t, err, test.raw)
		require.Equal(t, test.shown, shown(o), test.raw)
	}

	o, err := parseURL("rediss+sentinel://u:p%40@h:1,i:2/m/3?sentinel_username=s&sentinel_password=q&pool_size=7")
	require.NoError(t, err)
	require.Equal(t, []string{"u", "p@", "s", "q", "m"}, []string{o.Username, o.Password, o.SentinelUsername, o.SentinelPassword, o.MasterName})
	require.Equal(t, []int{3, 7}, []int{o.DB, o.PoolSize})
	require.False(t, o.IsClusterMode)
	require.Empty(t, o.TLSConfig.ServerName, "each host is known by its own name")
	o, err = parseURL("redis+cluster://h:1")
	require.NoError(t, err)
	require.True(t, o.IsClusterMode, "also when one node is named")
	require.Nil(t, o.TLSConfig)
}

// What is wrong is said without the password.
func TestURLsThatAreWrong(t *testing.T) {
	t.Parallel()
	for raw, says := range map[string]string{
		"h:6379":                                "is not a URL: write redis://",
		"redis://u:secret%@h":                   "is not a URL: write redis://",
		"http://u:secret@h":                     "is not a URL: write redis://",
		"redis+://u:secret@h":                   "is not a URL: write redis://",
		"redis+ring://u:secret@h":               "is not a URL: write redis://",
		"redis:u:secret@h":                      "is not a URL: write redis://",
		"redis://u:1/secret@h":                  "is not a URL: write redis://",
		"redis://u:1?secret@h":                  "is not a URL: write redis://",
		"redis:///0?password=secret":            "is not a URL: write redis://",
		"redis://u:secret@h:1,i:2":              "names several servers: write redis+sentinel://… or redis+cluster://…",
		"rediss+sentinel://u:secret@h:1":        "names no master: write rediss+sentinel://HOST:PORT,HOST:PORT/MASTER",
		"redis+sentinel://u:secret@h,i:2/m":     "names a server without its port: write redis+sentinel://HOST:PORT,HOST:PORT",
		"redis+cluster://u:secret@h,i:1/0":      "names a server without its port: write redis+cluster://HOST:PORT,HOST:PORT",
		"redis+cluster://u:secret@h:1/3":        "names a database, and a Redis Cluster has only one: write nothing after the servers",
		"redis://u:secret@h/x":                  `cannot be used: redis: invalid database number: "x"`,
		"redis+sentinel://u:secret@h:1/m/n":     `cannot be used: redis: invalid database number: "n"`,
		"redis://h?password=secret":             `has the option "password", which is not known: leave it out`,
		"redis+cluster://h:1?read_only=true":    `has the option "read_only", which is not known: leave it out`,
		"redis://u:secret@h?max_retries=3":      `has the option "max_retries", which is not known: leave it out`,
		"redis+cluster://h:1?sentinel_password": `has the option "sentinel_password", which is not known: leave it out`,
	} {
		err := CheckURL(raw)
		require.ErrorContains(t, err, says, raw)
		require.NotContains(t, err.Error(), "secret", raw)
	}
}

// Whatever stands around a password, what is wrong is said without it, also where it was not escaped.
func FuzzURLs(f *testing.F) {
	for _, url := range []string{
		"redis://u:@@h:1/0", "redis://u:1/:@@h", "redis://u:1?:@@h", "redis://u:1#:@@h", "redis://u:1?a=:@@h", "rediss+sentinel://u:@@h:1/m?sentinel_password=:@@",
		"redis+sentinel://u:1/m/:@@h", "redis+cluster://u:@@h:1,i", "redis+x://u:@@h", "redis://h:1?pool_size=:@@", "redis://h:1/0?skip_verify=:@@",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, form string) {
		url := strings.ReplaceAll(form, ":@@", ":Canary7secret@")
		o, err := parseURL(url)
		said := ""
		if err != nil {
			said = err.Error()
		} else if o.Password == "Canary7secret" || o.SentinelPassword != "" {
			said = shown(o)
		}
		if url != form && strings.Contains(said, "Canary7secret") {
			t.Errorf("%q: %s", url, said)
		}
	})
}
