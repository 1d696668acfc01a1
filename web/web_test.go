package web_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"fencepost/web"
)

var files = web.Files([]string{"http://127.0.0.1:8081", "https://shop.example/path;script-src *"})

func get(t *testing.T, method, path string, header http.Header) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for name, values := range header {
		r.Header[name] = values
	}
	w := httptest.NewRecorder()
	files[path].ServeHTTP(w, r)
	response := w.Result()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

func TestFilesHaveTheirTypes(t *testing.T) {
	t.Parallel()
	types := map[string]string{
		"/":          "text/html; charset=utf-8",
		"/page.js":   "text/javascript; charset=utf-8",
		"/style.css": "text/css; charset=utf-8",
		"/icon.svg":  "image/svg+xml",

		"/docs":                      "text/html; charset=utf-8",
		"/docs/docs.js":              "text/javascript; charset=utf-8",
		"/docs/swagger-ui.css":       "text/css; charset=utf-8",
		"/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
	}
	for _, module := range []string{
		"api", "compare", "dom", "faults", "fleet", "guide", "lanes", "numbers", "picture", "player", "recording", "reducer", "run", "stories", "words",
	} {
		types["/"+module+".js"] = "text/javascript; charset=utf-8"
	}
	for path, want := range types {
		response, body := get(t, http.MethodGet, path, nil)
		if response.StatusCode != http.StatusOK || body == "" {
			t.Errorf("GET %s: status %d with %d bytes", path, response.StatusCode, len(body))
		}
		if got := response.Header.Get("Content-Type"); got != want {
			t.Errorf("GET %s: Content-Type %q, want %q", path, got, want)
		}
	}
	for path := range files {
		if types[path] == "" && path != "/docs/" {
			t.Errorf("there is a file at %s, which is no part of the page", path)
		}
	}
}

// A slash too many leads to the same page, with no second address for it.
func TestDocsWithASlash(t *testing.T) {
	t.Parallel()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		response, _ := get(t, method, "/docs/", nil)
		if response.StatusCode != http.StatusMovedPermanently || response.Header.Get("Location") != "/docs" {
			t.Errorf("%s /docs/: status %d, Location %q", method, response.StatusCode, response.Header.Get("Location"))
		}
	}
}

func TestHeadHasNoBody(t *testing.T) {
	t.Parallel()
	response, body := get(t, http.MethodHead, "/", nil)
	if response.StatusCode != http.StatusOK || body != "" || response.Header.Get("Content-Length") == "" {
		t.Errorf("HEAD /: status %d, body %q, Content-Length %q", response.StatusCode, body, response.Header.Get("Content-Length"))
	}
}

func TestUnchangedFilesAreNotSentAgain(t *testing.T) {
	t.Parallel()
	first, _ := get(t, http.MethodGet, "/page.js", nil)
	etag := first.Header.Get("ETag")
	if etag == "" || first.Header.Get("Cache-Control") != "no-cache" {
		t.Fatalf("ETag %q, Cache-Control %q", etag, first.Header.Get("Cache-Control"))
	}
	second, body := get(t, http.MethodGet, "/page.js", http.Header{"If-None-Match": {etag}})
	if second.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("with the ETag: status %d and %d bytes, want 304 and none", second.StatusCode, len(body))
	}
	if second.Header.Get("Content-Security-Policy") == "" {
		t.Error("304 without a policy: the browser would keep the old one when the instances change")
	}
	if other, _ := get(t, http.MethodGet, "/reducer.js", nil); other.Header.Get("ETag") == etag {
		t.Error("two files have the same ETag")
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	response, page := get(t, http.MethodGet, "/", nil)
	policy := response.Header.Get("Content-Security-Policy")
	const want = "default-src 'self'; connect-src 'self' http://127.0.0.1:8081 https://shop.example; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
	if policy != want {
		t.Errorf("policy\n%s\nwant\n%s", policy, want)
	}
	response, docs := get(t, http.MethodGet, "/docs", nil)
	const wantDocs = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
	if policy := response.Header.Get("Content-Security-Policy"); policy != wantDocs {
		t.Errorf("policy\n%s\nwant\n%s", policy, wantDocs)
	}
	for _, inline := range []string{"<style", "style=", "onclick=", "javascript:", "//cdn", "https://"} {
		if strings.Contains(page, inline) || strings.Contains(docs, inline) {
			t.Errorf("a page contains %q", inline)
		}
	}
}

func TestAnAddressThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:8081", "", "ftp://127.0.0.1", "http://"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Files accepts %q", address)
				}
			}()
			web.Files([]string{address})
		}()
	}
}
