package domain

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// expirers is how many sections of an Expire run side by side: enough to get past a lock that does not come free, and not so
// many that requests find no connection.
const expirers = 4

// Expire ends holds whose time is over, and gives back what they hold. due are those that were seen; whether each still is
// held and due is decided inside a section, as anybody may confirm or release it meanwhile. Holds that need the same keys
// share a section.
//
// ended is how many it has ended. failed says of which that went wrong: by the item's key where the hold needs no other, and
// else by the id of the reservation. What was not begun when ctx ended is in neither.
func (s *Service) Expire(ctx context.Context, due []Reservation) (ended int, failed map[string]error) {
	groups := map[string][]Reservation{}
	for _, r := range due {
		name := fmt.Sprint(expiring.keys(r))
		groups[name] = append(groups[name], r)
	}
	failed = map[string]error{}
	var mu sync.Mutex
	var workers sync.WaitGroup
	work := make(chan []Reservation)
	for range min(expirers, len(groups)) {
		workers.Go(func() {
			for group := range work {
				if ctx.Err() != nil {
					continue
				}
				n, err := s.expire(ctx, group)
				mu.Lock()
				ended += n
				if err != nil {
					fail(failed, group, err)
				}
				mu.Unlock()
			}
		})
	}
	for _, group := range groups {
		work <- group
	}
	close(work)
	workers.Wait()
	return ended, failed
}

func fail(failed map[string]error, group []Reservation, err error) {
	if keys := expiring.keys(group[0]); len(keys) == 1 {
		failed[string(keys[0])] = err
		return
	}
	for _, r := range group {
		failed[r.ID] = err
	}
}

// expire ends holds that need the same keys. One whose counters do not allow it keeps no other from its end.
func (s *Service) expire(ctx context.Context, group []Reservation) (ended int, err error) {
	var left error
	section := expiring.section(group...)
	section.Run = func(ctx context.Context, tx Tx) error {
		ended, left = 0, nil
		now := s.now()
		for _, r := range group {
			switch _, changed, err := expiring.end(ctx, tx, r.ID, now, section.Keys); {
			case errors.Is(err, ErrCountersCorrupted), errors.Is(err, errTied):
				left = err
			case err != nil:
				return err
			case changed:
				ended++
			}
		}
		return nil
	}
	if _, err := s.Guard.Do(ctx, section); err != nil {
		return 0, err
	}
	return ended, left
}
