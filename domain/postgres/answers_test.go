package postgres_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/postgrestest"
)

var soak = flag.Bool("soak", false, "run the long forms of the tests that have one")

// once is a request of a caller with a key, whose answer says what it came to.
func once(caller, key, request string) *domain.Once {
	return &domain.Once{
		Caller: caller, Key: key, Fingerprint: sha256.Sum256([]byte(request)),
		Encode: func(result any, err error) domain.Answer {
			if err != nil {
				return domain.Answer{Status: 409, Body: []byte(err.Error())}
			}
			return domain.Answer{Status: 201, Location: "/" + fmt.Sprint(result), Body: []byte("done")}
		},
	}
}

// buy is a section that holds units of an item under a key.
func buy(o *domain.Once, sku string, quantity int64) domain.Section {
	r := reservation(domain.Line{SKU: sku, Quantity: quantity})
	return domain.Section{Keys: r.Keys(), Once: o, Result: func() any { return r.ID }, Run: hold(r)}
}

func (w *world) run(t *testing.T, sections ...domain.Section) []error {
	t.Helper()
	_, outcomes, err := w.store.Transact(t.Context(), []domain.Grant{w.grant(sections[0].Keys[0])}, wait, false, func(presented bool) []domain.Section {
		if presented {
			return sections[1:] // have come while the server was asked
		}
		return sections[:1]
	})
	require.NoError(t, err)
	return outcomes
}

func answerOf(t *testing.T, err error) domain.Answer {
	t.Helper()
	var replay *domain.Replay
	require.ErrorAs(t, err, &replay)
	return replay.Answer
}

// A slow step has the last word. What it refuses for good is an answer like any other; where it came to nothing, there is none.
func TestAnswerAfterASlowStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	var verdict error
	review := buy(once("c", "one", "r"), "a", 1)
	review.Run = func(ctx context.Context, tx domain.Tx) error {
		if _, err := tx.Item(ctx, "a"); err != nil {
			return err
		}
		return tx.Slow(ctx, func(context.Context) error { return verdict })
	}
	for _, verdict = range []error{errors.New("boom"), domain.ErrWrongState} {
		assert.ErrorIs(t, w.run(t, review)[0], verdict)
	}
	assert.Equal(t, 409, answerOf(t, w.run(t, review)[0]).Status)
	assert.Zero(t, w.audit(t, key).Held)
}

// A key has one answer, whether its request comes again later, or twice in one transaction.
func TestAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.item(t, "a", 10, domain.FencingEnforced), w.item(t, "b", 10, domain.FencingEnforced)

	outcomes := w.run(t, buy(once("c", "one", "r"), "a", 4), buy(once("c", "one", "r"), "a", 4), buy(once("d", "one", "r"), "a", 4))
	require.NoError(t, outcomes[0])
	first := answerOf(t, outcomes[1])
	assert.Equal(t, 201, first.Status)
	require.NoError(t, outcomes[2], "another caller's keys are others")
	assert.Equal(t, first, answerOf(t, w.run(t, buy(once("c", "one", "r"), "a", 4))[0]))
	assert.EqualValues(t, 8, w.audit(t, a).Held)

	// Those who come when the transaction has begun get their answers as well.
	outcomes = w.run(t, buy(nil, "a", 1), buy(once("c", "one", "r"), "a", 4), buy(once("c", "one", "another"), "a", 1))
	require.NoError(t, outcomes[0])
	assert.Equal(t, first, answerOf(t, outcomes[1]))
	assert.ErrorIs(t, outcomes[2], domain.ErrKeyReused)

	assert.ErrorIs(t, w.run(t, buy(once("c", "one", "another"), "a", 1))[0], domain.ErrKeyReused)
	assert.ErrorIs(t, w.run(t, buy(once("c", "one", "another"), "b", 1))[0], domain.ErrKeyReused, "also on another resource")
	assert.Zero(t, w.audit(t, b).Held)

	// A refusal is an answer. It stays what it was when there is stock again.
	outcomes = w.run(t, buy(once("c", "two", "r"), "a", 4), buy(nil, "a", 1))
	require.ErrorIs(t, outcomes[0], domain.ErrOutOfStock)
	require.NoError(t, outcomes[1])
	outcomes = w.run(t, buy(once("c", "three", "r"), "a", 4)) // and is kept also when nothing else is written
	require.ErrorIs(t, outcomes[0], domain.ErrOutOfStock)
	require.NoError(t, w.section(t, func(ctx context.Context, tx domain.Tx) error {
		item, err := tx.Item(ctx, "a")
		if err != nil {
			return err
		}
		if err := item.Restock(10); err != nil {
			return err
		}
		tx.PutItem(item, domain.Entry{Kind: domain.EntryRestock})
		return nil
	}, a))
	for _, key := range []string{"two", "three"} {
		assert.Equal(t, 409, answerOf(t, w.run(t, buy(once("c", key, "r"), "a", 4))[0]).Status)
	}

	// What is no answer is not kept.
	boom := buy(once("c", "four", "r"), "a", 1)
	work := boom.Run
	boom.Run = func(ctx context.Context, tx domain.Tx) error { return errors.Join(work(ctx, tx), errors.New("boom")) }
	require.Error(t, w.run(t, boom)[0])
	require.NoError(t, w.run(t, buy(once("c", "four", "r"), "a", 1))[0])
	assert.True(t, w.audit(t, a).OK())
}

