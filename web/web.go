// Package web is the demo page: races of many buyers for one item, over every running instance, with the database's own
// count at the end; lanes that show who held the lock, who wrote, and what the fence refused; and stories in which servers
// are broken. The page is plain HTML, CSS and ES modules, embedded as they are read here; there is no build step. What it
// shows is a fold of events (static/reducer.js), live and replayed alike. Beside it, at /docs, is a page that shows the OpenAPI
// document, with Swagger UI.
//
// It promises that the page loads nothing from other hosts and sends requests to no one but the instances it was told of:
// the browser enforces both through the Content-Security-Policy. It talks to the service as any other client does, over
// the public API and, where there are any, the operations of the demonstration, and knows nothing of the rest of the program.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	swaggerui "github.com/swaggest/swgui/v5/static"
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
	page := policy(connect)
	files := make(map[string]http.Handler)
	for at, a := range load() {
		csp := page
		if at == "/docs" || strings.HasPrefix(at, "/docs/") {
			csp = docsPolicy
		}
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
	files["/docs/"] = http.RedirectHandler("/docs", http.StatusMovedPermanently) // as most would type it
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
		assets[address(strings.TrimPrefix(name, "static"))] = newAsset(body, contentType)
		return nil
	})
	for _, name := range []string{"swagger-ui.css", "swagger-ui-bundle.js"} {
		if err == nil {
			assets["/docs/"+name], err = swaggerUI(name)
		}
	}
	if err != nil {
		panic("web: " + err.Error()) // the files are part of the program
	}
	return assets
}

// address is the path of the URL of an embedded file.
func address(name string) string {
	if folder, ok := strings.CutSuffix(name, "/index.html"); ok {
		return "/" + strings.TrimPrefix(folder, "/")
	}
	return name
}

func newAsset(body []byte, contentType string) asset {
	sum := sha256.Sum256(body)
	return asset{body, contentType, `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`}
}

// swaggerUI is a file of Swagger UI. The library's own page is of no use here: its scripts and styles are inline.
func swaggerUI(name string) (asset, error) {
	file, err := swaggerui.FS.Open(name + ".gz")
	if err != nil {
		return asset{}, err
	}
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		return asset{}, fmt.Errorf("%s: %w", name, err)
	}
	body, err := io.ReadAll(unpacked)
	if err != nil {
		return asset{}, fmt.Errorf("%s: %w", name, err)
	}
	return newAsset(body, contentTypes[path.Ext(name)]), nil
}

// docsPolicy allows Swagger UI its files and the pictures inside its style sheet, and calls of this instance alone.
const docsPolicy = "default-src 'self'; img-src 'self' data:" + nothingElse

// nothingElse ends every policy.
const nothingElse = "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"

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
	return "default-src 'self'; connect-src " + strings.Join(sources, " ") + nothingElse
}
