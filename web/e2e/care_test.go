package e2e_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// soak makes of some tests what takes too long for every day.
var soak = flag.Bool("soak", false, "run the long forms of the tests that have one")

// tool is a file that npm ci has put beside the tests.
func tool(t *testing.T, path string) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("node_modules", path))
	require.NoError(t, err)
	require.FileExists(t, file, "the tools of these tests are missing: run 'make deps'")
	return file
}

// The types in the comments are true, as far as TypeScript can tell.
func TestTypes(t *testing.T) {
	compiler := tool(t, ".bin/tsc")
	output, err := exec.CommandContext(t.Context(), compiler, "-p", ".").CombinedOutput()
	require.NoError(t, err, "%s", output)

	// It would tell: a number is no text, and nobody must not be there.
	folder := t.TempDir()
	config, err := os.ReadFile("tsconfig.json")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "tsconfig.json"), []byte(strings.Replace(string(config), "../static/*.js", "*.js", 1)), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "wrong.js"), []byte("/** @type {string} */\nexport const n = 1;\n"), 0o600))
	output, err = exec.CommandContext(t.Context(), compiler, "-p", folder).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(output), "wrong.js(2,14)")
}

// axe-core finds nothing, in either theme, wide and narrow, before a race, in a story and after it was told.
func TestAccessibility(t *testing.T) {
	urls := laboratory(t)
	axe, err := os.ReadFile(tool(t, "axe-core/axe.min.js"))
	require.NoError(t, err)
	for _, view := range []struct {
		theme string
		width int64
	}{{"light", 1440}, {"dark", 360}} {
		t.Run(fmt.Sprintf("%s %d", view.theme, view.width), func(t *testing.T) {
			p := open(t)
			p.screen(view.width, 900)
			p.visit(urls[0])
			p.choose("#theme", view.theme)
			evaluate[any](p, string(axe)+"; 0")
			check := func(when string) {
				t.Helper()
				violations := evaluate[json.RawMessage](p, `axe.run().then((r) => r.violations.map((v) => v.id + ': ' + v.help + ' ' + v.nodes.map((n) => n.target.join(' ') + ' ' + (n.any[0]?.message ?? '')).join(' | ')))`)
				assert.JSONEq(t, `[]`, string(violations), when)
			}
			check("at first")
			for _, details := range []string{".keys", "#words"} {
				evaluate[any](p, fmt.Sprintf(`document.querySelector(%q).open = true`, details))
			}
			p.choose("#story", "redis")
			p.click("#story-end")
			p.wait(`document.querySelector('#step-count').innerText === 'Step 3 of 3'`)
			check("in a story")
			p.click("#mode-race")
			check("with the settings of a race")
			// It would tell.
			evaluate[any](p, `document.querySelector('#stock').closest('label').replaceWith(document.querySelector('#stock'))`)
			require.Contains(t, string(evaluate[json.RawMessage](p, `axe.run().then((r) => r.violations.map((v) => v.id))`)), "label")
			p.clean(urls...)
		})
	}
}

// listenAgain takes the address as soon as the system has given it back.
func listenAgain(t *testing.T, address string) (listener net.Listener) {
	t.Helper()
	require.Eventually(t, func() bool {
		var err error
		listener, err = net.Listen("tcp", address)
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
	return listener
}

// screen makes the page's window as wide and as high as a device's.
func (p *tab) screen(width, height int64) {
	p.Helper()
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1})
}

// Who wants no motion gets none, and loses nothing.
func TestReducedMotion(t *testing.T) {
	s := start(t, &service{}, 2)
	p := open(t)
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-reduced-motion", Value: "reduce"}},
	})
	p.visit(s.urls()[0] + "/?stock=5&buyers=10")
	p.race()
	require.Equal(t, "Sold 5 of 5. Oversold 0.", p.text("#verdict-text"))
	require.Equal(t, "0s", evaluate[string](p, `getComputedStyle(document.querySelector('#meter-sold')).transitionDuration`))
	p.clean(s.urls()...)
}

// A service that stops is said to be gone, and one that comes back at the same address is found without anybody's doing.
func TestAServiceThatIsRestarted(t *testing.T) {
	s := start(t, &service{}, 1)
	p := open(t)
	p.visit(s.urls()[0] + "/?stock=5&buyers=10")
	p.wait(`document.querySelector('#link').dataset.link === 'live'`)
	address, handler := s.instances[0].Listener.Addr().String(), s.instances[0].Config.Handler
	stop(s.instances[0])
	p.wait(`document.querySelector('#link').dataset.link === 'gone'`)
	require.Equal(t, "the service is gone; trying again", p.text("#link-text"))

	again := httptest.NewUnstartedServer(handler)
	require.NoError(t, again.Listener.Close())
	again.Listener = listenAgain(t, address)
	again.Start()
	t.Cleanup(func() { stop(again) })
	p.wait(`document.querySelector('#link').dataset.link === 'live'`)
	require.Equal(t, "Connection: live.", p.text("#status"))
	p.race()
	require.Equal(t, "Sold 5 of 5. Oversold 0.", p.text("#verdict-text"))
	p.clean(s.urls()...)
}

