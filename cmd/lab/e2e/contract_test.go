package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/handlers"
	"fencepost/handlers/contracttest"
)

// contract is held against the answers of real instances, under faults as well. Tests make requests by the ten thousand, so
// of those that are alike it looks at the first hundred.
type contract struct {
	document *contracttest.Document

	mu       sync.Mutex
	alike    map[string]int
	breaches []error
}

const enough = 100

func newContract() (*contract, error) {
	document, err := contracttest.Load(handlers.OpenAPI)
	return &contract{document: document, alike: map[string]int{}}, err
}

// verdict is an error if an answer was against the contract.
func (c *contract) verdict() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.breaches...)
}

// The negative control: an answer that the document does not tell of is found, and reaches the test unchanged.
func TestAnswersAgainstTheContractAreFound(t *testing.T) {
	c, err := newContract()
	require.NoError(t, err)
	item := `{"sku":"lamp","name":"Lamp","on_hand":1,"reserved":0,"available":1,"sold":0,"strategy":"redis","fencing":"enforced","fence":{"epoch":"1","token":"1"}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Request-Id", "12345678")
		w.Header().Set("Etag", `"a.b"`)
		_, _ = io.WriteString(w, item)
	}))
	defer server.Close()
	client := &http.Client{Transport: c.watch(&http.Transport{DisableKeepAlives: true})}
	get := func() string {
		response, err := client.Get(server.URL + "/v1/items/lamp")
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return string(body)
	}
	require.Equal(t, item, get())
	require.NoError(t, c.verdict())
	item = strings.Replace(item, `"token":"1"`, `"token":1`, 1)
	require.Equal(t, item, get())
	require.ErrorContains(t, c.verdict(), "token")
}

// watch returns a transport whose exchanges are looked at.
func (c *contract) watch(next *http.Transport) http.RoundTripper { return watched{next, c} }

type watched struct {
	*http.Transport
	contract *contract
}

var ids = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

func (w watched) RoundTrip(r *http.Request) (*http.Response, error) {
	e := contracttest.Exchange{Method: r.Method, URL: r.URL, Header: r.Header}
	if r.GetBody != nil {
		copied, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		if e.Body, err = io.ReadAll(copied); err != nil {
			return nil, err
		}
	}
	response, err := w.Transport.RoundTrip(r)
	if err != nil || strings.HasPrefix(response.Header.Get("Content-Type"), "text/event-stream") {
		return response, err
	}
	e.Status, e.Answer = response.StatusCode, response.Header
	body := response.Body
	var cut error
	e.AnswerBody, cut = io.ReadAll(body)
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(e.AnswerBody), ending{cut}), body}
	if cut == nil {
		w.contract.look(r, e)
	}
	return response, nil
}

// ending is the end of a body that was read in advance.
type ending struct{ err error }

func (e ending) Read([]byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	return 0, io.EOF
}

func (c *contract) look(r *http.Request, e contracttest.Exchange) {
	kind := fmt.Sprint(e.Method, ids.ReplaceAllString(e.URL.Path, "*"), e.Status)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.alike[kind]++; c.alike[kind] > enough {
		return
	}
	if err := c.document.Check(r.Context(), e); err != nil {
		c.breaches = append(c.breaches, fmt.Errorf("against the contract: %s %s: %d %s: %w", e.Method, e.URL, e.Status, e.AnswerBody, err))
	}
}
