package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"fencepost/domain"
	"fencepost/locking/strategies"
	"fencepost/locking/zklock"
)

// Config is the whole configuration. Each field is an environment variable and a flag. Fields with the tag secret are
// printed without their passwords, which are in a URL or, if the tag says pair, behind a user's name; each of them can also
// come from a file, as secret stores hand them out.
type Config struct {
	Listen string `env:"FENCEPOST_LISTEN" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Where to listen (${default})."`

	TLSCertFile string `name:"tls-cert-file" env:"FENCEPOST_TLS_CERT_FILE" placeholder:"FILE" help:"The listener's certificate and those that lead to its authority, as PEM. With it the listener speaks HTTPS alone. Read anew when it changes."`
	TLSKeyFile  string `name:"tls-key-file" env:"FENCEPOST_TLS_KEY_FILE" placeholder:"FILE" help:"The certificate's private key, as PEM."`

	DatabaseURL     string `env:"FENCEPOST_DATABASE_URL" secret:"" placeholder:"URL" help:"PostgreSQL, as the service's role: postgres://fencepost_service:PASSWORD@HOST:5432/DATABASE."`
	DatabaseURLFile string `env:"FENCEPOST_DATABASE_URL_FILE" placeholder:"FILE" help:"A file with FENCEPOST_DATABASE_URL in it."`
	DatabaseConns   int    `env:"FENCEPOST_DATABASE_CONNS" default:"16" placeholder:"N" help:"The most connections to PostgreSQL (${default})."`
	OwnerURL        string `env:"FENCEPOST_OWNER_URL" secret:"" placeholder:"URL" help:"PostgreSQL, as the owner of the schema; for migrate alone."`
	OwnerURLFile    string `env:"FENCEPOST_OWNER_URL_FILE" placeholder:"FILE" help:"A file with FENCEPOST_OWNER_URL in it."`

	Auth string `env:"FENCEPOST_AUTH" default:"keys" placeholder:"keys|off" help:"Whether callers need a key (${default}). Off makes every caller an admin, and starts on a loopback address only."`

	RateLimit      int `env:"FENCEPOST_RATE_LIMIT" default:"60000" placeholder:"N" help:"How many requests a caller may make in a minute, over all instances (${default}); 0 is no limit."`
	AdminRateLimit int `env:"FENCEPOST_ADMIN_RATE_LIMIT" default:"0" placeholder:"N" help:"The same for admins (${default})."`
	MaxOpenHolds   int `env:"FENCEPOST_MAX_OPEN_HOLDS" default:"10000" placeholder:"N" help:"How many reservations a caller who is no admin may hold at a time (${default}); 0 is no limit."`
	CouponGuesses  int `env:"FENCEPOST_COUPON_GUESSES" default:"5" placeholder:"N" help:"How many coupon codes a caller who is no admin may try in vain in a minute (${default}); 0 is no limit."`

	InventoryLock string `env:"FENCEPOST_INVENTORY_LOCK" default:"postgres" placeholder:"STRATEGY" help:"The lock strategy of items that have none of their own (${default})."`
	CouponLock    string `env:"FENCEPOST_COUPON_LOCK" default:"postgres" placeholder:"STRATEGY" help:"The lock strategy of coupons that have none of their own (${default})."`
	Fencing       string `env:"FENCEPOST_FENCING" default:"enforced" placeholder:"enforced|off" help:"Whether PostgreSQL refuses stale writes to new resources that do not say (${default}). Off is for demonstrations."`

	RedisURL          string   `env:"FENCEPOST_REDIS_URL" secret:"" placeholder:"URL" help:"The Redis of the strategy redis: redis://HOST:6379, redis+sentinel://HOST:26379,HOST:26379/MASTER or redis+cluster://HOST:6379,HOST:6379."`
	RedisURLFile      string   `env:"FENCEPOST_REDIS_URL_FILE" placeholder:"FILE" help:"A file with FENCEPOST_REDIS_URL in it."`
	RedlockURLs       []string `name:"redlock-urls" env:"FENCEPOST_REDLOCK_URLS" secret:"" placeholder:"URL,URL" help:"The independent Redis masters of the strategy redlock."`
	RedlockURLsFile   string   `name:"redlock-urls-file" env:"FENCEPOST_REDLOCK_URLS_FILE" placeholder:"FILE" help:"A file with FENCEPOST_REDLOCK_URLS in it."`
	ZooKeeperServers  []string `name:"zookeeper-servers" env:"FENCEPOST_ZOOKEEPER_SERVERS" placeholder:"HOST:PORT,HOST:PORT" help:"The ensemble of the strategy zookeeper; tls://HOST:PORT for a server that speaks TLS."`
	ZooKeeperAuth     string   `name:"zookeeper-auth" env:"FENCEPOST_ZOOKEEPER_AUTH" secret:"pair" placeholder:"USER:PASSWORD" help:"Whom the nodes in ZooKeeper belong to. Without it, they are open to all who reach it."`
	ZooKeeperAuthFile string   `name:"zookeeper-auth-file" env:"FENCEPOST_ZOOKEEPER_AUTH_FILE" placeholder:"FILE" help:"A file with FENCEPOST_ZOOKEEPER_AUTH in it."`

	LeaseTTL    time.Duration `env:"FENCEPOST_LEASE_TTL" default:"10s" help:"How long a lease lives when its holder is not heard of."`
	LockWait    time.Duration `env:"FENCEPOST_LOCK_WAIT" default:"5s" help:"The longest wait for a lock."`
	MaxBatch    int           `env:"FENCEPOST_MAX_BATCH" default:"256" placeholder:"N" help:"How many requests for one resource may share a lock and a transaction (${default}); 1 is a lock and a transaction for each."`
	MaxQueue    int           `env:"FENCEPOST_MAX_QUEUE" default:"2000" placeholder:"N" help:"How many requests may wait in this instance for one resource (${default}). Beyond it they are refused at once, with 503 queue_full."`
	MaxRequests int           `env:"FENCEPOST_MAX_REQUESTS" default:"4096" placeholder:"N" help:"How many requests may be under way in this instance, those that wait for a lock included (${default}). Beyond it they are refused at once, with 503 overloaded."`
	HoldTTL     time.Duration `env:"FENCEPOST_HOLD_TTL" default:"10m" help:"How long a reservation holds stock when the request does not say."`
	MaxHoldTTL  time.Duration `env:"FENCEPOST_MAX_HOLD_TTL" default:"24h" help:"The longest hold that a request may ask for."`

	SweepInterval time.Duration `env:"FENCEPOST_SWEEP_INTERVAL" default:"1s" help:"How often to look for holds that have expired (${default})."`
	AnswerTTL     time.Duration `env:"FENCEPOST_ANSWER_TTL" default:"24h" help:"How long the answer to a request with an Idempotency-Key can be had again (${default}). The request is never carried out again."`

	ReviewTime time.Duration `env:"FENCEPOST_REVIEW_TIME" default:"0s" help:"How long a simulated fraud check takes while the lock is held, between read and write. For demonstrations; 0 is none. Under postgres PostgreSQL ends the transaction after 5s."`

	Demo   string `env:"FENCEPOST_DEMO" default:"off" placeholder:"off|on" help:"Whether the page may pause, switch and break things (${default}). On needs FENCEPOST_AUTH=off, and with that a loopback address; there is no way to open it to a network."`
	LabURL string `name:"lab-url" env:"FENCEPOST_LAB_URL" placeholder:"URL" help:"The laboratory that runs the servers and does the faults of the demonstration."`

	Instances       []string      `env:"FENCEPOST_INSTANCES" placeholder:"URL,URL" help:"Base URLs of all instances: a page that one of them served may call the others."`
	DrainDelay      time.Duration `env:"FENCEPOST_DRAIN_DELAY" default:"1s" help:"How long /readyz says no before the service stops listening."`
	ShutdownTimeout time.Duration `env:"FENCEPOST_SHUTDOWN_TIMEOUT" default:"40s" help:"How long requests may take to finish after SIGTERM. The longest there can be is one whose COMMIT gets no answer."`
	AuditInterval   time.Duration `env:"FENCEPOST_AUDIT_INTERVAL" default:"1m" help:"How long after the last time the metrics of the database are brought up to date, among them what is oversold; 0 is never."`
	LogFormat       string        `env:"FENCEPOST_LOG_FORMAT" default:"text" placeholder:"text|json" help:"The form of the log (${default})."`
	LogLevel        string        `env:"FENCEPOST_LOG_LEVEL" default:"info" placeholder:"LEVEL" help:"The least important lines to log: debug, info, warn or error (${default})."`

	problems configError // found while reading; complete after one of the check methods
}

