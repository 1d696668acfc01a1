package redislock

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// crowd remembers how many processes were waiting for a lock when this one gave it back a moment ago, itself among them if it has
// somebody else who waits. Whoever has just had the lock would be there before them each time, so it pauses before it asks again.
type crowd struct {
	pause time.Duration // at least; at most twice that
	locks sync.Map      // the number, by the lock's name
}

// How long the others have their chance.
const crowdMemory = 64 * time.Millisecond

func (c *crowd) note(lock string, others int64) {
	if _, known := c.locks.Swap(lock, others); !known {
		time.AfterFunc(crowdMemory, func() { c.locks.Delete(lock) })
	}
}

// standAside lets those go first who were waiting, and tells how many they were. An error means that ctx has ended.
func (c *crowd) standAside(ctx context.Context, lock string) (others int64, err error) {
	noted, known := c.locks.LoadAndDelete(lock)
	if !known {
		return 0, nil
	}
	return noted.(int64), sleep(ctx, c.pause+rand.N(c.pause))
}
