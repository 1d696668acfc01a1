package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

var (
	browser context.Context
	scratch string // the folder of all that the tests leave behind
)

// keeper is a shell that removes the folder when the pipe closes that it reads from: at the end of the tests, however they end.
// A browser that is dying may still write, so it tries again.
const keeper = `cat; for try in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$0" && exit; sleep 1; done`

// keep makes the folder, and starts its keeper, which Ctrl-C does not reach.
func keep() (remove func() error, err error) {
	if scratch, err = os.MkdirTemp("", "fencepost-page-"); err != nil {
		return nil, err
	}
	cmd := exec.Command("sh", "-c", keeper, scratch)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(scratch))
	}
	return func() error { return errors.Join(pipe.Close(), cmd.Wait()) }, nil
}

// TestMain starts one browser for all tests; each test has a tab with a profile of its own. Debian has a Chromium without the
// windows that nobody sees; where there is none the whole of it, or Chrome, takes more than twice the time.
func TestMain(m *testing.M) {
	os.Exit(func() (code int) {
		remove, err := keep()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() {
			if err := remove(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}()
		options := append(chromedp.DefaultExecAllocatorOptions[:],
			chromedp.UserDataDir(filepath.Join(scratch, "profile")),
			chromedp.Env("TMPDIR="+scratch),
			chromedp.NoSandbox, // as root there is none, and the only pages that it opens are ours
			chromedp.Flag("headless", "new"),
			chromedp.Flag("disable-gpu", true),
			chromedp.Flag("disable-quic", true),
			chromedp.Flag("disable-component-update", true),
			chromedp.WSURLReadTimeout(60*time.Second), // the first start on a small, busy machine is slow
		)
		if path, err := exec.LookPath("chromium-headless-shell"); err == nil {
			options = append(options, chromedp.ExecPath(path))
		}
		allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
		defer cancel()
		var stop context.CancelFunc
		browser, stop = chromedp.NewContext(allocator)
		defer stop()
		if err := chromedp.Do(browser); err != nil {
			fmt.Fprintln(os.Stderr, "The tests of the page need Chromium or Chrome: apt-get install chromium-headless-shell, or brew install --cask chromium.\n", err)
			return 1
		}
		defer func() { stopDemo() }()
		return m.Run()
	}())
}

// tab is one page under watch: what it requested, and what it complained of.
type tab struct {
	*testing.T
	ctx context.Context

	mu         sync.Mutex
	requests   []string
	complaints []string
}

// open opens a tab of its own for the test.
func open(t *testing.T) *tab {
	t.Helper()
	p := &tab{T: t}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext(), chromedp.WithListener(p.watch))
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil { // the tab lives as long as the context of its first action: none with a deadline
		t.Fatal(err)
	}
	p.ctx, cancel = context.WithTimeout(ctx, time.Minute)
	t.Cleanup(cancel)
	call(p, network.Enable, network.EnableParams{})
	call(p, log.Enable, cdp.Empty{})
	return p
}

func (p *tab) watch(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(e.Request.URL, "data:") { // a picture inside a style sheet
			p.requests = append(p.requests, e.Request.URL)
		}
	case *runtime.EventExceptionThrown:
		p.complaints = append(p.complaints, (&chromedp.ExceptionError{ExceptionDetails: e.ExceptionDetails}).Error())
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
			p.complaints = append(p.complaints, fmt.Sprintf("console.%s: %s", e.Type, e.Args[0].Value))
		}
	case *log.EventEntryAdded:
		// The browser logs every 4xx and 5xx by itself; those are answers, and the page shows them.
		if e.Entry.Level == log.EntryLevelError && e.Entry.Source != log.EntrySourceNetwork {
			p.complaints = append(p.complaints, fmt.Sprintf("%s: %s", e.Entry.Source, e.Entry.Text))
		}
	}
}

func call[P, R any](p *tab, command cdp.Command[P, R], params P) {
	p.Helper()
	if _, err := chromedp.Call(p.ctx, command, params); err != nil {
		p.Fatalf("%s: %v", command.Method, err)
	}
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.Fatal(err)
	}
}

// visit opens the page and waits until it has asked the service for the strategies, and has drawn what follows from that: the
// button that starts a race is enabled in the next frame, and a press before it does nothing.
func (p *tab) visit(url string) {
	p.Helper()
	p.do(chromedp.Navigate(url))
	p.wait(`!document.querySelector('#strategies').textContent.includes('Asking the service')`)
	p.frame()
}

// frame returns after what the page has put off to its next frame.
func (p *tab) frame() {
	p.Helper()
	evaluate[any](p, `new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))`)
}

// wait waits until the expression is true, and says what the page showed if it never is. The browser's own ways to wait
// compile code inside the page, which the page's policy forbids. The sleep is only between two looks.
func (p *tab) wait(expression string) {
	p.Helper()
	for deadline := time.Now().Add(20 * time.Second); !evaluate[bool](p, expression); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.Fatalf("waited in vain for %s; the page shows:\n%s", expression, evaluate[string](p, `document.body.innerText`))
		}
	}
}

// race starts a race with the settings that the form has and waits for its end.
func (p *tab) race() {
	p.Helper()
	before := p.text("#curl") // which names the item of the last race, until this one has its own
	p.click("#start")
	p.wait(fmt.Sprintf(`document.querySelector('#curl').innerText.split(/\s+/).join(' ').trim() !== %q && ['good', 'bad', 'broken'].includes(document.querySelector('#verdict').dataset.tone)`, before))
}

// click presses a button as soon as it is there: some are drawn anew with the state of what they act on. Not through the mouse:
// under load the page can still move between the moment its layout is asked for and the moment the click arrives, and the click
// misses.
func (p *tab) click(selector string) {
	p.Helper()
	p.wait(fmt.Sprintf(`(() => { const button = document.querySelector(%q); button?.click(); return button !== null; })()`, selector))
}

// choose chooses an option of a list.
func (p *tab) choose(selector, option string) {
	p.Helper()
	evaluate[any](p, fmt.Sprintf(`(() => { const s = document.querySelector(%q); s.value = %q; s.dispatchEvent(new Event('change')); })()`, selector, option))
}

// text is the visible text of the first element that the selector finds.
func (p *tab) text(selector string) string {
	p.Helper()
	text := evaluate[string](p, fmt.Sprintf(`document.querySelector(%q).innerText`, selector))
	return strings.Join(strings.Fields(text), " ")
}

// evaluate returns what the expression is, as T; of a promise what it becomes.
func evaluate[T any](p *tab, expression string) T {
	p.Helper()
	value, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.Fatalf("%s: %v", expression, err)
	}
	return value
}

// clean fails the test if the page complained, or sent a request to anyone but the service.
func (p *tab) clean(ours ...string) {
	p.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, complaint := range p.complaints {
		p.Errorf("the browser's console: %s", complaint)
	}
	if len(p.requests) == 0 {
		p.Error("no request was seen at all: the watch does not work")
	}
	for _, request := range p.requests {
		if !slices.ContainsFunc(ours, func(url string) bool { return strings.HasPrefix(request, url+"/") }) {
			p.Errorf("a request to outside: %s", request)
		}
	}
}
