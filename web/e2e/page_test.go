package e2e_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

func TestATruthfulService(t *testing.T) {
	s := start(t, &service{}, 3)
	p := open(t)
	p.visit(s.urls()[0] + "/?strategy=postgres&stock=100&buyers=300")
	p.race()

	if got, want := p.text("#verdict-text"), "Sold 100 of 100. Oversold 0."; got != want {
		t.Errorf("verdict %q, want %q", got, want)
	}
	if got := evaluate[string](p, `document.querySelector('#verdict').dataset.tone`); got != "good" {
		t.Errorf("the verdict looks %s, want good", got)
	}
	if got, want := p.text(".legend"), "waiting 0 asking 0 holding 0 sold 100 refused 200 fenced 0 failed 0"; got != want {
		t.Errorf("legend %q, want %q", got, want)
	}
	if got, want := p.text("#outcomes"), "out_of_stock 200 0 units are available. created 100 One unit is held for the buyer."; got != want {
		t.Errorf("answers %q, want %q", got, want)
	}
	if got, want := p.text("#meter-text"), "100 sold of 100 in stock: 0 left, by the database’s count."; got != want {
		t.Errorf("meter %q, want %q", got, want)
	}
	if got, want := p.text("#status"), "Sold 100 of 100. Oversold 0."; got != want {
		t.Errorf("the live region says %q, want %q", got, want)
	}
	if got, want := p.text("#n-lock"), "2.5 ms"; got != want {
		t.Errorf("wait for the lock %q, want %q", got, want)
	}
	if got := evaluate[int](p, `document.querySelectorAll('#fields .dot[data-state=sold]').length`); got != 100 {
		t.Errorf("%d dots are drawn as sold, want 100", got)
	}
	title := evaluate[string](p, `document.querySelector('#fields .dot[data-state=sold]').title`)
	if !regexp.MustCompile(`created.*token 1\.900719925474\d{4}$`).MatchString(title) {
		t.Errorf("a dot tells %q, want the code and the token to the last digit", title)
	}

	// Every instance took part, each buyer was asked for once, and the service was sent what the form said.
	if s.asked != 300 {
		t.Errorf("the service was asked %d times, want 300", s.asked)
	}
	sellers := slices.Compact(slices.Sorted(maps.Values(s.buyers)))
	if len(sellers) != 3 || len(s.buyers) != 100 {
		t.Errorf("%d buyers bought at %v, want 100 at three instances", len(s.buyers), sellers)
	}
	if s.item.Lock.Strategy != "postgres" || s.item.Lock.Fencing != "enforced" || s.item.Stock != 100 {
		t.Errorf("the item was created as %+v", s.item)
	}
	p.clean(s.urls()...)
}

// The negative control of the test above: the same page must say so when units are sold that do not exist.
func TestAnOversellingService(t *testing.T) {
	s := start(t, &service{excess: 37, drift: 12}, 3)
	p := open(t)
	p.visit(s.urls()[1] + "/?strategy=none&stock=100&buyers=300")
	p.race()

	if got, want := p.text("#verdict-text"), "Sold 137 of 100. Oversold 37."; got != want {
		t.Errorf("verdict %q, want %q", got, want)
	}
	if got := evaluate[string](p, `document.querySelector('#verdict').dataset.tone`); got != "bad" {
		t.Errorf("the verdict looks %s, want bad", got)
	}
	if got, want := p.text("#verdict-why"), "37 units that never existed were promised to buyers. "+
		"The stock counter is wrong by 12: requests overwrote each other's writes."; got != want {
		t.Errorf("reasons %q, want %q", got, want)
	}
	if got, want := p.text("#meter-text"), "137 sold of 100 in stock: 37 below zero, by the database’s count."; got != want {
		t.Errorf("meter %q, want %q", got, want)
	}
	if s.item.Lock.Strategy != "none" || s.item.Lock.Fencing != "off" {
		t.Errorf("the item was created as %+v, want none without the fence", s.item)
	}
	p.clean(s.urls()...)
}

// Whoever opens the page without having been told what to try sees first what it is about.
func TestFirstVisit(t *testing.T) {
	s := start(t, &service{excess: 5}, 1)
	p := open(t)
	p.visit(s.urls()[0])
	if !evaluate[bool](p, `document.querySelector('#strategy-none').checked`) {
		t.Error("the lock that shows the danger is not the first choice")
	}
	if got, want := p.text("#verdict-why"), "Start without a lock first, then choose one."; got != want {
		t.Errorf("the page says %q, want %q", got, want)
	}
	p.visit(s.urls()[0] + "/?strategy=postgres")
	if !evaluate[bool](p, `document.querySelector('#strategy-postgres').checked`) {
		t.Error("the choice in the address is not kept")
	}
	p.clean(s.urls()...)
}

