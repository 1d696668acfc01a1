package load

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Patience is how long a single request may take unless an Options says otherwise. It is longer than the service allows
// itself.
const Patience = 30 * time.Second

// client sends requests of which each has one outcome.
type client struct {
	http.Client
	key string
}

func newClient(key string, connections int, patience time.Duration) *client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// A connection for every buyer stays open: two, the default, would have most attempts begin with a handshake.
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, connections
	return &client{
		Client: http.Client{
			Transport: transport,
			Timeout:   cmp.Or(patience, Patience),
			// A redirect would send the attempt a second time, to somebody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		key: key,
	}
}

// problem is an answer that is not a success.
type problem struct {
	Status    int
	Code      string `json:"code"`
	Detail    string `json:"detail"`
	Retryable bool   `json:"retryable"`
}

func (p *problem) name() string { return cmp.Or(p.Code, fmt.Sprintf("http_%d", p.Status)) }

func (p *problem) Error() string {
	text := fmt.Sprintf("the service answers %d %s", p.Status, p.name())
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	switch p.Status {
	case http.StatusUnauthorized:
		text += " Set FENCEPOST_API_KEY or --api-key to an admin's key."
	case http.StatusForbidden:
		text += " The race creates what it races for, which takes an admin's key."
	}
	return text
}

// answer is what the head of an answer says. Status 0: there was no whole answer.
type answer struct {
	status     int
	replayed   bool
	retryAfter time.Duration
}

// exchange sends one request and reads the answer into out. An answer that is not a success is a *problem.
func (c *client) exchange(ctx context.Context, method, address string, in, out any) (answer, error) {
	return c.send(ctx, method, address, "", in, out)
}

// send is exchange with an Idempotency-Key, unless that is empty.
func (c *client) send(ctx context.Context, method, address, idempotencyKey string, in, out any) (answer, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return answer{}, err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return answer{}, err
	}
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		request.Header.Set("Authorization", "Bearer "+c.key)
	}
	if idempotencyKey != "" {
		request.Header.Set("Idempotency-Key", idempotencyKey)
		// With the header, net/http takes the request for repeatable and sends it again by itself when a kept connection
		// breaks: a retry that nobody counts. It cannot without this.
		request.GetBody = nil
	}
	response, err := c.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return answer{}, err
	}
	a := answer{status: response.StatusCode, replayed: response.Header.Get("Idempotent-Replayed") == "true"}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		a.retryAfter = time.Duration(min(seconds, 3600)) * time.Second
	}
	if response.StatusCode/100 != 2 {
		p := &problem{}
		_ = json.Unmarshal(data, p) // what is no problem document has its status
		p.Status = response.StatusCode
		return a, p
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			return a, fmt.Errorf("%s %s: the answer is not what was expected: %w", method, address, err)
		}
	}
	return a, nil
}
