package postgres_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/postgrestest"
)

func TestKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := postgrestest.New(t)
	store := db.Store(t, 1)
	keys := store.Keys()

	_, shop, err := keys.Create(ctx, "shop", postgres.RoleClient)
	require.NoError(t, err)
	id, boss, err := keys.Create(ctx, "boss", postgres.RoleAdmin)
	require.NoError(t, err)
	require.Regexp(t, `^fp_[A-Za-z0-9_-]{43}$`, boss)

	caller, err := keys.Authenticate(ctx, shop)
	require.NoError(t, err)
	assert.Equal(t, domain.Caller{ID: "shop"}, caller)
	caller, err = keys.Authenticate(ctx, boss)
	require.NoError(t, err)
	assert.Equal(t, domain.Caller{ID: "boss", Admin: true}, caller)
	for _, wrong := range []string{"", "fp_", shop + "x", shop[:len(shop)-1], "\x00\xff"} {
		_, err = keys.Authenticate(ctx, wrong)
		assert.ErrorIs(t, err, domain.ErrNotFound, "%q", wrong)
	}

	require.NoError(t, keys.Revoke(ctx, id))
	require.NoError(t, keys.Revoke(ctx, id), "revoking twice is revoking once")
	_, err = store.Keys().Authenticate(ctx, boss)
	assert.ErrorIs(t, err, domain.ErrNotFound, "an instance that has not seen the key asks, and is told no")
	_, err = keys.Authenticate(ctx, boss)
	assert.NoError(t, err, "an instance that has just seen it remembers it for a moment")
	_, err = store.Keys().Authenticate(ctx, shop)
	assert.NoError(t, err, "other keys go on")
	assert.ErrorIs(t, keys.Revoke(ctx, "no-uuid"), domain.ErrNotFound)
	assert.ErrorIs(t, keys.Revoke(ctx, "00000000-0000-0000-0000-000000000000"), domain.ErrNotFound)

	list, err := keys.List(ctx)
	require.NoError(t, err)
	require.Len(t, list, 2)
	assert.Equal(t, "shop", list[0].Name)
	assert.True(t, list[0].RevokedAt.IsZero())
	assert.Equal(t, id, list[1].ID)
	assert.Equal(t, postgres.RoleAdmin, list[1].Role)
	assert.False(t, list[1].RevokedAt.IsZero())

	// The key itself is nowhere in the table.
	var found bool
	owner := postgrestest.Connect(t, db.OwnerURL)
	require.NoError(t, owner.QueryRow(ctx, `SELECT count(*) > 0 FROM api_keys k WHERE k::text LIKE '%' || $1 || '%'`, shop).Scan(&found))
	assert.False(t, found)
}

// What cannot be a key is refused without a query: the store is closed.
func TestNoKeyAtAll(t *testing.T) {
	t.Parallel()
	store := postgrestest.New(t).Store(t, 1)
	store.Close()
	_, err := store.Keys().Authenticate(t.Context(), "fp_"+strings.Repeat("a", 43))
	require.NotErrorIs(t, err, domain.ErrNotFound)
	for _, key := range []string{"", "x", "fp_", strings.Repeat("a", 46), "fp_" + strings.Repeat("a", 44), "fp_" + strings.Repeat("a", 42) + "\n"} {
		_, err := store.Keys().Authenticate(t.Context(), key)
		require.ErrorIs(t, err, domain.ErrNotFound, "%q", key)
	}
}

// A key is found by the beginning of its digest. That it is the same key is decided by the whole.
func TestKeysWithDigestsThatBeginAlike(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	store := db.Store(t, 1)
	id, shop, err := store.Keys().Create(t.Context(), "shop", postgres.RoleClient)
	require.NoError(t, err)
	owner := postgrestest.Connect(t, db.OwnerURL)
	_, err = owner.Exec(t.Context(), `
		INSERT INTO api_keys (id, name, role, digest)
		SELECT gen_random_uuid(), 'other', 'admin', set_byte(digest, 31, (get_byte(digest, 31) + n) % 256) FROM api_keys, generate_series(1, 255) n`)
	require.NoError(t, err)
	caller, err := store.Keys().Authenticate(t.Context(), shop)
	require.NoError(t, err)
	assert.Equal(t, domain.Caller{ID: "shop"}, caller)
	require.NoError(t, store.Keys().Revoke(t.Context(), id))
	_, err = store.Keys().Authenticate(t.Context(), shop)
	require.ErrorIs(t, err, domain.ErrNotFound)
}

func TestKeyThatCannotBeMade(t *testing.T) {
	t.Parallel()
	keys := postgrestest.New(t).Store(t, 1).Keys()
	for _, tt := range []struct{ name, role string }{{"", postgres.RoleClient}, {"a b", postgres.RoleClient}, {"a\n", postgres.RoleClient}, {"shop", "god"}, {"shop", ""}} {
		_, _, err := keys.Create(t.Context(), tt.name, tt.role)
		assert.ErrorIs(t, err, domain.ErrInvalid, "%q %q", tt.name, tt.role)
	}
}
