// Package pglock is the strategy postgres: SELECT … FOR UPDATE in the transaction that does the work. The lock, its queue,
// its token and its release at the end of the transaction are all PostgreSQL's; there is nothing to run, to renew or to
// lose but the connection. The statement is the function lock_row of the migrations, which the store calls where a lease's
// grant would be presented.
package pglock

import "fencepost/locking"

// Name of the strategy.
const Name = "postgres"

// Open makes the backend.
func Open() *locking.Backend {
	return &locking.Backend{
		Name:     Name,
		Summary:  "SELECT … FOR UPDATE in the transaction; the token is the fence's own, plus one",
		Fences:   true,
		RowLocks: true,
	}
}
