// Package shop is a plain client of the service: one request, one answer. It speaks HTTP and imports nothing of the service.
//
// It promises that a request is sent once, and that an answer which was cut off is never taken for an acknowledgement.
package shop

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// Patience bounds a request. It is longer than the service allows itself.
const Patience = 30 * time.Second

// Answer is what came back. Status 0: no whole answer.
type Answer struct {
	Status int
	Header http.Header
	Took   time.Duration
	// Err is why there was no answer.
	Err error
}

// Exchange sends a request, with in as its JSON unless nil, and reads the answer into out unless nil.
func Exchange(ctx context.Context, method, url string, in, out any) Answer {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	began := time.Now()
	fail := func(err error) Answer { return Answer{Took: time.Since(began), Err: err} }
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return fail(err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, url, &body)
	if err != nil {
		return fail(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fail(err)
	}
	defer response.Body.Close()
	if out == nil {
		out = new(json.RawMessage)
	}
	if err := json.NewDecoder(response.Body).Decode(out); err != nil {
		return fail(err) // cut off: whatever the status line said, this is no acknowledgement
	}
	return Answer{Status: response.StatusCode, Header: response.Header, Took: time.Since(began)}
}