// Outside the laboratory nothing can be broken, and every button says why and what to do.
func TestWithoutALaboratory(t *testing.T) {
	s := start(t, &service{}, 2)
	p := open(t)
	p.visit(s.urls()[0])
	require.Contains(t, p.text("#story-say"), "Run make demo, or start it with FENCEPOST_DEMO=on")
	require.Equal(t, "true", evaluate[string](p, `document.querySelector('#story-next').getAttribute('aria-disabled')`))
	require.NotEqual(t, evaluate[string](p, `getComputedStyle(document.querySelector('#story-next')).color`),
		evaluate[string](p, `getComputedStyle(document.querySelector('#story-next')).backgroundColor`), "axe leaves out what is disabled")
	p.click(fmt.Sprintf(`[data-fault="kill %s"]`, s.urls()[1]))
	require.Contains(t, p.text("#faults-text"), "This service runs without its demonstration")
	require.Contains(t, p.text("#status"), "Run make demo")
	require.True(t, evaluate[bool](p, `document.querySelector('#slow').disabled`))
	p.clean(s.urls()...)
}

// Five hundred buyers are drawn without a jerk, and ten races leave nothing behind in the page's memory. In its short form it
// only shows that both can be measured.
func TestManyBuyers(t *testing.T) {
	s := start(t, &service{}, 3)
	p := open(t)
	buyers, races := 60, 1
	if *soak {
		buyers, races = 500, 10
	}
	p.visit(fmt.Sprintf("%s/?stock=%d&buyers=%d", s.urls()[0], buyers/2, buyers))
	heap := func() float64 {
		call(p, heapprofiler.CollectGarbage, struct{}{})
		return evaluate[float64](p, `performance.memory.usedJSHeapSize / 1e6`)
	}
	p.race()
	before := heap()
	for range races {
		evaluate[any](p, `(() => {
			window.frames_ = [];
			window.over_ = false;
			let last = performance.now();
			const tick = (now) => { window.frames_.push(now - last); last = now; if (!window.over_) requestAnimationFrame(tick); };
			requestAnimationFrame(tick);
		})()`)
		p.race()
		evaluate[any](p, `window.over_ = true`)
		frames := evaluate[[]float64](p, `[...window.frames_].sort((a, b) => a - b)`)
		require.NotEmpty(t, frames)
		sum := 0.0
		for _, f := range frames {
			sum += f
		}
		t.Logf("%d buyers: %.0f frames a second; a frame takes %.1f ms in the middle, %.1f ms at the 95th percentile, %.1f ms at most",
			buyers, 1000*float64(len(frames))/sum, frames[len(frames)/2], frames[len(frames)*95/100], frames[len(frames)-1])
	}
	after := heap()
	t.Logf("heap: %.1f MB after one race, %.1f MB after %d more", before, after, races)
	if *soak {
		require.Less(t, after, before+5, "memory must stay flat")
	}
	p.clean(s.urls()...)
}

// The last step of a story fits a wide screen and a narrow one, in both themes. With PICTURES=FOLDER all stories are told, and
// pictures of them are left there for somebody to look at: make pictures.
func TestPictures(t *testing.T) {
	folder, stories := os.Getenv("PICTURES"), []string{"paused-holder"}
	if folder != "" {
		stories = []string{"no-lock", "mutex", "redis", "paused-holder", "forgetful-redis", "dead-session", "switching"}
	}
	urls := laboratory(t)
	for _, story := range stories {
		p := open(t)
		p.screen(1440, 1000)
		p.visit(urls[0] + "/#story=" + story)
		p.wait(`document.querySelector('#link').dataset.link === 'live'`)
		p.click("#story-end")
		p.wait(`document.querySelector('#story-next').innerText === 'Next story' && document.querySelector('#guide').getAttribute('aria-busy') === 'false'`)
		for _, theme := range []string{"light", "dark"} {
			evaluate[any](p, fmt.Sprintf(`document.documentElement.dataset.theme = %q`, theme))
			for _, width := range []int64{1440, 360} {
				p.screen(width, 1000)
				p.wait(fmt.Sprintf(`document.querySelector('.lanes').getBoundingClientRect().width <= document.querySelector('#lanes').clientWidth + 1 && innerWidth === %d`, width))
				require.LessOrEqual(t, evaluate[int64](p, `document.documentElement.scrollWidth`), width)
				if folder == "" {
					continue
				}
				// What scrolls by itself is painted later than the rest.
				evaluate[any](p, `new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))`)
				p.capture(filepath.Join(folder, fmt.Sprintf("%s-%s-%d.png", story, theme, width)), true)
				if story == "paused-holder" && theme == "light" && width == 1440 { // the README's: what is seen at once
					p.screen(1180, 880)
					p.wait(`innerWidth === 1180`)
					p.capture(filepath.Join(folder, "readme.png"), false)
				}
			}
		}
	}
}

// capture writes a picture of the whole page, or of what is seen of it at once.
func (p *tab) capture(file string, whole bool) {
	p.Helper()
	picture, err := chromedp.Call(p.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: "png", CaptureBeyondViewport: &whole})
	require.NoError(p, err)
	require.NoError(p, os.WriteFile(file, picture.Data, 0o644))
}
