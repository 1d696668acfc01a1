// Package locking runs critical sections. A Guard hides two families of strategies behind one method: leases, which are
// taken before the transaction from a lock server outside the database, and row locks, which the transaction takes itself.
//
// What a lease strategy has to provide is one method, Locker.Acquire, for a single key. Everything that is the same for all
// of them is here, once: the order of several keys, renewal, the local deadline, loss, release, the healing of a counter
// that has gone back.
//
// # What is promised
//
// Mutual exclusion in time is not: a lease can expire under a holder that is paused, and no lock service can prevent that.
// What is promised is that of two holders only the newer one can write. Its argument has three steps.
//
//  1. A token is issued by the lock's own authority in the step that takes the lock, from a counter that only rises. So a
//     later grant of one authority carries a larger token. Across authorities, PostgreSQL gives each reign an epoch, which
//     a grant reads before its acquire is sent; a later reign carries a larger epoch.
//  2. A transaction presents its grant before its first read. PostgreSQL accepts it only if it is not older than the fence,
//     moves the fence to it, and keeps the fence's row locked until the transaction ends.
//  3. So the transactions that were accepted for one resource are serial, in the order of their grants: when one reads,
//     every older one has ended, and can neither write nor commit any more.
//
// The order of epochs is per resource. One that leaves the shared scope, or comes back to it, gets a larger epoch than every
// one under which it can have been locked before; and a grant carries an epoch only if it was read together with the
// resource's scope.
//
// # Several sections under one lock
//
// Sections of one process that wait for the same key are carried together by its queue. To the argument above they are one
// holder with one grant and one transaction after the other. Among themselves they run in the order in which they came, on
// one state in memory; what one of them put is taken back when it fails, so none sees another but by its effect. They share
// one risk: when their transaction fails, it fails for all of them. What shows the absence of a lock is never carried
// together: sections without a lock each have a transaction of their own.
//
// The batches of several keys may share a transaction, which presents the grant of each. That changes nothing in the argument:
// a transaction that is accepted for several resources is serial with the others of each. Nor do they share the risk. A
// shared transaction waits for nobody's row; and if one of its grants is refused, or one of its locks is lost, it is rolled
// back and each key goes on in a transaction of its own.
//
// A queue keeps its lock for one batch after another, and for a moment when nobody is left, because whoever comes next saves
// the time to take it again. It does so for long only if nobody else asked for the lock when it was taken; otherwise instances
// take turns.
//
// Loss, as seen by the holder, is a hint that saves work: it cancels the section's context. It is not what safety rests on.
//
// # Who is in charge
//
// Two things put a strategy in charge of a shared scope, and they ask for opposite answers from the instances that run
// another one. An instance that starts with another configuration takes over, and the others must be replaced too: they are
// refused and turn not-ready. An operator who orders a switch wants the instances to stay: they follow, if they have the
// servers. So PostgreSQL keeps with each reign who decided it. An order outranks the configuration, or the next restart of
// any instance would undo it; it stands until an instance starts whose configuration agrees, and from then on the
// configuration decides again. A reign over a single resource has no configuration beside it: everybody follows.
package locking
