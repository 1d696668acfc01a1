package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"fencepost/domain"
)

// Key describes an API key. The key itself is stored nowhere.
type Key struct {
	ID        string
	Name      string // whom the key stands for; keys of the same name are the same caller, so that one can replace another
	Role      string // RoleClient or RoleAdmin
	CreatedAt time.Time
	RevokedAt time.Time // zero: it is valid
}

// What a key allows: to use the service, or to manage it as well.
const (
	RoleClient = "client"
	RoleAdmin  = "admin"
)

const (
	// A key that was revoked is still accepted by an instance that has just seen it, for at most so long. In return not
	// every request costs a query.
	keyCacheTTL = 5 * time.Second
	// Only valid keys are remembered, so this is reached by many real callers and not by guessing.
	keyCacheSize = 1024
)

// Keys are the API keys. It is safe for concurrent use.
type Keys struct {
	store *Store
	mu    sync.Mutex
	cache map[[sha256.Size]byte]cachedKey
}

type cachedKey struct {
	caller domain.Caller
	until  time.Time
}

// Keys returns the API keys in the store.
func (s *Store) Keys() *Keys { return &Keys{store: s, cache: map[[sha256.Size]byte]cachedKey{}} }

var keyPattern = regexp.MustCompile(`^fp_[A-Za-z0-9_-]{43}$`)

var keyNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Create makes a key and returns it for the only time. With 256 random bits in it nobody can guess a key, or find it from
// its digest, so the digest needs neither salt nor a slow hash.
func (k *Keys) Create(ctx context.Context, name, role string) (id, key string, err error) {
	if !keyNamePattern.MatchString(name) {
		return "", "", domain.Invalid("name", "must be 1 to 64 letters, digits, dots, dashes or underscores and begin with a letter or digit")
	}
	if role != RoleClient && role != RoleAdmin {
		return "", "", domain.Invalid("role", "must be %q or %q", RoleClient, RoleAdmin)
	}
	var secret [32]byte
	rand.Read(secret[:]) // never fails
	key = "fp_" + base64.RawURLEncoding.EncodeToString(secret[:])
	digest := sha256.Sum256([]byte(key))
	id = newUUID().String()
	_, err = k.store.pool.Exec(ctx, `INSERT INTO api_keys (id, name, role, digest) VALUES ($1, $2, $3, $4)`, id, name, role, digest[:])
	if err != nil {
		return "", "", fmt.Errorf("storing the key: %w", domainError(ctx, err))
	}
	return id, key, nil
}

// List returns all keys, the oldest first.
func (k *Keys) List(ctx context.Context) ([]Key, error) {
	rows, _ := k.store.pool.Query(ctx, `SELECT id::text, name, role, created_at, revoked_at FROM api_keys ORDER BY created_at, id`)
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (key Key, err error) {
		var revoked *time.Time
		err = row.Scan(&key.ID, &key.Name, &key.Role, &key.CreatedAt, &revoked)
		if revoked != nil {
			key.RevokedAt = *revoked
		}
		return key, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the keys: %w", domainError(ctx, err))
	}
	return keys, nil
}

// Revoke ends a key, on all instances within keyCacheTTL. Revoking twice is revoking once.
func (k *Keys) Revoke(ctx context.Context, id string) error {
	if _, err := uuid.Parse(id); err != nil {
		return fmt.Errorf("key %q: %w", id, domain.ErrNotFound)
	}
	tag, err := k.store.pool.Exec(ctx, `UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE id = $1`, id)
	if err != nil {
		return fmt.Errorf("revoking key %s: %w", id, domainError(ctx, err))
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("key %s: %w", id, domain.ErrNotFound)
	}
	return nil
}

// lookedUp is how much of a digest the index is asked for. How long that takes may tell of so many bytes, and those lead to no
// key; the whole is compared here, in a time that tells nothing.
const lookedUp = 8

// Authenticate finds the caller that a key stands for; domain.ErrNotFound if the key is not valid. What does not even look like a
// key costs no query.
func (k *Keys) Authenticate(ctx context.Context, key string) (domain.Caller, error) {
	if !keyPattern.MatchString(key) {
		return domain.Caller{}, fmt.Errorf("key: %w", domain.ErrNotFound)
	}
	digest := sha256.Sum256([]byte(key))
	now := time.Now()
	k.mu.Lock()
	cached, ok := k.cache[digest]
	k.mu.Unlock()
	if ok && now.Before(cached.until) {
		return cached.caller, nil
	}
	var found *domain.Caller
	var name, role string
	var stored []byte
	from, to := make([]byte, sha256.Size), bytes.Repeat([]byte{0xff}, sha256.Size)
	copy(from, digest[:lookedUp])
	copy(to, digest[:lookedUp])
	rows, _ := k.store.pool.Query(ctx, `SELECT name, role, digest FROM api_keys WHERE digest BETWEEN $1 AND $2 AND revoked_at IS NULL`, from, to)
	_, err := pgx.ForEachRow(rows, []any{&name, &role, &stored}, func() error {
		if subtle.ConstantTimeCompare(stored, digest[:]) == 1 {
			found = &domain.Caller{ID: name, Admin: role == RoleAdmin}
		}
		return nil
	})
	if err != nil {
		return domain.Caller{}, fmt.Errorf("looking up a key: %w", domainError(ctx, err))
	}
	if found == nil {
		return domain.Caller{}, fmt.Errorf("key: %w", domain.ErrNotFound)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.cache) >= keyCacheSize {
		clear(k.cache) // rare, and costs each caller one query
	}
	k.cache[digest] = cachedKey{caller: *found, until: now.Add(keyCacheTTL)} // counted from before the query
	return *found, nil
}
