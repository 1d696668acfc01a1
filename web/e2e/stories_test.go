package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// Each story, from its first step to its last, by keyboard alone, against real servers that are really broken. What the page
// says at a step is what the database has.
func TestStories(t *testing.T) {
	urls := laboratory(t)
	const oversold, sound = `^Sold [0-9]+ of 20\. Oversold [1-9]`, `^Sold 20 of 20\. Oversold 0\.$`
	for _, story := range []struct {
		id       string
		verdicts []string // by step; empty: none yet
	}{
		{"no-lock", []string{oversold, `^Sold 2 of 1\. Oversold 1\.$`, `^Sold 2 of 1\. Oversold 1\.$`}},
		{"mutex", []string{sound, oversold, `^Sold 2 of 1\. Oversold 1\.$`}},
		{"redis", []string{sound, `^Sold 1 of 1\. Oversold 0\.$`, `^Sold 1 of 1\. Oversold 0\.$`}},
		{"paused-holder", []string{"", "", `^Sold 2 of 1\. Oversold 1\.$`, "", `^Sold 1 of 1\. Oversold 0\.$`}},
		{"forgetful-redis", []string{"", "", `^Sold 4 of 3\. Oversold 1\.$`, "", `^Sold 3 of 3\. Oversold 0\.$`}},
		{"dead-session", []string{"", "", `^Sold 1 of 1\. Oversold 0\.$`}},
		{"switching", []string{"", "", `^Sold 50 of 50\. Oversold 0\.$`}},
	} {
		t.Run(story.id, func(t *testing.T) {
			p := open(t)
			p.visit(urls[0] + "/#story=" + story.id)
			p.wait(`document.querySelector('#link').dataset.link === 'live'`)
			for i, verdict := range story.verdicts {
				p.do(chromedp.KeyEvent(kb.ArrowRight))
				step := fmt.Sprintf("Step %d of %d", i+1, len(story.verdicts))
				p.wait(fmt.Sprintf(`document.querySelector('#step-count').innerText === %q || !document.querySelector('#story-trouble').hidden`, step))
				require.Empty(t, p.text("#story-trouble"))
				if verdict != "" {
					p.wait(fmt.Sprintf(`/%s/.test(document.querySelector('#verdict-text').innerText)`, verdict))
					requireAudited(p, urls[1])
				}
			}
			shown := p.text("#verdict-text")
			p.do(chromedp.KeyEvent(kb.ArrowLeft))
			p.wait(fmt.Sprintf(`document.querySelector('#step-count').innerText === 'Step %d of %d'`, len(story.verdicts)-1, len(story.verdicts)))
			p.do(chromedp.KeyEvent(kb.ArrowRight))
			p.wait(fmt.Sprintf(`document.querySelector('#step-count').innerText === 'Step %d of %d'`, len(story.verdicts), len(story.verdicts)))
			p.wait(fmt.Sprintf(`document.querySelector('#verdict-text').innerText === %q`, shown)) // it was not run again

			switch story.id {
			case "paused-holder": // the refusal, with both tokens: as a sentence, in the lanes and in the table
				const refusal = "PostgreSQL refuses the write of holder A: it presents 1.1, and the fence is at 1.2 (stale_fencing_token)."
				require.Equal(t, refusal, p.text("#why-text"))
				require.Contains(t, p.text("#why-sql"), ", 'redis', 1, 1, '")
				require.Contains(t, p.text("#why-sql"), "ERROR FP001, 0 rows changed")
				require.Contains(t, p.text("#curl"), `"stock":1,"lock":{"strategy":"redis","fencing":"enforced"}`)
				require.Equal(t, "1.1 ✗ at 1.2", evaluate[string](p, `[...document.querySelectorAll('.lanes .refused .tag')].map((e) => e.textContent).join(' ')`))
				require.Equal(t, 1, evaluate[int](p, `document.querySelectorAll('.lanes .refused .cross').length`))
				require.Positive(t, evaluate[int](p, `document.querySelectorAll('.lanes .pause').length`))
				require.Contains(t, evaluate[string](p, `document.querySelector('#steps').textContent`), refusal)
				require.Contains(t, p.text("#log .refused"), refusal)
			case "forgetful-redis":
				words := evaluate[string](p, `document.querySelector('#steps').textContent`)
				require.Contains(t, words, "it presents 1.1, and the fence is at 1.3 (stale_fencing_token)")
				require.Contains(t, words, "the epoch was raised")
				require.Contains(t, words, "it presents 1.3, and the fence is at 2.2 (strategy_superseded)")
			case "dead-session":
				require.Contains(t, p.text("#outcomes"), "lock_lost")
			case "switching":
				words := evaluate[string](p, `document.querySelector('#steps').textContent`)
				require.Contains(t, words, "ZooKeeper is in charge of the item with epoch 3.")
			}
			p.clean(urls...)
		})
	}
}

