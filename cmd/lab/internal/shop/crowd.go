package shop

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Crowd is buyers who reserve one unit of an item after the other until they are stopped, and remember what they were told. Its
// fields may be read in Until, and after Stop.
type Crowd struct {
	Acknowledged []string          // the reservations that were promised
	Codes        map[string]int    // answers by their code
	LastProblem  map[string]string // the newest detail of a code

	cancel  context.CancelFunc
	group   sync.WaitGroup
	mu      sync.Mutex
	changed chan struct{} // closed at the next answer
}

// Buyers pause after an answer, and longer after a refusal: those who ask again at once keep the machine from what they wait
// for, such as a server that starts.
const (
	thinking = 5 * time.Millisecond
	sulking  = 50 * time.Millisecond
)

// StartCrowd sends n buyers to the instances at urls. The end of ctx stops them.
func StartCrowd(ctx context.Context, n int, urls []string, sku string) *Crowd {
	ctx, cancel := context.WithCancel(ctx)
	c := &Crowd{cancel: cancel, changed: make(chan struct{}), Codes: map[string]int{}, LastProblem: map[string]string{}}
	for i := range n {
		c.group.Go(func() {
			for ctx.Err() == nil {
				// Not cut short when the buyers are stopped: an answer that is under way may be a promise.
				pause := thinking
				if !c.buy(context.WithoutCancel(ctx), urls[i%len(urls)], sku) {
					pause = sulking
				}
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				}
			}
		})
	}
	return c
}

func (c *Crowd) buy(ctx context.Context, url, sku string) (bought bool) {
	var told struct{ ID, Code, Detail string }
	answer := Exchange(ctx, http.MethodPost, url+"/v1/items/"+sku+"/reservations", map[string]any{"quantity": 1}, &told)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case answer.Status == http.StatusCreated:
		c.Acknowledged = append(c.Acknowledged, told.ID)
		c.Codes["created"]++
	case told.Code != "":
		c.Codes[told.Code]++
		c.LastProblem[told.Code] = told.Detail
	default:
		c.Codes[fmt.Sprintf("no answer (%d)", answer.Status)]++
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return answer.Status == http.StatusCreated
}

// Until waits for the answers to show something.
func (c *Crowd) Until(ctx context.Context, seen func() bool) error {
	for {
		c.mu.Lock()
		ok, changed := seen(), c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.mu.Lock()
			defer c.mu.Unlock()
			return fmt.Errorf("%w; answers: %v, %v", context.Cause(ctx), c.Codes, c.LastProblem)
		}
	}
}

// Count is how many reservations were promised so far.
func (c *Crowd) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.Acknowledged)
}

// Stop lets every buyer receive its last answer.
func (c *Crowd) Stop() {
	if c.cancel != nil {
		c.cancel()
	}
	c.group.Wait()
}
