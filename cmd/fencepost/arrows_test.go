package main

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "fencepost"

// arrows are the imports within the module that are allowed, and why there are no others. A * stands for one element of a
// path. A package that no row names may import nothing of ours.
var arrows = []struct {
	from   string
	to     []string
	reason string
}{
	{"domain", nil, "the rules must be readable, and testable, without any technology"},
	{"migrations", nil, "the schema stands alone, so that it can be applied by hand"},
	{"web", nil, "the page speaks HTTP, as any client does"},
	{"handlers/observe", []string{"domain"}, "what is watched does not know who watches"},
	{"handlers", []string{"domain", "handlers/observe"}, "with locks or SQL in reach, a rule would some day be decided here"},
	{"domain/postgres", []string{"domain"}, "the store and the locks meet only through a port; each can be judged without the other"},
	{"locking", []string{"domain"}, "the locks and the store meet only through a port; each can be judged without the other"},
	{"locking/*lock", []string{"domain", "locking"}, "a strategy that leaned on another would fail with it"},
	{"locking/strategies", []string{"locking", "locking/*lock"}, "the one table is the only place that knows every strategy"},
	{"cmd/fencepost", []string{"cmd/internal/block", "domain", "domain/postgres", "handlers", "locking", "locking/*lock", "locking/strategies", "handlers/observe", "migrations", "web"}, "the wiring knows everyone"},
	{"cmd/latency", []string{"cmd/internal/block", "domain", "domain/postgres", "locking", "locking/strategies", "migrations"}, "it measures the strategies themselves, without the service around them"},
	{"cmd/lab", []string{"cmd/internal/block", "cmd/lab/internal/*"}, "the laboratory starts the service as a program, and measures it from outside"},
	{"cmd/lab/internal/bench", []string{"cmd/lab/internal/databases", "cmd/lab/internal/instances", "cmd/lab/internal/report", "cmd/lab/internal/servers"}, "what is measured is reached as its users reach it, and counted with SQL of the benchmark's own"},
	{"cmd/lab/internal/control", []string{"cmd/lab/internal/databases", "cmd/lab/internal/instances", "cmd/lab/internal/servers", "domain/postgres/pgproxy"}, "faults are done to processes and connections; the service has no part in them"},
	{"cmd/lab/internal/databases", []string{"cmd/lab/internal/servers"}, "it is reached as any client reaches it, and what is in it is for others to know"},
	{"cmd/lab/internal/experiments", []string{"cmd/lab/internal/databases", "cmd/lab/internal/instances", "cmd/lab/internal/load", "cmd/lab/internal/report", "cmd/lab/internal/servers", "cmd/lab/internal/shop", "domain/postgres/pgproxy"}, "what is claimed of the service is seen from outside; what it is compared with is made without its code"},
	{"cmd/lab/internal/instances", []string{"cmd/lab/internal/servers"}, "instances run on servers, not the other way round"},
	{"cmd/lab/internal/load", []string{"cmd/lab/internal/report"}, "a load generator that shared code with the service could share its mistakes"},
	{"cmd/lab/internal/shop", nil, "a client that shared code with the service could share its mistakes"},
}

// testPackages exist for tests alone, so nothing but tests and each other may import them: they would put the testing
// package, and the rights of a schema's owner, into a program.
var testPackages = []string{"domain/postgres/postgrestest", "handlers/contracttest", "locking/lockingtest"}