// requireAudited compares the verdict that the page shows with what the service says when somebody else asks it.
func requireAudited(p *tab, url string) {
	p.Helper()
	sku := strings.TrimSuffix(strings.TrimPrefix(evaluate[string](p, `document.querySelector('#curl').textContent.match(/item\/\S+'/)[0]`), "item/"), "'")
	response, err := http.Get(url + "/v1/audit?resource=item/" + sku)
	require.NoError(p, err)
	defer response.Body.Close()
	var audit struct {
		Resources []struct{ Limit, Sold, Held, Oversold int }
	}
	require.NoError(p, json.NewDecoder(response.Body).Decode(&audit))
	require.Len(p, audit.Resources, 1)
	row := audit.Resources[0]
	require.Equal(p, fmt.Sprintf("Sold %d of %d. Oversold %d.", row.Sold+row.Held, row.Limit, row.Oversold), p.text("#verdict-text"))
}

// A story that is left in the middle puts right what it has broken, and gives way to a race.
func TestAStoryGivesWay(t *testing.T) {
	urls := laboratory(t)
	p := open(t)
	p.visit(urls[0] + "/#story=paused-holder&step=1")
	p.wait(`document.querySelector('#step-count').innerText === 'Step 1 of 5'`)
	p.wait(fmt.Sprintf(`document.querySelector('[data-state-of="%s"]').innerText === 'A · paused'`, urls[0]))
	p.click("#mode-race")
	p.click("#strategy-postgres")
	p.wait(`!document.querySelector('#start').disabled`)
	evaluate[any](p, `document.querySelector('#buyers').value = 30`)
	p.race()
	require.Equal(t, "Sold 30 of 100. Oversold 0.", p.text("#verdict-text"))
	require.Equal(t, "A · live", p.text(fmt.Sprintf(`[data-state-of="%s"]`, urls[0])))
	p.clean(urls...)
}

// A race that was recorded shows the same state when it is played again, and one that was shared shows it to others.
func TestReplay(t *testing.T) {
	urls := laboratory(t)
	p := open(t)
	p.visit(urls[0] + "/?strategy=redis&stock=3&buyers=9&slow=10&used=3")
	p.race()
	p.wait(`!document.querySelector('#share').disabled`)
	drawn := func(p *tab) string {
		return evaluate[string](p, `[document.querySelector('#verdict').innerText, document.querySelector('.legend').innerText, document.querySelector('#log').innerText].join('\n')`)
	}
	events := evaluate[int](p, `Number(document.querySelector('#scrub').max)`)
	require.Greater(t, events, 30, "the servers' events are among them")
	scrub := func(to int) {
		evaluate[any](p, fmt.Sprintf(`(() => { const s = document.querySelector('#scrub'); s.value = %d; s.dispatchEvent(new Event('input')); })()`, to))
	}
	scrub(0)
	p.wait(`document.querySelector('#verdict-text').innerText === 'No race has run yet.'`)
	scrub(events)
	p.wait(`document.querySelector('#verdict').dataset.tone === 'good'`)
	want := drawn(p)
	scrub(events / 2)
	p.wait(`document.querySelector('#verdict').dataset.tone === 'busy'`)
	p.click("#play-back")
	p.click("#play-on")
	p.choose("#speed", "4")
	p.click("#play")
	p.wait(`document.querySelector('#verdict').dataset.tone === 'good' && document.querySelector('#play').innerText === 'Replay'`)
	require.Equal(t, want, drawn(p), "however one got there")

	link := evaluate[string](p, `(async () => {
		let copied = '';
		navigator.clipboard.writeText = async (text) => { copied = text; };
		document.querySelector('#share').click();
		while (!copied) await new Promise((resolve) => setTimeout(resolve, 10));
		return copied;
	})()`)
	require.Contains(t, link, "/#replay=")
	other := open(t)
	other.visit(link)
	other.wait(`document.querySelector('#verdict').dataset.tone === 'good'`)
	require.Equal(t, want, drawn(other))
	broken := open(t)
	broken.visit(link[:len(link)/2])
	broken.wait(`document.querySelector('#notice').innerText.includes('no recording that can be read')`)

	// Over a race that is under way nothing is opened: what happens in it would be added to the recording.
	for id, value := range map[string]int{"buyers": 2, "stock": 2, "slow": 1000} {
		evaluate[any](p, fmt.Sprintf(`document.querySelector('#%s').value = %d`, id, value))
	}
	p.click("#start")
	p.wait(`document.querySelector('#verdict').dataset.tone === 'busy'`)
	evaluate[any](p, fmt.Sprintf(`location.hash = %q`, link[strings.Index(link, "#"):]))
	p.wait(`document.querySelector('#share-text').innerText.includes('A race is under way')`)
	p.wait(`document.querySelector('#verdict-text').innerText === 'Sold 2 of 2. Oversold 0.'`)
	p.clean(urls...)
	other.clean(urls...)
}