func TestStrategiesThatCannotBeChosen(t *testing.T) {
	s := start(t, &service{}, 1)
	p := open(t)
	p.visit(s.urls()[0])

	if !evaluate[bool](p, `document.querySelector('#strategy-redis').disabled`) {
		t.Error("a strategy without its server can be chosen")
	}
	if got, want := p.text("#about-redis"), "Not available: no Redis server is configured: set FENCEPOST_REDIS_URL"; got != want {
		t.Errorf("the reason is %q, want %q", got, want)
	}
	p.click("#strategy-none")
	if !evaluate[bool](p, `document.querySelector('input[value=off]').checked && document.querySelector('input[value=enforced]').disabled`) {
		t.Error("a strategy without tokens can be combined with an enforced fence")
	}
	if got := p.text("#fencing-hint"); !strings.HasPrefix(got, "The lock “none” issues no fencing tokens") {
		t.Errorf("the reason for the forced choice is %q", got)
	}
	p.click("#strategy-postgres")
	if !evaluate[bool](p, `document.querySelector('input[value=enforced]').checked`) {
		t.Error("the reader's own choice of fencing did not come back")
	}
	p.clean(s.urls()...)
}

func TestFailuresAreCountedAndNotRetried(t *testing.T) {
	s := start(t, &service{failEvery: 10}, 2)
	p := open(t)
	p.visit(s.urls()[0] + "/?stock=100&buyers=100")
	p.race()
	if got, want := p.text(".legend"), "waiting 0 asking 0 holding 0 sold 90 refused 0 fenced 0 failed 10"; got != want {
		t.Errorf("legend %q, want %q", got, want)
	}
	if got := p.text("#outcomes"); !strings.Contains(got, "lock_timeout 10 Others held the lock") || !strings.Contains(got, "May be tried again.") {
		t.Errorf("answers: %q", got)
	}
	if s.asked != 100 {
		t.Errorf("the service was asked %d times for 100 buyers", s.asked)
	}
	p.clean(s.urls()...)
}

// The verdict is the database's count, also where the buyers know less.
func TestAnswersThatAreLost(t *testing.T) {
	s := start(t, &service{loseEvery: 10}, 2)
	p := open(t)
	p.visit(s.urls()[0] + "/?stock=50&buyers=50")
	p.race()
	if got, want := p.text("#verdict"), "Sold 50 of 50. Oversold 0. Counter, ledger and reservations agree. "+
		"5 units more than buyers were told: answers were lost on the way."; got != want {
		t.Errorf("verdict %q, want %q", got, want)
	}
	if got, want := p.text(".legend"), "waiting 0 asking 0 holding 0 sold 45 refused 0 fenced 0 failed 5"; got != want {
		t.Errorf("legend %q, want %q", got, want)
	}
	p.clean(s.urls()...)
}

func TestAnInstanceThatIsDown(t *testing.T) {
	s := start(t, &service{}, 3)
	p := open(t)
	p.visit(s.urls()[0] + "/?stock=10&buyers=30")
	stop(s.instances[2])
	p.race()
	if got, want := p.text("#verdict-text"), "Sold 10 of 10. Oversold 0."; got != want {
		t.Errorf("verdict %q, want %q", got, want)
	}
	down := strings.TrimPrefix(s.urls()[2], "http://")
	if got, want := p.text("#notice"), down+" did not answer 10 buyers. See that the instance runs, then start again."; got != want {
		t.Errorf("notice %q, want %q", got, want)
	}
	p.clean(s.urls()...)
}

func TestNoServiceAtAll(t *testing.T) {
	s := start(t, &service{}, 1)
	p := open(t)
	p.visit(s.urls()[0])
	stop(s.instances[0])
	p.race()
	if got := p.text("#verdict"); !strings.Contains(got, "There is no verdict.") || !strings.Contains(got, "does not answer") || !strings.Contains(got, "Start the service") {
		t.Errorf("the page says %q", got)
	}
	p.clean(s.urls()...)
}