// libraries that belong to few packages.
var libraries = []struct {
	library string
	users   []string
	reason  string
}{
	{"github.com/labstack/echo/", []string{"handlers"}, "a move to the next version of echo must touch one folder"},
	{"github.com/jackc/pgx/", []string{"domain/postgres", "migrations", "cmd/lab", "cmd/lab/*", "cmd/lab/internal/*", "cmd/latency"}, "SQL stops at the store; the laboratory judges the store with SQL of its own"},
	{"github.com/getkin/kin-openapi/", nil, "the document is checked by the tests; the service only serves it"},
	{"github.com/prometheus/", []string{"handlers/observe"}, "metrics are defined in one place, and counted from events"},
	{"go.opentelemetry.io/otel/sdk", []string{"handlers/observe"}, "where traces go is decided in one place; who makes spans is handed a provider"},
	{"github.com/redis/go-redis/", []string{"locking/redislock", "cmd/fencepost", "cmd/lab/internal/*", "cmd/latency"}, "the words of Redis stop at its strategies"},
	{"github.com/go-zookeeper/zk", []string{"locking/zklock", "cmd/lab/internal/*", "cmd/latency"}, "the words of ZooKeeper stop at its strategy"},
}

// listed is what go list says of a package.
type listed struct {
	ImportPath, Dir   string
	GoFiles, CgoFiles []string
	Imports           []string
}

// name is the path within the module.
func (p listed) name() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json", module+"/...").Output()
	require.NoError(t, err)
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		all = append(all, p)
	}
	require.NotEmpty(t, all)
	return all
}

func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	if err != nil {
		panic(err)
	}
	return ok
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
}

func TestArrows(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if slices.Contains(testPackages, p.name()) {
			continue
		}
		var allowed, reasons []string
		for _, a := range arrows {
			if matches(a.from, p.name()) {
				allowed, reasons = append(allowed, a.to...), append(reasons, a.reason)
			}
		}
		for _, imported := range p.Imports {
			if name, ours := strings.CutPrefix(imported, module+"/"); ours {
				assert.True(t, matchesAny(allowed, name), "%s must not import %s: %s", p.name(), name, strings.Join(reasons, "; "))
			}
		}
	}
}

func TestDomainNeedsTheStandardLibraryAlone(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if p.name() != "domain" {
			continue
		}
		for _, imported := range p.Imports {
			first, _, _ := strings.Cut(imported, "/")
			assert.NotContains(t, first, ".", "domain must not import %s: the rules must outlive every library", imported)
		}
		return
	}
	t.Fatal("there is no package domain")
}

func TestLibraries(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if slices.Contains(testPackages, p.name()) {
			continue
		}
		for _, l := range libraries {
			for _, imported := range p.Imports {
				if strings.HasPrefix(imported, l.library) {
					assert.True(t, matchesAny(l.users, p.name()), "%s must not import %s: %s", p.name(), imported, l.reason)
				}
			}
		}
	}
}

// files parses every Go file of a package's folder, whatever its build tags.
func files(t *testing.T, dir string, mode parser.Mode) map[string]*ast.File {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	parsed := map[string]*ast.File{}
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, mode)
		require.NoError(t, err)
		parsed[name] = file
	}
	return parsed
}

// Two doc comments of one package are shown in the order of their file names, which nobody intends; none says nothing.
func TestEveryPackageHasOneDocComment(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		onlyTests := len(p.GoFiles)+len(p.CgoFiles) == 0
		var documented []string
		for name, file := range files(t, p.Dir, parser.PackageClauseOnly|parser.ParseComments) {
			if file.Doc == nil || strings.HasSuffix(name, "_test.go") && !onlyTests {
				continue
			}
			documented = append(documented, filepath.Base(name))
			if file.Name.Name != "main" {
				assert.True(t, strings.HasPrefix(file.Doc.Text(), "Package "+file.Name.Name+" "), "the doc comment of %s must begin with its name", p.name())
			}
		}
		assert.Len(t, documented, 1, "%s must have its doc comment in exactly one file", p.name())
	}
}

// A test that was skipped proves nothing, and nobody notices.
func TestNoTestIsSkipped(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for name, file := range files(t, p.Dir, parser.SkipObjectResolution) {
			if !strings.HasSuffix(name, "_test.go") && !slices.Contains(testPackages, p.name()) {
				continue
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if selector, ok := n.(*ast.SelectorExpr); ok {
					assert.NotContains(t, []string{"Skip", "Skipf", "SkipNow", "Short"}, selector.Sel.Name, "in %s", name)
				}
				return true
			})
		}
	}
}