// twins sends requests of which four at a time are one. One of them must do the work, and the others get its answer.
func twins(t *testing.T, rounds int, send func(round, twin int) error) {
	t.Helper()
	for round := range rounds {
		var group sync.WaitGroup
		outcomes := make([]error, 4)
		for i := range outcomes {
			group.Go(func() { outcomes[i] = send(round, i) })
		}
		group.Wait()
		done := 0
		for _, err := range outcomes {
			if err == nil {
				done++
			} else {
				assert.Equal(t, 201, answerOf(t, err).Status)
			}
		}
		require.Equal(t, 1, done)
	}
}

// Without a lock, twins of one request can be under way at once.
func TestTwinsWithoutLock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 1000, domain.FencingOff)
	store := w.db.Store(t, 4)
	const rounds = 25
	twins(t, rounds, func(round, _ int) error {
		o := once("c", fmt.Sprint("key-", round), "r")
		_, err := transactSection(t.Context(), store, []domain.Grant{w.grant(key)}, wait, buy(o, "a", 1))
		return err
	})
	assert.EqualValues(t, rounds, w.audit(t, key).Held)
}

// A creation has no lock to wait for; its twins meet at the primary key.
func TestTwinsCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	store := w.db.Store(t, 4)
	twins(t, 25, func(round, _ int) error {
		sku := fmt.Sprint("sku-", round)
		_, err := store.CreateItem(t.Context(), domain.Item{SKU: sku, Name: "A", OnHand: 1},
			domain.LockSpec{Fencing: domain.FencingEnforced}, once("c", sku+"-key", sku))
		return err
	})
	_, err := store.CreateItem(t.Context(), domain.Item{SKU: "sku-0", Name: "A"}, domain.LockSpec{Fencing: domain.FencingEnforced}, once("c", "other", "r"))
	require.ErrorIs(t, err, domain.ErrAlreadyExists)
	_, err = store.CreateItem(t.Context(), domain.Item{SKU: "new", Name: "A"}, domain.LockSpec{Fencing: domain.FencingEnforced}, once("c", "sku-0-key", "r"))
	require.ErrorIs(t, err, domain.ErrKeyReused)
}

