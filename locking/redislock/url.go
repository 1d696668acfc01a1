package redislock

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Forms are the ways to write where the strategy redis finds its servers. User and password are those of the Redis servers
// in all of them; for Sentinels with others, there are the options sentinel_username and sentinel_password.
const Forms = "redis://USER:PASSWORD@HOST:PORT/NUMBER, redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/MASTER or redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT"

// errNoURL does not repeat the text, nor what url.Parse says of it: there may be a password in it.
var errNoURL = errors.New("is not a URL: write " + Forms + ", with special characters of the password escaped (%40 for @)")

// CheckURL returns what is wrong with a URL of the strategy redis, to be read after the name of what has been set to it.
func CheckURL(raw string) error {
	_, err := parseURL(raw)
	return err
}

// parseURL reads one of the Forms. With rediss instead of redis, every connection is encrypted.
func parseURL(raw string) (*redis.UniversalOptions, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" || u.Host == "" || strings.Contains(u.EscapedPath()+u.RawQuery+u.Fragment, "@") {
		return nil, errNoURL // an @ that late ends a password that was cut by its own / or ? or #, and would be repeated in part
	}
	scheme, _, _ := strings.Cut(u.Scheme, "+")
	kind := strings.TrimPrefix(u.Scheme, scheme)
	if scheme != "redis" && scheme != "rediss" {
		return nil, errNoURL
	}
	o := &redis.UniversalOptions{Addrs: strings.Split(u.Host, ",")}
	database, query := strings.Trim(u.Path, "/"), u.Query()
	switch {
	case kind == "" && len(o.Addrs) > 1:
		return nil, fmt.Errorf("names several servers: write %s+sentinel://… or %s+cluster://…", scheme, scheme)
	case kind == "":
	case kind == "+sentinel":
		if o.MasterName, database, _ = strings.Cut(database, "/"); o.MasterName == "" {
			return nil, fmt.Errorf("names no master: write %s://HOST:PORT,HOST:PORT/MASTER", u.Scheme)
		}
		o.SentinelUsername, o.SentinelPassword = query.Get("sentinel_username"), query.Get("sentinel_password")
		query.Del("sentinel_username")
		query.Del("sentinel_password")
	case kind == "+cluster":
		if o.IsClusterMode = true; database != "" && database != "0" {
			return nil, errors.New("names a database, and a Redis Cluster has only one: write nothing after the servers")
		}
	default:
		return nil, errNoURL
	}
	if kind != "" {
		for _, addr := range o.Addrs {
			if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
				return nil, fmt.Errorf("names a server without its port: write %s://HOST:PORT,HOST:PORT", u.Scheme)
			}
		}
	}
	for name := range query {
		if name != "pool_size" && name != "skip_verify" {
			return nil, fmt.Errorf("has the option %q, which is not known: leave it out", name)
		}
	}
	simple, err := redis.ParseURL((&url.URL{
		Scheme: scheme, User: u.User, Host: o.Addrs[0], Path: "/" + database, RawQuery: query.Encode(),
	}).String())
	if err != nil {
		return nil, fmt.Errorf("cannot be used: %w", err)
	}
	if kind == "" {
		o.Addrs[0] = simple.Addr // with the usual port, if none was named
	}
	o.Username, o.Password, o.DB, o.PoolSize = simple.Username, simple.Password, simple.DB, simple.PoolSize
	if o.TLSConfig = simple.TLSConfig; o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // the first one's, and each is to be known by its own
	}
	return o, nil
}

// shown is where the options lead, without who goes there.
func shown(o *redis.UniversalOptions) string {
	where := strings.Join(o.Addrs, ",")
	if o.MasterName != "" {
		where += "/" + o.MasterName
	}
	return where
}
