package locking

// Queues counts the keys that somebody waits for or is served for.
func (g *Guard) Queues() int {
	g.queues.mu.Lock()
	defer g.queues.mu.Unlock()
	return len(g.queues.of)
}