// A code that the service makes is another one in each twin, so they have no resource to meet at. One coupon is made all the same.
func TestTwinsMakeCodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	store := w.db.Store(t, 4)
	const rounds = 25
	twins(t, rounds, func(round, twin int) error {
		_, err := store.CreateCoupon(t.Context(), domain.Coupon{Code: fmt.Sprint("code-", round, "-", twin), MaxRedemptions: 1},
			domain.LockSpec{Fencing: domain.FencingEnforced}, once("c", fmt.Sprint("key-", round), "r"))
		return err
	})
	assert.EqualValues(t, rounds, query[int64](t, postgrestest.Connect(t, w.db.ServiceURL), `SELECT count(*) FROM coupons`))
}

// A client that sends one key with two requests at once, for two resources, makes a mistake that nothing can stop. Each of the
// two keeps its own answer, and a third is told of the mistake.
func TestKeyOnTwoResources(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.item(t, "a", 10, domain.FencingEnforced)
	w.item(t, "b", 10, domain.FencingEnforced)
	require.NoError(t, w.run(t, buy(once("c", "one", "a"), "a", 1))[0])
	conn := postgrestest.Connect(t, w.db.ServiceURL)
	fingerprint := sha256.Sum256([]byte("b"))
	_, err := conn.Exec(t.Context(), `INSERT INTO answers (resource, caller, key, fingerprint, status, location, body)
		VALUES ('item/b', 'c', 'one', $1, 201, '/b', 'b')`, fingerprint[:])
	require.NoError(t, err)
	require.NotEqual(t, "/b", answerOf(t, w.run(t, buy(once("c", "one", "a"), "a", 1))[0]).Location)
	require.Equal(t, "/b", answerOf(t, w.run(t, buy(once("c", "one", "b"), "b", 1))[0]).Location)
	require.ErrorIs(t, w.run(t, buy(once("c", "one", "other"), "b", 1))[0], domain.ErrKeyReused)
}

// Old answers lose their bodies. Their keys stay, so that a late retry does not buy again.
func TestPurgeAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	require.NoError(t, w.run(t, buy(once("c", "one", "r"), "a", 1))[0])
	owner := postgrestest.Connect(t, w.db.OwnerURL)
	_, err := owner.Exec(t.Context(), `
		INSERT INTO answers SELECT resource, caller, 'another-' || n, fingerprint, status, location, body FROM answers, generate_series(1, 1000) n`)
	require.NoError(t, err)
	for _, step := range []struct {
		age  time.Duration
		more bool
		left int64
	}{{time.Hour, false, 1001}, {0, true, 1}, {0, false, 0}, {0, false, 0}} {
		more, err := w.store.PurgeAnswers(t.Context(), step.age)
		require.NoError(t, err)
		assert.Equal(t, step.more, more)
		assert.Equal(t, step.left, query[int64](t, owner, `SELECT count(*) FROM answers WHERE body IS NOT NULL`))
	}
	late := answerOf(t, w.run(t, buy(once("c", "one", "r"), "a", 1))[0])
	assert.Nil(t, late.Body)
	assert.NotEmpty(t, late.Location)
	assert.EqualValues(t, 1, w.audit(t, key).Held)

	conn := postgrestest.Connect(t, w.db.ServiceURL)
	for _, attack := range []string{`UPDATE answers SET body = 'x'`, `DELETE FROM answers`, `TRUNCATE answers`} {
		_, err := conn.Exec(t.Context(), attack)
		require.ErrorContains(t, err, "permission denied", attack)
	}
}

// No more are purged at a time than asked for, whatever plan PostgreSQL has come to by its statistics.
func TestPurgeIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.item(t, "a", 10, domain.FencingEnforced)
	owner := postgrestest.Connect(t, w.db.OwnerURL)
	_, err := owner.Exec(t.Context(), `
		INSERT INTO answers (resource, caller, key, fingerprint, status, location, body)
		SELECT 'item/a', 'c', n::text, sha256(''), 201, '', 'x' FROM generate_series(1, 100) n`)
	require.NoError(t, err)
	for _, method := range []string{"hashjoin", "mergejoin", "hashagg", "sort", "material"} { // what is left is a loop in a loop
		_, err := owner.Exec(t.Context(), "SET enable_"+method+" = off")
		require.NoError(t, err)
	}
	require.EqualValues(t, 10, query[int64](t, owner, `SELECT purge_answers(clock_timestamp(), 10)`))
	require.EqualValues(t, 90, query[int64](t, owner, `SELECT count(*) FROM answers WHERE body IS NOT NULL`))
}

