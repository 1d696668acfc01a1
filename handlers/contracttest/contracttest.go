// Package contracttest holds answers against the OpenAPI document of the service. It exists for tests alone: whoever calls the
// service there sends its exchanges here, so that no answer can be seen that the document does not tell of.
package contracttest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
)

// Document is an OpenAPI document that is valid.
type Document struct {
	*openapi3.T
	router routers.Router
}

// Load reads a document, and refuses one that is not valid; examples that do not fit their schemas included.
func Load(text []byte) (*Document, error) {
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, fmt.Errorf("reading the document: %w", err)
	}
	if err := doc.Validate(context.Background(), openapi3.EnableExamplesValidation(), openapi3.EnableSchemaFormatValidation()); err != nil {
		return nil, fmt.Errorf("validating the document: %w", err)
	}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		return nil, fmt.Errorf("reading the document's paths: %w", err)
	}
	return &Document{T: doc, router: router}, nil
}

// Exchange is a request and what came of it.
type Exchange struct {
	Method     string
	URL        *url.URL
	Header     http.Header
	Body       []byte // as far as it was read
	Status     int
	Answer     http.Header
	AnswerBody []byte
	NoBodySeen bool // the body of the answer was not kept
}

// general are headers that any answer may have. They belong to HTTP and to browsers, and tell nothing of an operation.
var general = []string{
	"Cache-Control", "Content-Length", "Content-Security-Policy", "Content-Type", "Date", "Connection", "Referrer-Policy", "Vary", "X-Content-Type-Options",
	"Access-Control-Allow-Headers", "Access-Control-Allow-Methods", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Access-Control-Max-Age",
}

// problemType is the type of every answer that is an error.
const problemType = "application/problem+json"

// Check returns an error if the document does not tell of such an answer, or if the service has accepted a request that the
// document calls wrong.
func (d *Document) Check(ctx context.Context, e Exchange) error {
	method := e.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if method == http.MethodOptions && e.Status == http.StatusNoContent {
		return nil // a browser that asks whether a page may
	}
	request := &http.Request{
		Method: method, URL: e.URL,
		Header: e.Header, Body: io.NopCloser(bytes.NewReader(e.Body)),
	}
	route, params, err := d.router.FindRoute(request)
	if err != nil || strings.HasSuffix(e.URL.Path, "/") { // which the router takes for the path without it
		return d.checkNoOperation(e)
	}
	input := &openapi3filter.RequestValidationInput{
		Request: request, PathParams: params, QueryParams: request.URL.Query(), Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, SkipSettingDefaults: true},
	}
	if e.Status < 300 {
		if err := openapi3filter.ValidateRequest(ctx, input); err != nil {
			return fmt.Errorf("the document calls a request wrong that was answered %d: %w", e.Status, err)
		}
	}
	response := route.Operation.Responses.Status(e.Status)
	if response == nil { // the filter does not look at some of them
		return fmt.Errorf("the document has no %d for %s %s", e.Status, method, route.Path)
	}
	if err := checkHeaders(e.Answer, response.Value.Headers); err != nil {
		return err
	}
	if len(response.Value.Content) == 0 && len(e.AnswerBody) > 0 {
		return fmt.Errorf("the document has no body for %d of %s %s", e.Status, method, route.Path)
	}
	err = openapi3filter.ValidateResponse(ctx, &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: e.Status, Header: e.Answer, Body: io.NopCloser(bytes.NewReader(e.AnswerBody)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, ExcludeResponseBody: e.NoBodySeen || e.Method == http.MethodHead},
	})
	if err != nil {
		return fmt.Errorf("the answer of %s %s is not in the document: %w", method, route.Path, err)
	}
	return nil
}

// checkNoOperation is for paths and methods that the document does not have: they are answered with a problem.
func (d *Document) checkNoOperation(e Exchange) error {
	if e.Status < 400 || e.Answer.Get("Content-Type") != problemType {
		return fmt.Errorf("%s %s is not in the document, and was answered %d", e.Method, e.URL.Path, e.Status)
	}
	if e.NoBodySeen || e.Method == http.MethodHead {
		return nil
	}
	var body any
	if err := json.Unmarshal(e.AnswerBody, &body); err != nil {
		return fmt.Errorf("the problem of %s %s: %w", e.Method, e.URL.Path, err)
	}
	if err := d.Components.Schemas["Problem"].Value.VisitJSON(body, openapi3.VisitAsResponse()); err != nil {
		return fmt.Errorf("the problem of %s %s: %w", e.Method, e.URL.Path, err)
	}
	return nil
}

// checkHeaders finds what the document does not tell of; the filter finds what is missing.
func checkHeaders(answer http.Header, documented openapi3.Headers) error {
	known := slices.Clone(general)
	for name := range documented {
		known = append(known, http.CanonicalHeaderKey(name))
	}
	for name := range answer {
		if !slices.Contains(known, name) {
			return fmt.Errorf("the document does not have the header %s: %s", name, strings.Join(answer[name], ", "))
		}
	}
	return nil
}

// Codes are the codes that a response of the document can have.
func Codes(response *openapi3.Response) (codes []string) {
	content := response.Content.Get(problemType)
	if content == nil {
		return nil
	}
	for _, part := range content.Schema.Value.AllOf {
		if code := part.Value.Properties["code"]; code != nil && part.Ref == "" {
			for _, value := range code.Value.Enum {
				codes = append(codes, value.(string))
			}
		}
	}
	return codes
}

// Watch sends every exchange with the handler to seen.
func Watch(next http.Handler, seen func(context.Context, Exchange)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := Exchange{Method: r.Method, URL: &url.URL{Path: r.URL.Path, RawQuery: r.URL.RawQuery}, Header: r.Header.Clone()}
		var body bytes.Buffer
		r = r.WithContext(r.Context()) // a copy: net/http goes by the body of its own, for instance whether it was asked for
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(r.Body, &body), r.Body}
		rec := &recorder{ResponseWriter: w}
		next.ServeHTTP(rec, r)
		e.Body, e.Status, e.Answer, e.AnswerBody = body.Bytes(), rec.status, w.Header(), rec.body.Bytes()
		e.NoBodySeen = rec.streams()
		seen(context.WithoutCancel(r.Context()), e)
	})
}

// recorder keeps what goes by.
type recorder struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	if !r.streams() { // it would have no end
		r.body.Write(b)
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) streams() bool {
	return strings.HasPrefix(r.Header().Get("Content-Type"), "text/event-stream")
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
