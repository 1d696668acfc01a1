package experiments

import (
	"context"
	"encoding/hex"
	"net/url"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/google/uuid"
)

var zookeeperCrash = Experiment{
	Name:    "zookeeper-crash",
	Claim:   "When a holder is killed its ephemeral node goes with its session, and the next one in line proceeds at once.",
	Control: "Behind a persistent node that a crashed client has left, the line stands still until somebody deletes it.",
	Run:     runZookeeperCrash,
}

func runZookeeperCrash(ctx context.Context, r *Run) error {
	term := 2 * time.Second
	if r.short {
		term = time.Second
	}
	env := []string{"FENCEPOST_INVENTORY_LOCK=zookeeper", "FENCEPOST_LEASE_TTL=" + term.String()}
	next, err := r.startOne(ctx, append(env, "FENCEPOST_LOCK_WAIT="+(3*term).String())...)
	if err != nil {
		return err
	}
	holder, err := r.startOne(ctx, append(env, "FENCEPOST_REVIEW_TIME=10s")...)
	if err != nil {
		return err
	}
	sku, err := r.item(ctx, next, 10, "", enforced)
	if err != nil {
		return err
	}
	conn, err := r.zookeeper()
	if err != nil {
		return err
	}
	queue := queueOf(sku)

	r.say("the holder is killed")
	t := r.timeline("an ephemeral node")
	began := time.Now()
	buyAside(ctx, holder, sku)
	var node string
	err = until(ctx, "the holder's node", func() (bool, error) {
		line, _, err := conn.Children(queue)
		if err == zk.ErrNoNode {
			return false, nil
		}
		if len(line) > 0 {
			node = queue + "/" + line[0]
		}
		return len(line) > 0, err
	})
	if err != nil {
		return err
	}
	t.at(began, Step, "holder", "creates its node, and has the lock")
	waiting := buyAside(ctx, next, sku)
	if err := holder.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	t.span(began, killed, "holder", "")
	t.at(killed, Fault, "holder", "is killed (SIGKILL)")
	exists, _, changed, err := conn.ExistsW(node)
	if err != nil {
		return err
	}
	if exists {
		if _, err := await(ctx, "the holder's node goes", changed); err != nil {
			return err
		}
	}
	gone := time.Now()
	t.at(gone, Step, "ZooKeeper", "ends the holder's session, and deletes its node")
	after, err := await(ctx, "the next one's answer", waiting)
	if err != nil {
		return err
	}
	t.span(gone, after.at, "next in line", after.token())
	t.at(after.at, Accept, "next in line", "has sold with token %s", after.token())
	r.Header = []string{"left behind", "session", "the node goes after", "the next one is answered", "after"}
	r.row("an ephemeral node", lasted(term), lasted(gone.Sub(killed)), after, lasted(after.at.Sub(killed)))
	r.BarUnit = "seconds until the next one is answered"
	r.bar("ephemeral node", "", after.at.Sub(killed).Seconds())
	// The servers look at their sessions once a tick, which is half a second.
	r.claims(after.made() && gone.Sub(killed) < term+time.Second+grace, "the session ends in its time, and the node with it",
		"with a session of %s, the node was gone after %s", lasted(term), lasted(gone.Sub(killed)))
	r.claims(after.at.Sub(gone) < time.Second, "the next one in line proceeds at once", "it had sold %s after the node was gone", lasted(after.at.Sub(gone)))

	r.say("the control: a persistent node is left behind")
	left, err := r.stand(conn, sku, zk.FlagSequence)
	if err != nil {
		return err
	}
	stuck := buy(ctx, next, sku)
	exists, _, err = conn.Exists(left)
	if err != nil {
		return err
	}
	r.row("a persistent node", lasted(term), "never", stuck, lasted(stuck.Took))
	r.bar("persistent node (gave up)", "", stuck.Took.Seconds())
	r.controls(stuck.Code == "lock_timeout" && exists, "the next one waits in vain", "after %s it is answered %s, and the node is still there", lasted(stuck.Took), stuck)
	if err := conn.Delete(left, -1); err != nil {
		return err
	}
	freed := buy(ctx, next, sku)
	r.row("a persistent node, deleted by hand", "–", "–", freed, lasted(freed.Took))
	r.controls(freed.made(), "the node was all that was in the way", "when it is deleted by hand, the next one is answered %s", freed)
	return nil
}

// zookeeper is a client of the laboratory's server that has nothing to do with the service.
func (r *Run) zookeeper() (*zk.Conn, error) {
	conn, _, err := zk.Connect(strings.Split(r.lab.Variable("FENCEPOST_ZOOKEEPER_SERVERS"), ","), patience, zk.WithLogger(silence{}))
	if err != nil {
		return nil, err
	}
	r.atEnd(func(context.Context) error { conn.Close(); return nil })
	return conn, nil
}

type silence struct{}

func (silence) Printf(string, ...any) {}

// queueOf is the node below which those stand in line who want the lock of the item.
func queueOf(sku string) string { return "/fencepost/" + url.PathEscape("item/"+sku) }

// stand takes a place in the item's line, as an instance of the service does.
func (r *Run) stand(conn *zk.Conn, sku string, flags int32) (node string, err error) {
	id := uuid.New()
	return conn.Create(queueOf(sku)+"/"+hex.EncodeToString(id[:])+"-", nil, flags, zk.WorldACL(zk.PermAll))
}
