package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Discover asks one instance for the base URLs of all. A service that asks for keys does not tell; then it is that instance
// alone.
func Discover(ctx context.Context, base, key string) ([]string, error) {
	c := newClient(key, 1, settle)
	defer c.CloseIdleConnections()
	var list struct {
		Instances []string `json:"instances"`
	}
	_, err := c.exchange(ctx, http.MethodGet, base+"/v1/instances", nil, &list)
	switch p, ok := errors.AsType[*problem](err); {
	case ok && p.Status == http.StatusNotFound:
		return []string{base}, nil
	case ok:
		return nil, fmt.Errorf("asking %s for the instances: %w", base, err)
	case err != nil:
		return nil, unreachable(base, err)
	case len(list.Instances) == 0:
		return []string{base}, nil
	}
	return list.Instances, nil
}

// strategy is what an instance says of one of its strategies.
type strategy struct {
	Name      string `json:"name"`
	Fences    bool   `json:"fences"`
	Available bool   `json:"available"`
	Problem   string `json:"problem"`
}

// strategies finds those of the names, and makes sure that every instance can use them.
func (c *client) strategies(ctx context.Context, instances, names []string) (found []strategy, err error) {
	for _, base := range instances {
		var list struct {
			Strategies []strategy `json:"strategies"`
		}
		if _, err := c.exchange(ctx, http.MethodGet, base+"/v1/strategies", nil, &list); err != nil {
			if _, answered := errors.AsType[*problem](err); answered {
				return nil, fmt.Errorf("asking %s for its strategies: %w", base, err)
			}
			return nil, unreachable(base, err)
		}
		found = found[:0]
		for _, name := range names {
			i := slices.IndexFunc(list.Strategies, func(s strategy) bool { return s.Name == name })
			if i < 0 {
				var known []string
				for _, s := range list.Strategies {
					known = append(known, s.Name)
				}
				return nil, fmt.Errorf("%s has no strategy %q: name some of %s", base, name, strings.Join(known, ","))
			}
			if s := list.Strategies[i]; !s.Available {
				return nil, fmt.Errorf("%s cannot use the strategy %s: %s; set it up, or leave %s out", base, name, s.Problem, name)
			}
			found = append(found, list.Strategies[i])
		}
	}
	return found, nil
}

// Compare holds the same race once for each of the strategies, with the fence enforced unless it is to be off. A strategy that
// issues no tokens runs with the fence off in any case: it could not sell anything otherwise. When ctx ends, or there is an
// error, the reports are those of the races that were held. begin is told of each race before it is held, and done of its report.
func Compare(ctx context.Context, o Options, names []string, begin func(strategy string), done func(Report)) (reports []Report, err error) {
	c := newClient(o.Key, 1, o.Patience)
	defer c.CloseIdleConnections()
	strategies, err := c.strategies(ctx, o.Instances, names)
	if err != nil {
		return nil, err
	}
	fencing := cmp.Or(o.Fencing, "enforced")
	for _, s := range strategies {
		if ctx.Err() != nil {
			break
		}
		o.Strategy, o.Fencing = s.Name, fencing
		if !s.Fences {
			o.Fencing = "off"
		}
		begin(s.Name)
		r, err := Run(ctx, o)
		if err != nil {
			return reports, fmt.Errorf("%s: %w", s.Name, err)
		}
		done(r)
		reports = append(reports, r)
	}
	return reports, nil
}
