package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"fencepost/domain"
)

// answerID names a request: a key, and whose it is.
type answerID struct{ caller, key string }

// answer is what a request was answered, or is about to be.
type answer struct {
	domain.Answer
	resource    domain.Key
	fingerprint [32]byte
	stored      bool
}

// replay ends a section whose key has an answer.
func (t *tx) replay(once *domain.Once) error {
	if once == nil {
		return nil
	}
	// There can be several: no constraint reaches over resources, so a client that has sent one key with two requests at
	// once, for two resources, has two answers. Each of the requests keeps its own.
	answers := t.answers[answerID{once.Caller, once.Key}]
	for _, a := range answers {
		if a.fingerprint == once.Fingerprint {
			return &domain.Replay{Answer: a.Answer}
		}
	}
	if len(answers) > 0 {
		return domain.ErrKeyReused
	}
	return nil
}

// answer keeps an answer, to be written with what it says.
func (t *tx) answer(resource domain.Key, once *domain.Once, a domain.Answer) {
	t.addAnswer(answerID{once.Caller, once.Key}, answer{Answer: a, resource: resource, fingerprint: once.Fingerprint})
}

func (t *tx) addAnswer(id answerID, a answer) { put(&t.answers, id, append(t.answers[id], a)) }

// queueAnswers asks for the answers of all resources: a key that was used for another one must not be used again.
func (t *tx) queueAnswers(batch *pgx.Batch, ids []answerID) {
	var callers, keys []string
	for _, id := range ids {
		callers, keys = append(callers, id.caller), append(keys, id.key)
	}
	batch.Queue(`
		SELECT caller, key, fingerprint, status, location, body FROM answers
		 WHERE (caller, key) IN (SELECT * FROM unnest($1::text[], $2::text[]))`, callers, keys).Query(func(rows pgx.Rows) error {
		var id answerID
		var found answer
		var fingerprint []byte
		_, err := pgx.ForEachRow(rows, []any{&id.caller, &id.key, &fingerprint, &found.Status, &found.Location, &found.Body}, func() error {
			a := found
			a.fingerprint, a.stored = [32]byte(fingerprint), true
			t.addAnswer(id, a)
			return nil
		})
		return err
	})
}

func (t *tx) insertAnswers(batch *pgx.Batch) {
	var resources []domain.Key
	var callers, keys, locations []string
	var fingerprints, bodies [][]byte
	var statuses []int16
	for id, answers := range t.answers {
		for _, a := range answers {
			if a.stored {
				continue
			}
			resources, callers, keys = append(resources, a.resource), append(callers, id.caller), append(keys, id.key)
			fingerprints, bodies = append(fingerprints, a.fingerprint[:]), append(bodies, a.Body)
			statuses, locations = append(statuses, int16(a.Status)), append(locations, a.Location)
			if t.evidence == nil { // refusals leave nothing in the ledger
				t.evidence = &evidence{`SELECT FROM answers WHERE resource = $1 AND caller = $2 AND key = $3`, []any{a.resource, id.caller, id.key}}
			}
		}
	}
	if len(keys) > 0 {
		batch.Queue(`
			INSERT INTO answers (resource, caller, key, fingerprint, status, location, body)
			SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::smallint[], $6::text[], $7::bytea[])`,
			resources, callers, keys, fingerprints, statuses, locations, bodies)
	}
}

// purgeChunk is how many answers are purged in a transaction, which keeps them locked until it ends.
const purgeChunk = 1000

// PurgeAnswers throws away the bodies of answers that are older than age. Their keys stay. There may be more of them when it
// returns true.
func (s *Store) PurgeAnswers(ctx context.Context, age time.Duration) (more bool, err error) {
	var n int64
	err = s.sweeps.QueryRow(ctx, `SELECT purge_answers(now() - $1::interval, $2)`, age, purgeChunk).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("throwing old answers away: %w", plain(err))
	}
	return n == purgeChunk, nil
}
