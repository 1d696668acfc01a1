// Command peers is what the benchmark compares Fencepost with: for each usual way to guard a stock, the smallest service
// that a user of that library would write, with one lock and one transaction for each request.
//
//	peers KIND
//
// It is a module of its own, so that the libraries stay out of Fencepost's. It takes the laboratory's variables, and
// listens on FENCEPOST_LISTEN.
//
// The settings are fair: a lock that has to be asked for again is asked for every two milliseconds and without giving up,
// it lives as long as Fencepost's, it is released even when the caller is gone, and the pool has as many connections.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"
)

const (
	poolSize     = 16
	lockTerm     = 10 * time.Second
	retryDelay   = 2 * time.Millisecond
	stopPatience = 5 * time.Second
)

// reserve takes units of an item and returns the reservation's id.
type reserve func(ctx context.Context, sku string, quantity int64) (uuid.UUID, error)

var errSoldOut = errors.New("not enough in stock")

// kinds says how to make each kind of service.
var kinds = map[string]func(*pgxpool.Pool) (reserve, error){
	"pgx-update":     conditionalUpdate,
	"pgx-for-update": forUpdate,
	"pgx-advisory":   advisoryLock,
	"redsync-1":      redsyncOne,
	"redsync-5":      redsyncFive,
	"bsm-redislock":  bsmRedislock,
	"go-zookeeper":   goZooKeeper,
}

func main() {
	if len(os.Args) != 2 || kinds[os.Args[1]] == nil {
		var names []string
		for name := range kinds {
			names = append(names, name)
		}
		slices.Sort(names)
		fmt.Fprintln(os.Stderr, "usage: peers", strings.Join(names, "|"))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1]); err != nil {
		log.Fatalln("peers:", err)
	}
}

func run(ctx context.Context, kind string) error {
	config, err := pgxpool.ParseConfig(os.Getenv("FENCEPOST_OWNER_URL"))
	if err != nil {
		return err
	}
	config.MaxConns = poolSize
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	reserve, err := kinds[kind](pool)
	if err != nil {
		return err
	}

	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.GET("/readyz", func(c echo.Context) error {
		if err := pool.Ping(c.Request().Context()); err != nil {
			return err
		}
		return c.NoContent(http.StatusOK)
	})
	e.POST("/v1/items/:sku/reservations", handler(reserve))
	failed := make(chan error, 1)
	go func() { failed <- e.Start(os.Getenv("FENCEPOST_LISTEN")) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	return e.Shutdown(ctx)
}

func handler(reserve reserve) echo.HandlerFunc {
	return func(c echo.Context) error {
		var in struct {
			Quantity int64 `json:"quantity"`
		}
		if err := c.Bind(&in); err != nil {
			return err
		}
		if in.Quantity < 1 {
			return echo.NewHTTPError(http.StatusBadRequest, "quantity must be at least 1")
		}
		id, err := reserve(c.Request().Context(), c.Param("sku"), in.Quantity)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return echo.ErrNotFound
		case errors.Is(err, errSoldOut):
			return echo.NewHTTPError(http.StatusConflict, err.Error())
		case err != nil:
			return echo.NewHTTPError(http.StatusInternalServerError, err.Error())
		}
		return c.JSON(http.StatusCreated, map[string]any{"id": id})
	}
}