// The buttons do what they say: an instance that is killed is gone, the page says so and goes on, and one that is started again
// is found by itself.
func TestFaultButtons(t *testing.T) {
	urls := laboratory(t)
	p := open(t)
	p.visit(urls[0] + "/?strategy=postgres&stock=10&buyers=30&used=3")
	p.wait(`document.querySelector('#link').dataset.link === 'live'`)
	press := func(fault string) {
		p.click(fmt.Sprintf(`[data-fault="%s %s"]`, fault, urls[2]))
	}
	press("kill")
	p.wait(`document.querySelector('#faults-text').innerText.startsWith('Done: sent SIGKILL to instance 3')`)
	p.wait(`document.querySelector('#link-text').innerText === '2 of 3 instances live; trying the others again'`)
	_, err := http.Get(urls[2] + "/healthz")
	require.Error(t, err, "the process is gone")
	p.race()
	require.Equal(t, "Sold 10 of 10. Oversold 0.", p.text("#verdict-text"))
	require.Contains(t, p.text("#notice"), "did not answer 10 buyers. See that the instance runs")
	press("start")
	p.wait(`document.querySelector('#link-text').innerText === 'live, 3 instances'`)

	press("pause")
	p.wait(fmt.Sprintf(`document.querySelector('[data-state-of="%s"]').innerText === 'C · paused'`, urls[2]))
	client := http.Client{Timeout: 300 * time.Millisecond}
	_, err = client.Get(urls[2] + "/healthz")
	require.Error(t, err, "nobody answers")
	press("resume")
	p.wait(`document.querySelector('#faults-text').innerText.includes('sent SIGCONT to instance 3')`)
	response, err := http.Get(urls[2] + "/healthz")
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	p.click(`[data-fault="flush redis-1"]`)
	p.wait(`document.querySelector('#faults-text').innerText.includes('sent FLUSHALL to redis-1')`)
	p.click(`[data-fault="stop-server redis-5"]`)
	p.wait(`document.querySelector('#faults-text').innerText.includes('sent SIGKILL to redis-5')`)
	p.click(`[data-fault="start-server redis-5"]`)
	p.wait(`document.querySelector('#faults-text').innerText.includes('started redis-5 again')`)
	p.clean(urls...)
}

// Every lock that is available is raced with one seed; the table says what the audit does, and can be taken away.
func TestCompareAll(t *testing.T) {
	urls := laboratory(t)
	p := open(t)
	p.visit(urls[0] + "/?stock=20&buyers=60&used=2&slow=15") // long enough for every race to be lost that can be
	p.click("#compare")
	p.click("#compare") // the second one is too much
	p.click("#mode-guide")
	p.click("#story-next")
	require.Equal(t, "A race is under way. Wait for its end, or reset it.", p.text("#story-trouble"))
	require.Contains(t, p.text("#step-count"), "Step 0 of")
	p.wait(`document.querySelectorAll('#compare-rows tr').length === 6`)
	p.wait(`document.querySelector('#compare-text').innerText.startsWith('6 locks, one seed')`)
	rows := evaluate[[]string](p, `[...document.querySelectorAll('#compare-rows tr')].map((r) => [...r.cells].slice(0, 4).map((c) => c.innerText).join(' '))`)
	for i, want := range []string{`^none off \d+ of 20 ! [1-9]`, `^local off \d+ of 20 ! [1-9]`, `^postgres enforced 20 of 20 0$`, `^redis enforced 20 of 20 0$`, `^redlock enforced 20 of 20 0$`, `^zookeeper enforced 20 of 20 0$`} {
		require.Regexp(t, want, rows[i])
	}
	require.Equal(t, 6, evaluate[int](p, `document.querySelectorAll('#compare-rows tr').length`))
	require.Equal(t, 3, evaluate[int](p, `document.querySelectorAll('#plots svg').length`))
	saved := evaluate[string](p, `(async () => {
		const texts = [];
		const make = URL.createObjectURL;
		URL.createObjectURL = (blob) => { texts.push(blob.text()); return make.call(URL, blob); };
		document.querySelector('#compare-csv').click();
		document.querySelector('#compare-json').click();
		return (await Promise.all(texts)).join('\n');
	})()`)
	require.Contains(t, saved, "\nredis,enforced,20,60,1,20,0,")
	require.Contains(t, saved, `"strategy": "redis"`)
	p.clean(urls...)
}

// One request of the reader's own, for the item that is shown; the verdict is counted anew.
func TestBuying(t *testing.T) {
	urls := laboratory(t)
	p := open(t)
	p.visit(urls[0] + "/?strategy=redis&stock=5&buyers=3&used=3")
	p.race()
	p.wait(`!document.querySelector('#buy').disabled`)
	p.click("#buy")
	p.wait(`document.querySelector('#verdict-text').innerText === 'Sold 4 of 5. Oversold 0.'`)
	require.Contains(t, p.text("#buy-text"), "201 created, token 1.")
	require.Regexp(t, `curl -i -X POST 'http://127\.0\.0\.1:\d+/v1/items/race-1-\S+/reservations' `, p.text("#curl"))
	p.clean(urls...)
}
