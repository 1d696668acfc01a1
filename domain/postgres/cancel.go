package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
)

// canceller asks the server to stop a query whose context has ended, and keeps the connection until the server has taken
// note. pgx has one of its own, which gives up on the request when the query ends by itself in the same moment. A request
// that is on its way all the same stops the next query on the connection, which is somebody else's; and a COMMIT that waits
// for a synchronous standby would take it as leave to go without it.
type canceller struct {
	conn  *pgconn.PgConn
	asked chan bool // whether the server has taken note
}

var _ ctxwatch.Handler = (*canceller)(nil)

// HandleCancel implements ctxwatch.Handler. It must not block.
func (c *canceller) HandleCancel(context.Context) {
	deadline := time.Now().Add(cancelGrace)
	_ = c.conn.Conn().SetDeadline(deadline)
	c.asked = make(chan bool, 1)
	go func() {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		// It returns when the server hangs up, and the server does that when it has sent the signal to the query's process.
		err := c.conn.CancelRequest(ctx)
		c.asked <- err == nil && ctx.Err() == nil
	}()
}

// HandleUnwatchAfterCancel implements ctxwatch.Handler. It is called when the query is over.
func (c *canceller) HandleUnwatchAfterCancel() {
	if !<-c.asked { // the request may still arrive, and must not find another query
		c.conn.CustomData()[cut] = true
		_ = c.conn.Conn().Close()
		return
	}
	_ = c.conn.Conn().SetDeadline(time.Time{})
}

// cut marks a connection that was closed here behind the back of pgx, which takes it for idle if its query has ended well.
const cut = "fencepost: cut"

// usable has the pool drop such a connection in place of handing it to somebody who is not to blame.
func usable(_ context.Context, conn *pgx.Conn) (bool, error) {
	return conn.PgConn().CustomData()[cut] == nil, nil
}