func TestAServiceThatWantsAKey(t *testing.T) {
	s := start(t, &service{key: "secret"}, 2)
	p := open(t)
	p.visit(s.urls()[0] + "/?stock=5&buyers=10")
	if got := p.text("#notice"); !strings.Contains(got, "wants an API key") {
		t.Errorf("notice %q", got)
	}
	if !evaluate[bool](p, `document.querySelector('#start').disabled && document.querySelector('#key-box').open`) {
		t.Error("the race can be started, or the field for the key is hidden")
	}
	p.do(chromedp.SendKeys(chromedp.CSS("#key"), "secret"+kb.Enter))
	p.wait(`!document.querySelector('#start').disabled`)
	p.race()
	if got, want := p.text("#verdict-text"), "Sold 5 of 5. Oversold 0."; got != want {
		t.Errorf("verdict %q, want %q", got, want)
	}
	if got := p.text("#curl"); strings.Contains(got, "secret") {
		t.Errorf("the key is shown: %s", got)
	}
	p.clean(s.urls()...)
}

func TestStoppingEarly(t *testing.T) {
	s := start(t, &service{latency: 50 * time.Millisecond}, 1)
	p := open(t)
	p.visit(s.urls()[0] + "/?stock=100&buyers=500")
	p.click("#start")
	p.wait(`document.querySelectorAll('#fields .dot[data-state=sold]').length > 0`)
	p.click("#stop")
	p.wait(`document.querySelector('#verdict').dataset.tone === 'good'`)
	if got := p.text("#verdict-why"); !strings.Contains(got, "stopped early") || !strings.Contains(got, "agree") {
		t.Errorf("reasons %q", got)
	}
	if s.asked == 500 || s.asked != s.sold {
		t.Errorf("asked %d times, sold %d", s.asked, s.sold)
	}
	p.clean(s.urls()...)
}

func TestKeyboardAlone(t *testing.T) {
	s := start(t, &service{}, 1)
	p := open(t)
	p.visit(s.urls()[0] + "/?stock=3&buyers=5")
	// Tab from the top until the start button has the focus, then press it.
	for range 20 {
		p.do(chromedp.KeyEvent(kb.Tab))
		if evaluate[string](p, `document.activeElement.id`) == "start" {
			p.do(chromedp.KeyEvent(" "))
			p.wait(`document.querySelector('#verdict').dataset.tone === 'good'`)
			p.clean(s.urls()...)
			return
		}
	}
	t.Error("the start button cannot be reached with Tab")
}

func TestSettingsOutsideTheLimits(t *testing.T) {
	s := start(t, &service{}, 1)
	p := open(t)
	p.visit(s.urls()[0] + "/?stock=100&buyers=501")
	p.click("#start")
	p.frame() // what a race begins with has begun
	if s.asked != 0 || s.item.SKU != "" || !evaluate[bool](p, `document.querySelector('#buyers').matches(':invalid')`) {
		t.Error("a race with 501 buyers was started")
	}
	p.clean(s.urls()...)
}

func TestSmallScreens(t *testing.T) {
	s := start(t, &service{excess: 90}, 3)
	for _, width := range []int64{320, 360, 768, 1440} {
		p := open(t)
		p.screen(width, 740)
		p.visit(s.urls()[0] + "/?strategy=none&stock=20&buyers=90")
		p.race()
		if got := evaluate[int64](p, `document.documentElement.scrollWidth`); got > width {
			t.Errorf("at %d px the page is %d px wide", width, got)
		}
		lines := evaluate[int](p, `(() => {
			const address = document.createRange();
			address.selectNodeContents(document.querySelector('#instances td'));
			return address.getClientRects().length;
		})()`)
		if lines != 1 && width >= 360 {
			t.Errorf("at %d px an address takes %d lines", width, lines)
		}
		p.clean(s.urls()...)
	}
}