// requestTimeout is the longest that a request may take. It is less than the server's write time-out, so that there is time
// left to say so.
const requestTimeout = 15 * time.Second

// configError is everything that is wrong with the configuration, one line each.
type configError []string

func (e configError) Error() string { return strings.Join(e, "\n") }

func (c *Config) problem(variable, format string, args ...any) {
	line := variable + " " + fmt.Sprintf(format, args...)
	if !slices.Contains(c.problems, line) { // kong reads a value more than once
		c.problems = append(c.problems, line)
	}
}

// unreadable tells whether the variable has no value that could be checked further.
func (c *Config) unreadable(variable string) bool {
	return slices.ContainsFunc(c.problems, func(line string) bool { return strings.HasPrefix(line, variable+" ") })
}

func (c *Config) result() error {
	if len(c.problems) > 0 {
		return c.problems
	}
	return nil
}

// lenientMappers have kong note a number or a duration that it cannot read, where it would give up at the first.
func (c *Config) lenientMappers() kong.Option {
	mapper := func(read func(string) (int64, error), fix string) kong.MapperFunc {
		return func(ctx *kong.DecodeContext, target reflect.Value) error {
			var text string
			if err := ctx.Scan.PopValueInto("value", &text); err != nil {
				return err
			}
			n, err := read(text)
			if err != nil {
				c.problem(ctx.Value.Tag.Envs[0], "is %q: %s", text, fix)
				return nil
			}
			target.SetInt(n)
			return nil
		}
	}
	duration := func(s string) (int64, error) { d, err := time.ParseDuration(s); return int64(d), err }
	number := func(s string) (int64, error) { n, err := strconv.Atoi(s); return int64(n), err }
	return kong.OptionFunc(func(k *kong.Kong) error {
		return errors.Join(
			kong.TypeMapper(reflect.TypeFor[time.Duration](), mapper(duration, `write a duration such as "500ms", "10s" or "24h"`)).Apply(k),
			kong.KindMapper(reflect.Int, mapper(number, "write a whole number")).Apply(k),
		)
	})
}

