package redislock

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// crowd remembers for which locks others were waiting when this process gave them back a moment ago. Whoever has just had the
// lock would be there before them each time, so it pauses before it asks again.
type crowd struct {
	pause time.Duration // at least; at most twice that
	locks sync.Map      // names
}

// How long the others have their chance.
const crowdMemory = 64 * time.Millisecond

func (c *crowd) note(lock string) {
	if _, known := c.locks.Swap(lock, true); !known {
		time.AfterFunc(crowdMemory, func() { c.locks.Delete(lock) })
	}
}

// standAside lets those go first who were waiting, and tells whether there were any. An error means that ctx has ended.
func (c *crowd) standAside(ctx context.Context, lock string) (bool, error) {
	if _, noted := c.locks.LoadAndDelete(lock); !noted {
		return false, nil
	}
	return true, sleep(ctx, c.pause+rand.N(c.pause))
}
