package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

// The page against the product itself: what it says is what the database has. Without a lock, that is an oversell.
func TestAgainstTheProduct(t *testing.T) {
	database := postgrestest.New(t)
	conn := postgrestest.Connect(t, database.OwnerURL)
	instances := serve(t, database, 2)
	for _, strategy := range []string{"none", "redis"} {
		t.Run(strategy, func(t *testing.T) {
			p := open(t)
			p.visit(instances[0] + "/?stock=20&buyers=80&strategy=" + strategy)
			p.race()

			var resource string
			var stock, given int
			require.NoError(t, conn.QueryRow(t.Context(), `
				SELECT i.resource, i.on_hand, (SELECT sum(quantity) FROM reservation_lines WHERE resource = i.resource)
				  FROM items i ORDER BY created_at DESC LIMIT 1`).Scan(&resource, &stock, &given))
			require.Contains(t, resource, "item/race-")
			require.Equal(t, 20, stock)
			require.Contains(t, p.text("#verdict-text"), fmt.Sprintf("Sold %d of 20. Oversold %d.", given, given-20))
			if strategy == "none" {
				require.Greater(t, given, 20, "without a lock, more must be sold than there is")
			} else {
				require.Equal(t, 20, given)
			}
			p.clean(instances...)
		})
	}
}

// The document of the API is shown without a network, and the product's policy lets it be.
func TestDocs(t *testing.T) {
	url := serve(t, postgrestest.New(t), 1)[0]
	p := open(t)
	p.do(chromedp.Navigate(url + "/docs"))
	p.wait(`document.querySelectorAll('.opblock').length > 0`)
	document := evaluate[string](p, `fetch('/openapi.yaml').then((answer) => answer.text())`)
	operations := strings.Count(document, "operationId: ")
	require.Positive(t, operations)
	require.Equal(t, operations, evaluate[int](p, `document.querySelectorAll('.opblock').length`), "every operation is shown")

	// Unfolded, with its examples and its problems; and tried.
	p.click("#operations-items-getItem .opblock-summary-control")
	p.wait(`document.querySelector('#operations-items-getItem .responses-table') !== null`)
	p.wait(`document.querySelector('#operations-items-getItem').innerText.includes('9007199254740993')`)
	p.click("#operations-operation-readyz .opblock-summary-control")
	p.wait(`document.querySelector('#operations-operation-readyz .try-out__btn') !== null`)
	p.click("#operations-operation-readyz .try-out__btn")
	p.wait(`document.querySelector('#operations-operation-readyz .execute') !== null`)
	p.click("#operations-operation-readyz .execute")
	p.wait(`document.querySelector('#operations-operation-readyz .live-responses-table')?.innerText.includes('"ready"') === true`)
	p.clean(url)
}

// build builds a program of the module, beside what the browser keeps.
func build(name string) (string, error) {
	binary := filepath.Join(scratch, name)
	output, err := exec.Command("go", "build", "-ldflags=-w", "-o", binary, "fencepost/cmd/"+name).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, output)
	}
	return binary, err
}

var buildProduct = sync.OnceValues(func() (string, error) { return build("fencepost") })

// connections are few: enough to meet in PostgreSQL, which spends a tenth of a second of a processor on each.
const connections = "FENCEPOST_DATABASE_CONNS=4"

// serve runs instances of the program until the test ends, and returns their addresses.
func serve(t *testing.T, database postgrestest.Database, n int) []string {
	t.Helper()
	binary, err := buildProduct()
	require.NoError(t, err)
	addresses, urls := make([]string, n), make([]string, n)
	for i := range addresses {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		addresses[i], urls[i] = listener.Addr().String(), "http://"+listener.Addr().String()
		require.NoError(t, listener.Close())
	}
	for i, address := range addresses {
		cmd := exec.Command(binary, "serve")
		cmd.Env = append(os.Environ(), "FENCEPOST_AUTH=off", "FENCEPOST_DRAIN_DELAY=0s", connections, "FENCEPOST_LISTEN="+address,
			"FENCEPOST_DATABASE_URL="+database.ServiceURL, "FENCEPOST_INSTANCES="+strings.Join(urls, ","))
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, cmd.Wait())
		})
		require.Eventually(t, func() bool {
			response, err := http.Get(urls[i] + "/readyz")
			return err == nil && response.Body.Close() == nil && response.StatusCode == http.StatusOK
		}, 20*time.Second, 20*time.Millisecond)
	}
	return urls
}
