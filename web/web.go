// Package web is the demo page: a race of many buyers for one item, over every running instance, with the database's own
// count at the end. The page is plain HTML, CSS and ES modules, embedded as they are read here; there is no build step.
//
// It promises that the page loads nothing from other hosts and sends requests to no one but the instances it was told of:
// the browser enforces both through the Content-Security-Policy. It talks to the service as any other client does, over
// the public API, and knows nothing of the rest of the program.
package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

//go:embed static
var static embed.FS

// contentTypes are the kinds of file that the page consists of. They are not left to package mime: it asks the machine's
// own tables, and a browser refuses a module whose type one of them gets wrong.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

type asset struct {
	body        []byte
	contentType string
	etag        string
}

// Files returns the page, at "/", and the files it consists of: the handler that answers GET and HEAD for each path. Which
// other paths and methods there are, and the headers that every answer of the service carries, is up to who serves them.
//
// connect are the base URLs of other instances ("http://127.0.0.1:8081"): the page may send requests to them, as to the
// instance that it came from. Files panics when one of them is not an absolute http or https URL; configuration is checked
// before it gets here.
func Files(connect []string) map[string]http.Handler {
	csp := policy(connect)
	files := make(map[string]http.Handler)
	for at, a := range load() {
		files[at] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", a.contentType)
			h.Set("Content-Security-Policy", csp)
			// Embedded files have no modification time. The hash of the content takes its place, and the browser asks every
			// time: a page of the last release beside scripts of this one would break in strange ways.
			h.Set("Cache-Control", "no-cache")
			h.Set("ETag", a.etag)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.body))
		})
	}
	return files
}

// load reads the embedded files, by the path of the URL that they are served at.
func load() map[string]asset {
	assets := make(map[string]asset)
	err := fs.WalkDir(static, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := static.ReadFile(name)
		if err != nil {
			return err
		}
		contentType, ok := contentTypes[path.Ext(name)]
		if !ok {
			return fmt.Errorf("%s: no content type is known for this kind of file", name)
		}
		at := strings.TrimPrefix(name, "static")
		if at == "/index.html" {
			at = "/"
		}
		sum := sha256.Sum256(body)
		assets[at] = asset{body, contentType, `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`}
		return nil
	})
	if err != nil {
		panic("web: " + err.Error()) // the files are part of the program
	}
	return assets
}

// policy allows the page its own files and, for requests alone, the other instances.
func policy(connect []string) string {
	sources := []string{"'self'"}
	for _, raw := range connect {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			panic(fmt.Sprintf("web: %q is not the base URL of an instance", raw))
		}
		// Only the origin: a path or a semicolon behind it would change the policy.
		sources = append(sources, u.Scheme+"://"+u.Host)
	}
	return "default-src 'self'; connect-src " + strings.Join(sources, " ") +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
}