func TestWithoutScript(t *testing.T) {
	s := start(t, &service{}, 1)
	p := open(t)
	call(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	p.do(chromedp.Navigate(s.urls()[0]))
	if got := p.text("noscript"); !strings.Contains(got, "needs JavaScript") || !strings.Contains(got, "curl -X POST") {
		t.Errorf("without script the page says %q", got)
	}
	p.clean(s.urls()...)
}

// The parts of the logic that a whole race does not reach.
func TestLogic(t *testing.T) {
	s := start(t, &service{}, 1)
	p := open(t)
	p.visit(s.urls()[0])
	for expression, want := range map[string]string{
		`n.quantile([], 0.5)`:                                               `null`,
		`n.quantile([7], 0.99)`:                                             `7`,
		`n.quantile([3, 1, 2, 4], 0.5)`:                                     `2`,
		`n.quantile([10, 9, 100, 1], 0.99)`:                                 `100`,
		`u.deal(4, ['a', 'b', 'c']).map((b) => b.name + b.instance).join()`: `"buyer-1a,buyer-2b,buyer-3c,buyer-4a"`,
		`w.verdict({sold: 60, held: 40, limit: 100, oversold: 0})`:          `"Sold 100 of 100. Oversold 0."`,
		`r.meaning({status: 201})`:                                          `"sold"`,
		`r.meaning({status: 409})`:                                          `"refused"`,
		`r.meaning({status: 409, code: 'stale_fencing_token'})`:             `"fenced"`,
		`r.meaning({status: 503})`:                                          `"failed"`,
		`r.meaning({status: 0})`:                                            `"failed"`,
		`w.host('https://a.example:1/')`:                                    `"a.example:1"`,
		`w.short('9007199254740993')`:                                       `"…0993"`,
		`a.serverTiming('lock;dur=1.5, db;desc="x";dur=3', 'db')`:           `3`,
		`a.serverTiming(null, 'db') === undefined`:                          `true`,
		`w.fencingFor({name: 'x', fences: true}, 'off').fencing`:            `"off"`,
		`w.quoted("it's $(x)")`:                                             `"'it'\\''s $(x)'"`,
		// The same seed gives the same order, another one another.
		`[1, 1, 2].map((seed) => u.shuffled([1, 2, 3, 4, 5, 6], u.seeded(seed)).join('')).map((o, i, all) => o === all[0])`: `[true,true,false]`,
		// Answers and count that differ are told, whichever way.
		`w.reasons({...r.idle, buyers: bought(3), audit: {sold: 0, held: 2, limit: 5, oversold: 0, drift: 0, refused: 0, ok: true}})`: `"Counter, ledger and reservations agree. 3 buyers were told yes, but the database knows of 2 only."`,
		`w.reasons({...r.idle, buyers: bought(1), audit: {sold: 0, held: 2, limit: 5, oversold: 0, drift: 0, refused: 1, ok: true}})`: `"Counter, ledger and reservations agree. The fence turned away 1 stale write. 1 unit more than buyers were told: answers were lost on the way."`,
		// The reducer leaves the state that it was given alone.
		`(() => { const before = r.reduce(r.idle, {type: 'start', t: 0, buyers: u.deal(1, ['a'])});
			const after = r.reduce(before, {type: 'answer', buyer: 0, t: 500, answer: {status: 201, code: 'created', ms: 4}});
			return [before.buyers[0].state, after.buyers[0].state, n.times(after).rate, n.times(after).median]; })()`: `["waiting","sold",2,4]`,
		// What a link holds is what was recorded, and what is no recording is refused.
		`g.unpack(await g.pack([{type: 'prepare', t: 0, sku: 'é', settings: {instances: []}}])).then((events) => events[0].sku)`: `"é"`,
		`refusal(() => g.fromText('{"fencepost":1,"events":[{"type":"prepare","t":0,"sku":1,"settings":{}}]}'))`:                 `"Event 1 of this recording (prepare) has no proper sku."`,
		`refusal(() => g.fromText('{"fencepost":1,"events":[{"type":"constructor","t":0}]}'))`:                                   `"Event 1 of this recording is not one of a race."`,
		`refusal(() => g.fromText('nothing'))`: `"This is no recording: it is not JSON."`,
		`c.csv([{strategy: 'a"b', sold: 1}])`:  `"strategy,fencing,stock,buyers,seed,sold,oversold,p50_ms,p99_ms,per_second,stale_refused,trouble\n\"a\"\"b\",undefined,undefined,undefined,undefined,1,undefined,undefined,undefined,undefined,undefined,undefined\n"`,
	} {
		got := evaluate[string](p, `(async () => {
			const [r, n, w, u, a, g, c] = await Promise.all(
				['reducer', 'numbers', 'words', 'run', 'api', 'recording', 'compare'].map((name) => import('/' + name + '.js')));
			const bought = (n) => u.deal(n, ['a']).map((b) => ({...b, state: 'sold'}));
			const refusal = (work) => { try { work(); return 'none'; } catch (cause) { return cause.message; } };
			return JSON.stringify(await (`+expression+`));
		})()`)
		if got != want {
			t.Errorf("%s\nis   %s\nwant %s", expression, got, want)
		}
	}
	p.clean(s.urls()...)
}