// checkOwner checks what migrate needs.
func (c *Config) checkOwner() error {
	c.readFile("FENCEPOST_OWNER_URL", &c.OwnerURL, c.OwnerURLFile)
	c.checkURL("FENCEPOST_OWNER_URL", c.OwnerURL, postgresSchemes)
	return c.result()
}

// checkDatabase checks what the commands need that only use the database.
func (c *Config) checkDatabase() error {
	c.readFile("FENCEPOST_DATABASE_URL", &c.DatabaseURL, c.DatabaseURLFile)
	c.checkURL("FENCEPOST_DATABASE_URL", c.DatabaseURL, postgresSchemes)
	return c.result()
}

// checkAll checks what the service needs: everything but the owner's URL, which it should better not have.
func (c *Config) checkAll() error {
	loopback := c.checkListen()
	c.checkCertificate()
	_ = c.checkDatabase() // its problems are in c
	c.checkRange("FENCEPOST_DATABASE_CONNS", c.DatabaseConns, 1, 1000)
	c.checkOneOf("FENCEPOST_AUTH", c.Auth, "keys", "off")
	if c.Auth == "off" && c.Demo != "on" && !loopback && !c.unreadable("FENCEPOST_LISTEN") { // checkDemo has its own words
		c.problem("FENCEPOST_AUTH", "is off and FENCEPOST_LISTEN is %s: anybody could be an admin; set FENCEPOST_AUTH=keys, or listen on 127.0.0.1", c.Listen)
	}

	c.checkRange("FENCEPOST_RATE_LIMIT", c.RateLimit, 0, 1_000_000_000)
	c.checkRange("FENCEPOST_ADMIN_RATE_LIMIT", c.AdminRateLimit, 0, 1_000_000_000)
	c.checkRange("FENCEPOST_MAX_OPEN_HOLDS", c.MaxOpenHolds, 0, 1_000_000_000)
	c.checkRange("FENCEPOST_COUPON_GUESSES", c.CouponGuesses, 0, 1_000_000)

	c.readFile("FENCEPOST_REDIS_URL", &c.RedisURL, c.RedisURLFile)
	if c.RedisURL != "" && !c.unreadable("FENCEPOST_REDIS_URL_FILE") {
		if err := strategies.CheckRedisURL(c.RedisURL); err != nil {
			c.problem("FENCEPOST_REDIS_URL", "%v", err)
		}
	}
	redlock := strings.Join(c.RedlockURLs, ",")
	c.readFile("FENCEPOST_REDLOCK_URLS", &redlock, c.RedlockURLsFile)
	c.RedlockURLs = list(redlock)
	for _, u := range c.RedlockURLs {
		c.checkURL("FENCEPOST_REDLOCK_URLS", u, redisSchemes)
	}
	if n := len(c.RedlockURLs); n > 0 && (n < 3 || n%2 == 0) && !c.unreadable("FENCEPOST_REDLOCK_URLS") {
		c.problem("FENCEPOST_REDLOCK_URLS", "names %d: name three, five or another odd number of independent masters", n)
	}
	c.ZooKeeperServers = list(strings.Join(c.ZooKeeperServers, ","))
	for _, s := range c.ZooKeeperServers {
		if strings.Contains(strings.TrimPrefix(s, zklock.TLS), "/") { // as other clients allow at the end of the list
			c.problem("FENCEPOST_ZOOKEEPER_SERVERS", "has a path in %q: write HOST:PORT; the nodes are always below /fencepost", s)
			continue
		}
		c.checkHostPort("FENCEPOST_ZOOKEEPER_SERVERS", strings.TrimPrefix(s, zklock.TLS), 1)
	}
	c.readFile("FENCEPOST_ZOOKEEPER_AUTH", &c.ZooKeeperAuth, c.ZooKeeperAuthFile)
	c.checkPair("FENCEPOST_ZOOKEEPER_AUTH", c.ZooKeeperAuth)

	c.checkOneOf("FENCEPOST_FENCING", c.Fencing, string(domain.FencingEnforced), string(domain.FencingOff))
	c.checkStrategy("FENCEPOST_INVENTORY_LOCK", c.InventoryLock)
	c.checkStrategy("FENCEPOST_COUPON_LOCK", c.CouponLock)

	c.checkDuration("FENCEPOST_LEASE_TTL", c.LeaseTTL, 100*time.Millisecond, 10*time.Minute)
	c.checkDuration("FENCEPOST_LOCK_WAIT", c.LockWait, time.Millisecond, requestTimeout-time.Second)
	c.checkRange("FENCEPOST_MAX_BATCH", c.MaxBatch, 1, 10_000)
	c.checkRange("FENCEPOST_MAX_REQUESTS", c.MaxRequests, 1, 1_000_000)
	c.checkRange("FENCEPOST_MAX_QUEUE", c.MaxQueue, 1, 1_000_000)
	c.checkDuration("FENCEPOST_MAX_HOLD_TTL", c.MaxHoldTTL, time.Second, 365*24*time.Hour)
	if !c.unreadable("FENCEPOST_MAX_HOLD_TTL") {
		c.checkDuration("FENCEPOST_HOLD_TTL", c.HoldTTL, time.Second, c.MaxHoldTTL)
	}
	c.checkDuration("FENCEPOST_SWEEP_INTERVAL", c.SweepInterval, 10*time.Millisecond, time.Minute)
	c.checkDuration("FENCEPOST_ANSWER_TTL", c.AnswerTTL, time.Minute, 10*365*24*time.Hour)
	c.checkDuration("FENCEPOST_REVIEW_TIME", c.ReviewTime, 0, 10*time.Second)
	c.checkDuration("FENCEPOST_SHUTDOWN_TIMEOUT", c.ShutdownTimeout, time.Millisecond, 10*time.Minute)
	c.checkDuration("FENCEPOST_AUDIT_INTERVAL", c.AuditInterval, 0, 24*time.Hour)
	c.checkDuration("FENCEPOST_DRAIN_DELAY", c.DrainDelay, 0, time.Minute)

	c.checkDemo(loopback)
	c.Instances = list(strings.Join(c.Instances, ","))
	for _, u := range c.Instances {
		c.checkBaseURL("FENCEPOST_INSTANCES", u)
	}
	c.checkOneOf("FENCEPOST_LOG_FORMAT", c.LogFormat, "text", "json")
	var level slog.Level
	if level.UnmarshalText([]byte(c.LogLevel)) != nil {
		c.problem("FENCEPOST_LOG_LEVEL", "is %q: set it to debug, info, warn or error", c.LogLevel)
	}
	return c.result()
}

