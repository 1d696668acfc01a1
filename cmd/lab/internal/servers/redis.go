package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

// redis returns the servers that Redlock uses; the first of them is also the single Redis, unless another was given
// as that.
func (l *Lab) redis(ctx context.Context) ([]*Server, error) {
	single, five := l.getenv(redisURL), l.getenv(redlockURLs)
	var servers []*Server
	if single != "" {
		s, err := givenRedis(ctx, redisURL, single)
		if err != nil {
			return nil, err
		}
		s.Name = Redis
		s.env = []string{redisURL + "=" + single}
		servers = append(servers, s)
	}
	var masters []*Server
	var err error
	if five != "" {
		masters, err = givenMasters(ctx, five)
	} else {
		masters, err = l.privateRedis(ctx)
	}
	if err != nil {
		return nil, err
	}
	if urls := masterURLs(masters, five); urls != "" {
		masters[0].env = []string{redlockURLs + "=" + urls}
		if single == "" {
			first, _, _ := strings.Cut(urls, ",")
			masters[0].env = append(masters[0].env, redisURL+"="+first)
		}
	}
	return append(servers, masters...), nil
}

// masterURLs returns the value of the Redlock variable, or "" when the servers are unavailable.
func masterURLs(masters []*Server, given string) string {
	if given != "" {
		return given
	}
	var urls []string
	for _, s := range masters {
		if s.Address != "" {
			urls = append(urls, "redis://"+s.Address+"/0")
		}
	}
	return strings.Join(urls, ",")
}

func givenMasters(ctx context.Context, urls string) ([]*Server, error) {
	var servers []*Server
	for i, u := range strings.Split(urls, ",") {
		s, err := givenRedis(ctx, redlockURLs, strings.TrimSpace(u))
		if err != nil {
			return nil, err
		}
		s.Name = redisName(i)
		servers = append(servers, s)
	}
	return servers, nil
}

func givenRedis(ctx context.Context, variable, address string) (*Server, error) {
	fix := "start that server, or unset " + variable + " for a private one"
	options, err := redis.ParseURL(address)
	if err != nil {
		// The error may repeat the address, and with it a password.
		return nil, fmt.Errorf("%s: not an address like redis://127.0.0.1:6379/0: correct it, or unset it for a private one",
			variable)
	}
	info, err := redisInfo(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("%s: %s does not answer: %w: %s", variable, options.Addr, err, fix)
	}
	return &Server{Version: info["redis_version"], Address: options.Addr, Source: "given", Detail: variable}, nil
}

func (l *Lab) privateRedis(ctx context.Context) ([]*Server, error) {
	missing := l.redisServer() == ""
	servers := make([]*Server, redisCount)
	group, ctx := errgroup.WithContext(ctx)
	for i := range servers {
		if missing {
			servers[i] = &Server{Name: redisName(i), Source: "unavailable", Detail: mend}
			continue
		}
		group.Go(func() error {
			var err error
			lines := redisKeeps()
			if l.options.RedisAppendOnly {
				lines = append(lines, "appendonly yes", "appendfsync always")
			}
			servers[i], err = l.launchRedis(ctx, redisName(i), lines)
			return err
		})
	}
	return servers, group.Wait()
}

func (l *Lab) redisServer() string { return l.find("redis-server", "opt/redis/bin/redis-server") }

// launchRedis starts a server with these lines in its configuration, besides those that every one has. args follow the name
// of the configuration's file.
func (l *Lab) launchRedis(ctx context.Context, name string, lines []string, args ...string) (*Server, error) {
	program := l.redisServer()
	dir, err := l.privateDir(name)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "redis.conf")
	version := ""
	process, port, err := l.launchOnFreePort(ctx, func(port int) (Command, error) {
		all := append([]string{fmt.Sprintf("port %d", port), "bind 127.0.0.1", "dir " + dir}, lines...)
		return Command{
			Name: name, Path: program, Args: append([]string{config}, args...), Env: serverEnv(dir),
			Ready: func(ctx context.Context) error {
				info, err := redisInfo(ctx, &redis.Options{Addr: loopback(port)})
				if err == nil && info["config_file"] != config {
					err = fmt.Errorf("another Redis has taken port %d", port)
				}
				version = info["redis_version"]
				return err
			},
		}, l.writeConfig(config, all)
	})
	if err != nil {
		return nil, err
	}
	return &Server{
		Name: name, Version: version, Address: loopback(port), Source: "private", Detail: filepath.Dir(program),
		Process: process,
	}, nil
}

// redisKeeps are the lines of a server that holds locks. One that is evicted under memory pressure is a lock given twice.
func redisKeeps() []string { return []string{`save ""`, "maxmemory-policy noeviction"} }

func redisName(i int) string { return fmt.Sprintf("%s-%d", Redis, i+1) }

// redisInfo asks a server who it is.
func redisInfo(ctx context.Context, options *redis.Options) (map[string]string, error) {
	// The client writes to the standard logger about each failed connection; a plain one fails in silence.
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", options.Addr)
	if err != nil {
		return nil, err
	}
	if err := conn.Close(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	options.MaxRetries = -1
	options.ContextTimeoutEnabled = true
	options.DialTimeout = probeTimeout
	options.ReadTimeout = time.Second
	client := redis.NewClient(options)
	text, err := client.Info(ctx, "server").Result()
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[key] = value
		}
	}
	return info, errors.Join(err, client.Close())
}
