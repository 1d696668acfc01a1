package zklock

// Waiting is how many deletions wait for the request that is under way.
func (l *Locker) Waiting() int {
	l.deletions.mu.Lock()
	defer l.deletions.mu.Unlock()
	return len(l.deletions.waiting)
}

// Calls is how many calls are under way, those included that their callers have left behind.
func (l *Locker) Calls() int { return len(l.client.slots) }
