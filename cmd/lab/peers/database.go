package main

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// conditionalUpdate needs no lock: the decision is part of the statement.
func conditionalUpdate(pool *pgxpool.Pool) (reserve, error) {
	return func(ctx context.Context, sku string, quantity int64) (id uuid.UUID, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `UPDATE peers.items SET stock = stock - $2 WHERE sku = $1 AND stock >= $2`, sku, quantity)
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				return errSoldOut
			}
			id, err = insert(ctx, tx, sku, quantity)
			return err
		})
		return id, err
	}, nil
}

func forUpdate(pool *pgxpool.Pool) (reserve, error) {
	return func(ctx context.Context, sku string, quantity int64) (id uuid.UUID, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			id, err = readDecideWrite(ctx, tx, `SELECT stock FROM peers.items WHERE sku = $1 FOR UPDATE`, sku, quantity)
			return err
		})
		return id, err
	}, nil
}

func advisoryLock(pool *pgxpool.Pool) (reserve, error) {
	return func(ctx context.Context, sku string, quantity int64) (id uuid.UUID, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, sku); err != nil {
				return err
			}
			id, err = readDecideWrite(ctx, tx, selectStock, sku, quantity)
			return err
		})
		return id, err
	}, nil
}

const selectStock = `SELECT stock FROM peers.items WHERE sku = $1`

// transact is the section under a lock that is kept elsewhere.
func transact(ctx context.Context, pool *pgxpool.Pool, sku string, quantity int64) (id uuid.UUID, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		id, err = readDecideWrite(ctx, tx, selectStock, sku, quantity)
		return err
	})
	return id, err
}

func readDecideWrite(ctx context.Context, tx pgx.Tx, read, sku string, quantity int64) (uuid.UUID, error) {
	var stock int64
	if err := tx.QueryRow(ctx, read, sku).Scan(&stock); err != nil {
		return uuid.Nil, err
	}
	if stock < quantity {
		return uuid.Nil, errSoldOut
	}
	if _, err := tx.Exec(ctx, `UPDATE peers.items SET stock = $2 WHERE sku = $1`, sku, stock-quantity); err != nil {
		return uuid.Nil, err
	}
	return insert(ctx, tx, sku, quantity)
}

func insert(ctx context.Context, tx pgx.Tx, sku string, quantity int64) (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, err
	}
	_, err = tx.Exec(ctx, `INSERT INTO peers.reservations (id, sku, quantity) VALUES ($1, $2, $3)`, id, sku, quantity)
	return id, err
}
