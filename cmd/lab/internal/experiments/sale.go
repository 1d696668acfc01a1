package experiments

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/load"
	"fencepost/cmd/lab/internal/shop"
)

// enforced and off are the fencing of an item.
const (
	enforced = "enforced"
	off      = "off"
)

// item puts units on sale, under a lock of the item's own unless strategy is empty.
func (r *Run) item(ctx context.Context, at *instances.Instance, stock int, strategy, fencing string) (sku string, err error) {
	sku = uuid.NewString()
	lock := map[string]string{"fencing": fencing}
	if strategy != "" {
		lock["strategy"] = strategy
	}
	var p problem
	answer := shop.Exchange(ctx, http.MethodPost, at.URL+"/v1/items",
		map[string]any{"sku": sku, "name": r.Name, "stock": stock, "lock": lock}, &p)
	if answer.Status != http.StatusCreated {
		return "", fmt.Errorf("creating an item under %s: %w", strategy, sale{Answer: answer, problem: p}.failure())
	}
	return sku, nil
}

// problem is what an answer says that is no success.
type problem struct{ Code, Detail string }

// sale is the answer to somebody who wanted to buy.
type sale struct {
	shop.Answer
	problem
	at time.Time // when it came
}

func (s sale) made() bool { return s.Status == http.StatusCreated }

// token is epoch and token of the grant under which the service has acted.
func (s sale) token() string { return s.Header.Get("Fencepost-Token") }

// epoch is that of the token.
func (s sale) epoch() string {
	epoch, _, _ := strings.Cut(s.token(), ".")
	return epoch
}

// held is how long the service was in the section, by its own word.
func (s sale) held() time.Duration {
	_, database, _ := strings.Cut(s.Header.Get("Server-Timing"), "db;dur=")
	milliseconds, _ := strconv.ParseFloat(database, 64) // without it, 0
	return time.Duration(milliseconds * float64(time.Millisecond))
}

// String is for findings: "201 with token 1.2", "409 out_of_stock".
func (s sale) String() string {
	switch {
	case s.Status == 0:
		return "no answer"
	case s.made() && s.token() != "":
		return "201 with token " + s.token()
	case s.made():
		return "201"
	}
	return fmt.Sprintf("%d %s", s.Status, s.Code)
}

func (s sale) failure() error {
	if s.Err != nil {
		return s.Err
	}
	return fmt.Errorf("the service answers %s: %s", s, s.Detail)
}

// buy reserves one unit.
func buy(ctx context.Context, at *instances.Instance, sku string) (s sale) {
	s.Answer = shop.Exchange(ctx, http.MethodPost, at.URL+"/v1/items/"+sku+"/reservations", map[string]any{"quantity": 1}, &s.problem)
	s.at = time.Now()
	return s
}

// mustBuy is buy where nothing else than a success is expected.
func mustBuy(ctx context.Context, at *instances.Instance, sku string) (sale, error) {
	s := buy(ctx, at, sku)
	if !s.made() {
		return s, fmt.Errorf("buying: %w", s.failure())
	}
	return s, nil
}

// buyAside is buy beside what goes on.
func buyAside(ctx context.Context, at *instances.Instance, sku string) <-chan sale {
	answer := make(chan sale, 1)
	go func() { answer <- buy(ctx, at, sku) }()
	return answer
}

// race has buyers race for the units of an item, under a lock of its own unless strategy is empty.
func (r *Run) race(ctx context.Context, on []*instances.Instance, strategy, fencing string, stock, requests int) (load.Report, error) {
	return load.Run(ctx, load.Options{
		Instances: urls(on), Strategy: strategy, Fencing: fencing,
		Limit: stock, Buyers: 64, Requests: requests, Timeout: patience,
	})
}

// raced notes a race as a row, and as a bar of that name.
func (r *Run) raced(lock, bar string, report load.Report) {
	r.Header = []string{"lock", "instances", "fencing", "stock", "created", "sold", "oversold"}
	r.row(lock, len(report.Instances), report.Fencing, report.Limit, report.Outcomes["created"], report.Sold+report.Held, report.Oversold)
	r.BarUnit = fmt.Sprintf("units sold of %d", report.Limit)
	r.bar(bar, "", float64(report.Sold+report.Held))
}

// exact tells whether a race has sold every unit, and none twice.
func exact(report load.Report, stock int) bool {
	return report.OK && report.Sold+report.Held == int64(stock) && report.Outcomes["created"] == stock
}
