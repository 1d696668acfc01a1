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
	a := t.answers[answerID{once.Caller, once.Key}]
	switch {
	case a == nil:
		return nil
	case a.fingerprint != once.Fingerprint:
		return domain.ErrKeyReused
	}
	return &domain.Replay{Answer: a.Answer}
}

// answer keeps an answer, to be written with what it says.
func (t *tx) answer(resource domain.Key, once *domain.Once, a domain.Answer) {
	put(&t.answers, answerID{once.Caller, once.Key}, &answer{Answer: a, resource: resource, fingerprint: once.Fingerprint})
}

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
			put(&t.answers, id, &a)
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
	for id, a := range t.answers {
		if a.stored {
			continue
		}
		resources, callers, keys = append(resources, a.resource), append(callers, id.caller), append(keys, id.key)
		fingerprints, bodies = append(fingerprints, a.fingerprint[:]), append(bodies, a.Body)
		statuses, locations = append(statuses, int16(a.Status)), append(locations, a.Location)
	}
	if len(keys) > 0 {
		batch.Queue(`
			INSERT INTO answers (resource, caller, key, fingerprint, status, location, body)
			SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::smallint[], $6::text[], $7::bytea[])`,
			resources, callers, keys, fingerprints, statuses, locations, bodies)
	}
}

// PurgeAnswers throws away the bodies of answers that are older than age, and returns how many. Their keys stay.
func (s *Store) PurgeAnswers(ctx context.Context, age time.Duration) (n int64, err error) {
	err = s.health.QueryRow(ctx, `SELECT purge_answers(now() - $1::interval)`, age).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("throwing old answers away: %w", plain(err))
	}
	return n, nil
}
