package handlers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

const (
	// maxBody is far above what any request needs.
	maxBody = 64 << 10
	// identity is the content coding of what is sent as it is.
	identity = "identity"
)

// malformedError is a body that is not JSON.
type malformedError struct {
	problem string
	offset  int64
}

func (e *malformedError) Error() string { return e.problem }

// decode reads the body into a T, a struct whose fields all have a json tag. A field is required unless its tag says
// omitempty; an optional one is a pointer, so that what was left out can be told from zero.
//
// encoding/json alone is too kind for a request that moves stock: it takes {"quantity": 1, "Quantity": 90} for 90, null for
// "no change", a misspelt field for nothing, and a missing one for zero. So the objects are walked here, and encoding/json
// reads the single values.
func decode[T any](c echo.Context) (T, error) {
	var in T
	if err := checkMediaType(c.Request()); err != nil {
		return in, err
	}
	body, err := readBody(c)
	if err != nil {
		return in, err
	}
	err = decodeBody(body, &in)
	return in, err
}

// noBody is for the POSTs that need none. What is there all the same must be an empty object: a field in it would be
// something that the client wants and does not get.
func noBody(c echo.Context) error {
	body, err := readBody(c) // only this tells: a body sent in chunks has no length before its end
	if err != nil || len(body) == 0 {
		return err
	}
	if err := checkMediaType(c.Request()); err != nil {
		return err
	}
	return decodeBody(body, &struct{}{})
}

// checkMediaType has the body declared as plain JSON. What is packed would be "not JSON" to its sender's surprise; to unpack it
// would let a small body become a large one.
func checkMediaType(r *http.Request) error {
	for coding := range strings.SplitSeq(strings.Join(r.Header.Values(echo.HeaderContentEncoding), ","), ",") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, identity) {
			return errEncoding
		}
	}
	mediaType, params, err := mime.ParseMediaType(r.Header.Get(echo.HeaderContentType))
	if charset := params["charset"]; err != nil || mediaType != echo.MIMEApplicationJSON ||
		charset != "" && !strings.EqualFold(charset, "utf-8") {
		return errMediaType
	}
	return nil
}

// readBody returns the whole body, as it was sent.
func readBody(c echo.Context) ([]byte, error) {
	r := c.Request()
	if r.ContentLength > maxBody {
		return nil, errTooLarge // before a client that asks (Expect: 100-continue) sends it
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Response(), r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errTooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errIncomplete
	}
	if err != nil {
		return nil, &malformedError{problem: "the body cannot be read", offset: int64(len(body))}
	}
	c.Set(keyBody, body)
	return body, nil
}

// decodeBody reads a body that must be one JSON value into the struct that into points to.
func decodeBody(body []byte, into any) error {
	if !utf8.Valid(body) {
		return &malformedError{problem: "the body is not UTF-8", offset: validPrefix(body)}
	}
	var whole json.RawMessage
	if err := json.Unmarshal(body, &whole); err != nil {
		syntax, ok := errors.AsType[*json.SyntaxError](err)
		if !ok {
			return err
		}
		return &malformedError{problem: syntax.Error(), offset: syntax.Offset}
	}
	return decodeObject("", whole, reflect.ValueOf(into).Elem())
}

func validPrefix(body []byte) (n int64) {
	for len(body) > 0 {
		r, size := utf8.DecodeRune(body)
		if r == utf8.RuneError && size == 1 {
			break
		}
		body, n = body[size:], n+int64(size)
	}
	return n
}

// decodeObject reads the object raw, which is valid JSON, into a struct. path is where it stands in the body: "" or "lock".
func decodeObject(path string, raw []byte, into reflect.Value) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		if path == "" {
			path = "body"
		}
		return domain.Invalid(path, "must be an object")
	}
	fields := fieldsOf(into.Type())
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		name := token.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		at := join(path, shown(name))
		i, known := fields[name]
		switch {
		case !known:
			return domain.Invalid(at, "must be left out: there is no such field")
		case seen[name]:
			return domain.Invalid(at, "must be given once")
		}
		seen[name] = true
		if err := decodeValue(at, value, into.Field(i)); err != nil {
			return err
		}
	}
	for i := range into.NumField() { // in the order of the struct, so that the answer is always the same
		name, optional := nameOf(into.Type().Field(i))
		if !optional && !seen[name] {
			return domain.Invalid(join(path, name), "must be given")
		}
	}
	return nil
}

func decodeValue(at string, raw []byte, into reflect.Value) error {
	if string(raw) == "null" {
		return domain.Invalid(at, "must not be null")
	}
	if into.Kind() == reflect.Pointer {
		into.Set(reflect.New(into.Type().Elem()))
		into = into.Elem()
	}
	if into.Kind() == reflect.Struct && into.Type() != reflect.TypeFor[time.Time]() {
		return decodeObject(at, raw, into)
	}
	if into.Kind() == reflect.Slice {
		return decodeArray(at, raw, into)
	}
	if err := json.Unmarshal(raw, into.Addr().Interface()); err != nil {
		return domain.Invalid(at, "must be %s", wanted(into))
	}
	return nil
}

func decodeArray(at string, raw []byte, into reflect.Value) error {
	var elements []json.RawMessage
	if err := json.Unmarshal(raw, &elements); err != nil {
		return domain.Invalid(at, "must be an array")
	}
	into.Set(reflect.MakeSlice(into.Type(), len(elements), len(elements)))
	for i, element := range elements {
		if err := decodeValue(fmt.Sprintf("%s[%d]", at, i), element, into.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

// wanted says in the client's words what a field takes.
func wanted(v reflect.Value) string {
	switch v.Interface().(type) {
	case int64:
		return "a whole number of at most 64 bits, without a fraction or an exponent"
	case string:
		return "a string"
	case time.Time:
		return "a time as RFC 3339 has it, such as 2026-01-31T18:00:00Z"
	}
	panic("handlers: no words for " + v.Type().String())
}

// fieldsOf maps the names of t's fields to their places. Names are taken to the letter.
func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		name, _ := nameOf(t.Field(i))
		fields[name] = i
	}
	return fields
}

func nameOf(f reflect.StructField) (name string, optional bool) {
	name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, options == "omitempty"
}

// plainName is what a client may call something and have it repeated as it is.
var plainName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// shown is a name of the client's choice, fit for an answer: what is long is cut, and what is not plain is quoted.
func shown(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	return fmt.Sprintf("%.64q", name)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
