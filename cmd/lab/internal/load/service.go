package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// aside is how many of the requests before and after the race are sent at the same time.
const aside = 8

// create puts the goods on sale.
func (c *client) create(ctx context.Context, o Options, g goods) error {
	type lock struct {
		Strategy string `json:"strategy,omitempty"`
		Fencing  string `json:"fencing,omitempty"`
	}
	post := func(ctx context.Context, resource, path string, body map[string]any) error {
		if l := (lock{o.Strategy, o.Fencing}); l != (lock{}) {
			body["lock"] = l
		}
		if _, err := c.exchange(ctx, http.MethodPost, o.Instances[0]+path, body, nil); err != nil {
			return fmt.Errorf("creating %s at %s: %w", resource, o.Instances[0], err)
		}
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(aside)
	for _, sku := range g.skus {
		group.Go(func() error {
			return post(ctx, "item/"+sku, "/v1/items", map[string]any{"sku": sku, "name": "Load test", "stock": o.Limit})
		})
	}
	if g.coupon != "" {
		group.Go(func() error {
			return post(ctx, "coupon/"+g.coupon, "/v1/coupons", map[string]any{"code": g.coupon, "max_redemptions": o.Limit})
		})
	}
	return group.Wait()
}

// meet makes sure that every instance is there, and opens one connection for every buyer: what the barrier lets loose
// should be requests, not handshakes.
func (c *client) meet(ctx context.Context, o Options) error {
	errs := make([]error, o.Buyers)
	var buyers sync.WaitGroup
	for b := range o.Buyers {
		buyers.Go(func() { errs[b] = c.greet(ctx, o.Instances[b%len(o.Instances)]) })
	}
	buyers.Wait()
	return cmp.Or(errs...) // that of the first buyer: each instance has one of the first
}

// greet tells whether there is an instance of the service.
func (c *client) greet(ctx context.Context, base string) error {
	_, err := c.exchange(ctx, http.MethodGet, base+"/healthz", nil, nil)
	if p, ok := errors.AsType[*problem](err); ok {
		return fmt.Errorf("%s answers %d to /healthz: see that this is the base URL of an instance of the service", base, p.Status)
	}
	if err != nil {
		return unreachable(base, err)
	}
	return nil
}

func unreachable(base string, err error) error {
	return fmt.Errorf("%s does not answer: start it, or name the instances that run with --instances (%w)", base, reason(err))
}

// reason is the error without the method and the address, which the message has already.
func reason(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// attendance asks every instance whether it is still there. An instance that ended while it was raced for has nil for an
// answer only if it came back.
func (c *client) attendance(ctx context.Context, instances []string) []error {
	ctx, cancel := context.WithTimeoutCause(ctx, settle, fmt.Errorf("no answer within %s", settle))
	defer cancel()
	errs := make([]error, len(instances))
	var group sync.WaitGroup
	for i, base := range instances {
		group.Go(func() {
			if _, err := c.exchange(ctx, http.MethodGet, base+"/healthz", nil, nil); errors.Is(err, context.DeadlineExceeded) {
				errs[i] = context.Cause(ctx)
			} else if err != nil {
				errs[i] = reason(err)
			}
		})
	}
	group.Wait()
	return errs
}

// settle is how long instances may take to answer when the race is over.
const settle = 5 * time.Second

// Row is the database's count of one resource.
type Row struct {
	Resource string   `json:"resource"`
	Limit    int64    `json:"limit"`
	Sold     int64    `json:"sold"`
	Held     int64    `json:"held"`
	Oversold int64    `json:"oversold"`
	Drift    int64    `json:"drift"`   // by how much the counters are wrong: lost updates
	Refused  int64    `json:"refused"` // stale writes that the fence turned away
	Strategy string   `json:"strategy"`
	Fencing  string   `json:"fencing"`
	OK       bool     `json:"ok"`
	Findings []string `json:"findings,omitempty"`
}

// audit asks those of the instances that are there, one after the other until one can tell. One that has lost a server
// under load may need a moment.
func (c *client) audit(ctx context.Context, instances []string, resources []string) (rows []Row, err error) {
	if len(instances) == 0 {
		return nil, errors.New("no instance answers any more")
	}
	ctx, cancel := context.WithTimeout(ctx, 3*settle)
	defer cancel()
	for {
		for _, base := range instances {
			if rows, err = c.auditAt(ctx, base, resources); err == nil {
				return rows, nil
			}
		}
		if p, ok := errors.AsType[*problem](err); ok && !p.Retryable || !sleep(ctx, settle/10) {
			return nil, err
		}
	}
}

func (c *client) auditAt(ctx context.Context, base string, resources []string) ([]Row, error) {
	rows := make([]Row, len(resources))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(aside)
	for i, resource := range resources {
		group.Go(func() error {
			var answer struct {
				Resources []Row `json:"resources"`
			}
			if _, err := c.exchange(ctx, http.MethodGet, base+"/v1/audit?resource="+url.QueryEscape(resource), nil, &answer); err != nil {
				return fmt.Errorf("the audit of %s at %s: %w", resource, base, reason(err))
			}
			if len(answer.Resources) != 1 || answer.Resources[0].Resource != resource {
				return fmt.Errorf("the audit at %s does not know %s", base, resource)
			}
			rows[i] = answer.Resources[0]
			return nil
		})
	}
	return rows, group.Wait()
}