// list splits at commas and forgives spaces and a comma too many.
func list(text string) []string {
	var parts []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

// readFile replaces an empty value by what the file says, if one is named.
func (c *Config) readFile(variable string, value *string, file string) {
	if file == "" {
		return
	}
	if *value != "" {
		c.problem(variable+"_FILE", "and %s are both set: set one of them", variable)
		return
	}
	content, err := os.ReadFile(file)
	if err != nil {
		c.problem(variable+"_FILE", "cannot be read: %v", err)
		return
	}
	*value = strings.TrimSpace(string(content))
}

func (c *Config) checkOneOf(variable, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		c.problem(variable, "is %q: set it to %s", value, strings.Join(allowed, " or "))
	}
}

func (c *Config) checkRange(variable string, n, least, most int) {
	if !c.unreadable(variable) && (n < least || n > most) {
		c.problem(variable, "is %d: set it to %d to %d", n, least, most)
	}
}

func (c *Config) checkDuration(variable string, d, least, most time.Duration) {
	if !c.unreadable(variable) && (d < least || d > most) {
		c.problem(variable, "is %s: set it to %s to %s", d, least, most)
	}
}

func (c *Config) checkStrategy(variable, strategy string) {
	switch row, known := strategies.Find(strategy); {
	case !known:
		c.problem(variable, "is %q, which is no strategy: set it to one of %s", strategy, strings.Join(strategies.Names(), ", "))
	case !row.Traits.Fences && c.Fencing == string(domain.FencingEnforced):
		c.problem(variable, "is %s, which issues no fencing tokens: set FENCEPOST_FENCING=off as well, or another strategy", strategy)
	case strategy == "redlock" && len(c.RedlockURLs) == 0 && !c.unreadable("FENCEPOST_REDLOCK_URLS_FILE"):
		c.problem(variable, "is redlock: set FENCEPOST_REDLOCK_URLS to its servers")
	case strategy == "redis" && c.RedisURL == "" && !c.unreadable("FENCEPOST_REDIS_URL_FILE"):
		c.problem(variable, "is redis: set FENCEPOST_REDIS_URL to its server")
	case strategy == "zookeeper" && len(c.ZooKeeperServers) == 0:
		c.problem(variable, "is zookeeper: set FENCEPOST_ZOOKEEPER_SERVERS to its ensemble")
	}
}