// An answer is there if and only if its work is: a COMMIT whose reply was lost is found out about by sending the request
// again.
func TestRetryAfterUnknownOutcome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	p, store := throughProxy(t, w)
	send := func(store *postgres.Store) error {
		_, err := transactSection(t.Context(), store, []domain.Grant{w.grant(key)}, wait, buy(once("c", "one", "r"), "a", 1))
		return err
	}
	p.cut.Store(forGood)
	require.ErrorIs(t, send(store), domain.ErrOutcomeUnknown)
	assert.Equal(t, 201, answerOf(t, send(w.store)).Status)
	assert.EqualValues(t, 1, w.audit(t, key).Held)
}

// The connection is cut at every COMMIT, a moment before or a moment after the server has seen it. What the caller is told
// is the truth each time, and a retry under the same key finds out the same truth.
func TestCommitsAreCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rounds := 50
	if *soak {
		rounds = 500
	}
	key := w.item(t, "a", 1_000_000, domain.FencingEnforced)
	p, store := throughProxy(t, w)
	// Each of these is another way to a COMMIT: work, a refusal that is kept, and something new. They return what they came to.
	requests := map[string]func(*postgres.Store, *domain.Once) (location string, err error){
		"buy": func(store *postgres.Store, o *domain.Once) (string, error) {
			section := buy(o, "a", 1)
			_, err := transactSection(t.Context(), store, []domain.Grant{w.grant(key)}, wait, section)
			return fmt.Sprint("/", section.Result()), err
		},
		"want too much": func(store *postgres.Store, o *domain.Once) (string, error) {
			_, err := transactSection(t.Context(), store, []domain.Grant{w.grant(key)}, wait, buy(o, "a", 2_000_000))
			return "", err
		},
		"create": func(store *postgres.Store, o *domain.Once) (string, error) {
			view, err := store.CreateItem(t.Context(), domain.Item{SKU: o.Key, Name: "A"}, domain.LockSpec{Fencing: domain.FencingEnforced}, o)
			return fmt.Sprint("/", view), err
		},
	}
	for i := range rounds {
		for _, cut := range []int32{beforeCommit, afterCommit} {
			for what, send := range requests {
				request := strings.ReplaceAll(fmt.Sprint(what, " ", i, " ", cut), " ", "-")
				p.cut.Store(cut)
				location, err := send(store, once("c", request, request))
				require.Equal(t, nowhere, p.cut.Load(), "the cut has happened")
				again, retry := send(w.store, once("c", request, request))
				outcome := retry // where nothing was written, the retry is the first
				if cut == beforeCommit {
					require.ErrorIs(t, err, domain.ErrUnavailable, what)
					require.NotErrorIs(t, err, domain.ErrOutcomeUnknown, what)
				} else {
					outcome = err
					answer := answerOf(t, retry)
					require.Equal(t, location, answer.Location, what)
					require.Equal(t, what == "want too much", answer.Status == 409, what)
				}
				if what == "want too much" {
					require.ErrorIs(t, outcome, domain.ErrOutOfStock)
					continue
				}
				require.NoError(t, outcome, what)
				if cut == beforeCommit {
					require.Equal(t, again, answerOf(t, func() error { _, err := send(w.store, once("c", request, request)); return err }()).Location)
				}
			}
		}
	}
	audit := w.audit(t, key)
	assert.EqualValues(t, 2*rounds, audit.Held)
	assert.True(t, audit.OK())
	assert.EqualValues(t, 1+2*rounds, query[int64](t, postgrestest.Connect(t, w.db.ServiceURL), `SELECT count(*) FROM items`))
}