func (c *Config) checkListen() (loopback bool) {
	if !c.checkHostPort("FENCEPOST_LISTEN", c.Listen, 0) {
		return false
	}
	host, _, _ := net.SplitHostPort(c.Listen)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// checkDemo keeps the demonstration out of production and off the network: where there are keys, nobody may break servers, whoever
// he is, and where there are none, nobody from elsewhere may.
func (c *Config) checkDemo(loopback bool) {
	c.checkOneOf("FENCEPOST_DEMO", c.Demo, "on", "off")
	switch {
	case c.Demo != "on":
	case !loopback && !c.unreadable("FENCEPOST_LISTEN"):
		c.problem("FENCEPOST_DEMO", "is on and FENCEPOST_LISTEN is %s: whoever reached the page could end processes; set FENCEPOST_DEMO=off, or listen on 127.0.0.1", c.Listen)
	case c.Auth != "off":
		c.problem("FENCEPOST_DEMO", "is on and FENCEPOST_AUTH is %s: a demonstration breaks things on purpose; set FENCEPOST_DEMO=off, or FENCEPOST_AUTH=off", c.Auth)
	}
	if c.LabURL == "" {
		return
	}
	if c.Demo != "on" {
		c.problem("FENCEPOST_LAB_URL", "is set and FENCEPOST_DEMO is not on: set FENCEPOST_DEMO=on, or leave it out")
	}
	c.checkBaseURL("FENCEPOST_LAB_URL", c.LabURL)
}

func (c *Config) checkCertificate() {
	switch {
	case c.TLSCertFile == "" && c.TLSKeyFile == "":
	case c.TLSCertFile == "" || c.TLSKeyFile == "":
		c.problem("FENCEPOST_TLS_CERT_FILE", "and FENCEPOST_TLS_KEY_FILE belong together: set both or neither")
	default:
		if _, err := loadCertificate(c.TLSCertFile, c.TLSKeyFile, slog.New(slog.DiscardHandler)); err != nil {
			c.problem("FENCEPOST_TLS_CERT_FILE", "cannot be used: %v", err)
		}
	}
}

// checkHostPort checks an address; leastPort is 0 where the system may choose one.
func (c *Config) checkHostPort(variable, value string, leastPort int) bool {
	host, port, err := net.SplitHostPort(value)
	n, numberErr := strconv.Atoi(port)
	if err != nil || numberErr != nil || n < leastPort || n > math.MaxUint16 || leastPort > 0 && host == "" {
		c.problem(variable, "is %q: write HOST:PORT", value)
		return false
	}
	return true
}

var (
	postgresSchemes = []string{"postgres", "postgresql"}
	redisSchemes    = []string{"redis", "rediss"}
)

// checkURL never repeats the value, nor what url.Parse says of it: there may be a password in it.
func (c *Config) checkURL(variable, value string, schemes []string) {
	switch {
	case c.unreadable(variable), c.unreadable(variable + "_FILE"):
	case value == "":
		c.problem(variable, "is not set: set it to a URL like %s://USER:PASSWORD@HOST:PORT/NAME", schemes[0])
	default:
		u, err := url.Parse(value)
		if err != nil || !slices.Contains(schemes, u.Scheme) || u.Opaque != "" || u.Host == "" && u.Query().Get("host") == "" {
			c.problem(variable, "is not a URL: write %s://USER:PASSWORD@HOST:PORT/NAME, with special characters of the password escaped (%%40 for @)", schemes[0])
		}
	}
}

// checkPair never repeats the value, as there is a password in it.
func (c *Config) checkPair(variable, value string) {
	user, password, _ := strings.Cut(value, ":")
	if value != "" && (user == "" || password == "") {
		c.problem(variable, "is not a user and a password: write USER:PASSWORD")
	}
}

func (c *Config) checkBaseURL(variable, value string) {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Opaque != "" ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		c.problem(variable, "has an entry that is not a base URL: write http://HOST:PORT for each instance")
	}
}

// print writes the configuration, one variable a line, without its passwords.
func (c *Config) print(w io.Writer) {
	for f, v := range reflect.ValueOf(*c).Fields() {
		name, ok := f.Tag.Lookup("env")
		if !ok {
			continue
		}
		text := fmt.Sprint(v.Interface())
		kind, secret := f.Tag.Lookup("secret")
		values, ok := v.Interface().([]string)
		switch {
		case ok && secret:
			text = redactedList(values)
		case ok:
			text = strings.Join(values, ",")
		case kind == "pair":
			text = redactedPair(text)
		case secret && text != "":
			text = redacted(text)
		}
		fmt.Fprintf(w, "%s=%s\n", name, text)
	}
}

// redactedPair hides the password of USER:PASSWORD, and everything where there is no telling which is which.
func redactedPair(text string) string {
	user, _, ok := strings.Cut(text, ":")
	switch {
	case text == "":
		return ""
	case !ok:
		return "(hidden: not a user and a password)"
	}
	return user + ":xxxxx"
}

func redactedList(urls []string) string {
	var texts []string
	for _, u := range urls {
		texts = append(texts, redacted(u))
	}
	return strings.Join(texts, ",")
}

// redacted hides the password of a URL. What is no proper URL is hidden as a whole: nobody knows where its password is.
func redacted(raw string) string {
	u, ok := properURL(raw)
	if !ok {
		return "(hidden: not a URL)"
	}
	query := u.Query()
	for name := range query {
		if strings.Contains(strings.ToLower(name), "password") {
			query.Set(name, "xxxxx")
			u.RawQuery = query.Encode()
		}
	}
	return u.Redacted()
}

// address is where a URL leads, without who goes there.
func address(raw string) string {
	u, ok := properURL(raw)
	if !ok {
		return "(not a URL)"
	}
	return u.Host + u.Path
}

// properURL reads a URL whose parts are what they seem. redis://:12/34@host is one to url.Parse, with a host and a path that are
// a password that was not escaped.
func properURL(raw string) (u *url.URL, ok bool) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, false
	}
	rest, ok := strings.CutPrefix(raw[len(u.Scheme):], "://")
	end := strings.IndexAny(rest, "/?#")
	return u, ok && u.Scheme != "" && (end < 0 || !strings.Contains(rest[end:], "@"))
}
