// The page itself: reads the form, brings the parts together, and keeps what is shown in step with what happens.

import { explain, must, send, Trouble } from './api.js';
import { Compare } from './compare.js';
import { $, button, download, element, ifStorageAllows, input, select, setText } from './dom.js';
import { Faults, noLab } from './faults.js';
import { Fleet } from './fleet.js';
import { Guide } from './guide.js';
import { counts } from './numbers.js';
import { Picture } from './picture.js';
import { Player } from './player.js';
import { fromText, longestLink, pack, toText, unpack } from './recording.js';
import { Run } from './run.js';
import { stories } from './stories.js';
import { fencingFor, kindOf, quoted, troubles, underWay, units, verdict } from './words.js';

/** @typedef {import('./words.js').Strategy} Strategy */
/** @typedef {import('./faults.js').Demo} Demo */

const form = /** @type {HTMLFormElement} */ ($('form'));
const key = input('key');

/** @type {Strategy[]} */
let strategies = [];
/** @type {Demo | null} */
let demo = null;
/** What keeps the page from working at all, if anything does. */
let hindrance = '';
/** What keeps it from working fully. */
let remark = '';
/** What the reader asked for before a strategy forced it off. @type {'enforced'|'off'} */
let wantedFencing = 'enforced';

const picture = new Picture();
const player = new Player(() => draw());
const fleet = new Fleet({
  event: (instance, kind, data) => run.server(instance, kind, data),
  change: () => linkChanged(),
});
const run = new Run({ fleet, player, key: () => key.value });
const guide = new Guide({ run, player, fleet, announce, taken });
const faults = new Faults({ run, fleet, announce });
const compare = new Compare({
  run, player, announce, taken, strategies: () => strategies, settings, leaveStory: () => guide.leave(),
});

// --- Finding out what there is -----------------------------------------------------------------------------------------

/** Asks the service what there is to choose from, again and again while it does not answer. */
async function discover() {
  hindrance = remark = '';
  try {
    strategies = (await must('GET', '/v1/strategies', key.value)).strategies;
    const { answer, body } = await send('GET', '/demo', key.value);
    demo = answer.status === 200 ? body : null;
    fleet.follow(await knownInstances(), key.value);
    if (demo?.lab) fleet.learn(demo.lab.instances);
  } catch (cause) {
    hindrance = explain(cause);
    askForKey(cause);
    if (cause instanceof Trouble && cause.status === 0) setTimeout(discover, 2000);
  }
  faults.demo = demo;
  guide.facts = { strategies, noLab: noLab(demo), demo: demo !== null };
  drawStrategies();
  drawHonest();
  settle();
  guide.draw();
  linkChanged();
}

/**
 * The base URLs of all instances. A service that asks for keys does not tell where its other instances are, and a browser
 * lets the page call them only if it was opened at one of these addresses: "localhost" is not "127.0.0.1" to it.
 */
async function knownInstances() {
  const { answer, body } = await send('GET', '/v1/instances', key.value);
  const all = answer.status === 200 ? body.instances.map((/** @type {string} */ url) => url.replace(/\/$/, '')) : [];
  if (all.includes(location.origin)) return all;
  if (all.length > 0) remark = `This page was opened at ${location.origin}, which is not the address of any instance, so the race uses this one instance only. Open ${all[0]}/ to race over all ${all.length}.`;
  return [location.origin];
}

/** @param {unknown} cause */
function askForKey(cause) {
  if (cause instanceof Trouble && (cause.status === 401 || cause.status === 403)) {
    mode('race');
    /** @type {HTMLDetailsElement} */ ($('key-box')).open = true;
  }
}

let linkWas = '';

function linkChanged() {
  const live = fleet.members.filter((m) => m.link === 'live').length;
  const all = fleet.members.length;
  const gone = fleet.members.filter((m) => m.link === 'gone');
  const [link, text] = all === 0 || gone.length === all ? ['gone', 'the service is gone; trying again']
    : gone.length > 0 ? ['some', `${live} of ${all} instances live; trying the others again`]
      : fleet.members.every((m) => m.link === 'none') ? ['none', 'no events from this service']
        : live < all ? ['connecting', 'connecting'] : ['live', all === 1 ? 'live' : `live, ${all} instances`];
  $('link').dataset.link = link;
  setText($('link-text'), text);
  if (linkWas && linkWas !== link && (link === 'gone' || link === 'live')) announce(`Connection: ${text}.`);
  if (linkWas === 'gone' && link === 'live' && !run.busy) discover();
  linkWas = link;
  faults.draw();
  draw();
}

// --- Racing ------------------------------------------------------------------------------------------------------------

/** @returns {import('./reducer.js').Settings} */
function settings() {
  const strategy = chosen();
  return {
    strategy: strategy?.name ?? '', fencing: fencingFor(strategy, wantedFencing).fencing,
    stock: input('stock').valueAsNumber, buyers: input('buyers').valueAsNumber, slow: input('slow').valueAsNumber, seed: input('seed').valueAsNumber,
    instances: fleet.urls.slice(0, input('used').valueAsNumber), title: '',
  };
}

async function race() {
  if (!chosen() || !form.reportValidity() || taken()) return;
  await guide.leave();
  const s = settings();
  announce(`The race begins: ${s.buyers} buyers, ${units(s.stock)}, lock ${s.strategy}.`);
  const box = $('verdict').getBoundingClientRect();
  if (box.top < 0 || box.bottom > innerHeight) $('verdict').scrollIntoView(); // on a small screen it is below the form
  await run.race(s, Number(select('pace').value));
  const { audit, trouble } = player.state;
  announce(audit ? verdict(audit) : trouble);
}

/** Whether something is under way that a race, or a story, would have to wait for. A story that stands still gives way. */
function taken() {
  return guide.acting || compare.running || (run.busy && guide.step === 0);
}

async function reset() {
  if (guide.acting) return;
  if (guide.step > 0) await guide.leave();
  if (run.busy) return run.stop();
  picture.marked = 0;
  player.load([]);
}

function pauseOrGo() {
  if (!run.busy || guide.step > 0) return race();
  if (run.paused) run.go();
  else run.pause();
  draw();
}

// --- Choosing ----------------------------------------------------------------------------------------------------------

function chosen() {
  const radio = /** @type {HTMLInputElement | null} */ (form.querySelector('input[name=strategy]:checked'));
  return strategies.find((s) => s.name === radio?.value);
}

/** @param {'guide' | 'race'} which */
function mode(which) {
  $('guide').hidden = which !== 'guide';
  form.hidden = which !== 'race';
  $('mode-guide').setAttribute('aria-pressed', String(which === 'guide'));
  $('mode-race').setAttribute('aria-pressed', String(which === 'race'));
}

const numbers = ['stock', 'buyers', 'used', 'slow', 'seed'];

/** Brings the form in line with itself and the address bar in line with the form, so that a race can be linked to. */
function settle() {
  const strategy = chosen();
  const { fencing, forced, hint } = fencingFor(strategy, wantedFencing);
  for (const radio of /** @type {NodeListOf<HTMLInputElement>} */ (form.querySelectorAll('input[name=fencing]'))) {
    radio.checked = radio.value === fencing;
    radio.disabled = forced && radio.value === 'enforced';
  }
  setText($('fencing-hint'), hint);
  if (fleet.urls.length > 0) {
    input('used').max = String(fleet.urls.length);
    if (input('used').valueAsNumber > fleet.urls.length) input('used').value = String(fleet.urls.length);
  }
  if (strategies.length > 0 && demo === null) {
    input('slow').disabled = true;
    input('slow').value = '0';
    setText($('slow-hint'), 'A slow step is for the demonstration: this service runs without it. Start it with FENCEPOST_DEMO=on.');
  }
  if (strategy && !form.hidden) {
    const query = new URLSearchParams({ strategy: strategy.name, fencing: wantedFencing });
    for (const name of numbers) query.set(name, input(name).value);
    history.replaceState(null, '', `?${query}`);
  }
  drawCurl();
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of numbers) {
    const value = query.get(name) ?? '';
    if (/^\d+$/.test(value)) input(name).value = value;
  }
  if (query.get('fencing') === 'off') wantedFencing = 'off';
  if (query.size > 0) mode('race');
}

/** What stands behind the # of the address: a recording, or a step of a story. */
async function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const packed = hash.get('replay');
  if (packed && mayOpen()) {
    try {
      player.load(await unpack(packed));
    } catch (cause) {
      remark = cause instanceof Error ? cause.message : String(cause);
      draw();
    }
  }
  const story = hash.get('story');
  if (story && stories.some((s) => s.id === story)) {
    mode('guide');
    await guide.open(story);
    await guide.goTo(Number(hash.get('step') ?? 0));
  }
}

/** Whether a recording may take the place of what is shown. Not while a race is under way, which would be added to it. */
function mayOpen() {
  if (!taken() && !run.busy) return true;
  setText($('share-text'), underWay);
  return false;
}

// --- Drawing -----------------------------------------------------------------------------------------------------------

let drawing = false;

/** Many events, one drawing per frame. */
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const { state } = player;
    picture.draw(state, live() ? Math.max(run.now, state.t) : state.t);
    drawControls();
    drawPlayer();
    drawNotice();
    if (state.phase === 'running') announceNowAndThen();
  });
}

/** Whether time goes on in what is shown. */
function live() {
  return player.live && run.busy && player.state.sku === run.sku;
}

// A lease that runs out and a pause that lasts make no event while they do; and what is drawn rarely is drawn at last.
setInterval(() => { if (live() && !document.hidden) draw(); }, 250);

function drawControls() {
  const usable = chosen() !== undefined && hindrance === '';
  button('start').disabled = taken() || !usable;
  button('pause').disabled = !run.busy || guide.step > 0;
  setText(button('pause'), run.paused ? 'Go on' : 'Pause');
  button('step').disabled = !(run.busy && run.paused) || guide.step > 0;
  button('stop').disabled = player.events.length === 0 || run.stopped && run.busy;
  setText(button('stop'), run.busy ? 'Stop' : 'Reset');
  button('buy').disabled = !player.state.sku || player.state.sku !== run.sku || run.busy;
  drawCurl();
}

function drawPlayer() {
  const { events, position } = player;
  const none = events.length === 0;
  button('play').disabled = button('share').disabled = button('save').disabled = none || run.busy;
  setText(button('play'), player.playing ? 'Stop' : 'Replay');
  const scrub = input('scrub');
  scrub.disabled = none || run.busy;
  scrub.max = String(events.length);
  if (scrub.valueAsNumber !== position) scrub.value = String(position);
  scrub.setAttribute('aria-valuetext', `event ${position} of ${events.length}, ${Math.round(player.state.t)} ms`);
  setText($('play-text'), none ? 'Nothing is recorded yet.' : `Event ${position} of ${events.length}, at ${(player.state.t / 1000).toFixed(2)} s${player.live ? '' : ' (replay)'}.`);
}

let noticed = '';

function drawNotice() {
  const list = hindrance ? [hindrance] : [remark, ...troubles(player.state.buyers)].filter(Boolean);
  const shown = list.join('\n');
  if (noticed === shown) return;
  noticed = shown;
  $('notice').hidden = list.length === 0;
  $('again').hidden = !hindrance;
  $('troubles').replaceChildren(...list.map((text) => element('li', {}, text)));
}

function drawStrategies() {
  const query = new URLSearchParams(location.search).get('strategy');
  const usable = strategies.filter((s) => s.available);
  // Without a wish of the reader's the race that goes wrong comes first: it shows what the others are for.
  const first = chosen() ?? usable.find((s) => s.name === query) ?? usable.find((s) => s.name === 'none') ?? usable[0];
  const rows = strategies.map((s) => {
    const radio = element('input', { type: 'radio', name: 'strategy', value: s.name, id: `strategy-${s.name}`, 'aria-describedby': `about-${s.name}` });
    /** @type {HTMLInputElement} */ (radio).disabled = !s.available;
    /** @type {HTMLInputElement} */ (radio).checked = s === first;
    const about = s.available ? s.summary ?? '' : `Not available: ${s.problem ?? 'no reason given'}`;
    return element('div', { 'class': 'strategy', 'data-available': String(s.available) },
      radio,
      element('label', { for: `strategy-${s.name}` }, s.name, ' ', element('span', { class: 'kind' }, kindOf(s.name))),
      element('p', { class: 'hint', id: `about-${s.name}` }, about));
  });
  if (rows.length === 0) rows.push(element('p', { class: 'hint' }, hindrance ? 'The service did not say.' : 'The service offers none.'));
  $('strategies').replaceChildren(element('legend', {}, 'Lock'), ...rows);
}

/** What a reader must know to judge what he sees. */
function drawHonest() {
  const say = ['Every server that is used here is real; nothing is simulated but the slow step.'];
  if (demo) say.push(`Build ${demo.version}. Leases last ${demo.lease_ttl_ms / 1000} s.`);
  if (demo?.lab) {
    const versions = new Set(demo.lab.servers.map((s) => `${s.name.replace(/-\d$/, '')} ${s.version || 'missing'}`));
    say.push(`${demo.lab.machine}. ${[...versions].join(', ')}. PostgreSQL: ${demo.lab.storage}.`);
  }
  setText($('honest'), say.join(' '));
}

/** The item that is shown, or the one that the form would make. */
function drawCurl() {
  const s = player.state.sku ? player.state.settings : settings();
  const sku = player.state.sku || 'chair';
  const auth = key.value ? " \\\n  -H 'Authorization: Bearer …'" : '';
  const json = " \\\n  -H 'Content-Type: application/json'";
  const item = quoted(JSON.stringify({ sku, name: 'Prize', stock: s.stock || 1, lock: { strategy: s.strategy || 'postgres', fencing: s.fencing } }));
  const name = encodeURIComponent(sku);
  setText($('curl'), [
    `curl -X POST ${location.origin}/v1/items${auth}${json} \\\n  -d ${item}`,
    `curl -i -X POST ${quoted(`${location.origin}/v1/items/${name}/reservations`)}${auth}${json} \\\n  -d '{"quantity":1,"customer_id":"you"}'`,
    `curl ${quoted(`${location.origin}/v1/audit?resource=item/${name}`)}${auth}`,
  ].join('\n'));
}

// --- Speaking ----------------------------------------------------------------------------------------------------------

let announcedAt = 0;

/** @param {string} text */
function announce(text) {
  announcedAt = performance.now();
  $('status').textContent = text;
}

/** Progress is worth a sentence now and then; one for every sale would drown everything else a screen reader says. */
function announceNowAndThen() {
  if (performance.now() - announcedAt < 3000) return;
  const n = counts(player.state);
  announce(`${n.sold} sold, ${n.waiting + n.asking + n.holding} have no answer yet.`);
}

// --- Beginning ---------------------------------------------------------------------------------------------------------

const theme = select('theme');
theme.addEventListener('change', () => {
  document.documentElement.dataset.theme = theme.value;
  ifStorageAllows(() => localStorage.setItem('theme', theme.value));
});
ifStorageAllows(() => {
  theme.value = localStorage.getItem('theme') ?? '';
  document.documentElement.dataset.theme = theme.value;
  input('shortcuts').checked = localStorage.getItem('shortcuts') !== 'off';
  key.value = sessionStorage.getItem('key') ?? '';
});
input('shortcuts').addEventListener('change', () => {
  ifStorageAllows(() => localStorage.setItem('shortcuts', input('shortcuts').checked ? 'on' : 'off'));
});

key.addEventListener('change', () => {
  ifStorageAllows(() => sessionStorage.setItem('key', key.value));
  discover();
});
form.addEventListener('input', (event) => {
  const target = /** @type {HTMLInputElement} */ (event.target);
  if (target.name === 'fencing') wantedFencing = target.value === 'off' ? 'off' : 'enforced';
  if (target.id === 'pace') run.pace = Number(target.value);
  settle();
});
form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (!button('start').disabled) race();
});
form.addEventListener('click', (event) => {
  const preset = /** @type {HTMLElement} */ (event.target).closest('button')?.dataset;
  if (!preset?.stock || !preset.buyers) return;
  input('stock').value = preset.stock;
  input('buyers').value = preset.buyers;
  input('slow').value = demo ? preset.slow ?? '0' : '0';
  settle();
});
button('pause').addEventListener('click', pauseOrGo);
button('step').addEventListener('click', () => run.step());
button('stop').addEventListener('click', reset);
button('again').addEventListener('click', discover);
button('mode-guide').addEventListener('click', () => mode('guide'));
button('mode-race').addEventListener('click', () => { mode('race'); settle(); });

button('play').addEventListener('click', () => (player.playing ? player.pause() : player.play()));
button('play-on').addEventListener('click', () => player.step(1));
button('play-back').addEventListener('click', () => player.step(-1));
select('speed').addEventListener('change', () => { player.speed = Number(select('speed').value); });
input('scrub').addEventListener('input', () => {
  const to = input('scrub').valueAsNumber;
  player.pause();
  player.settle();
  player.seek(to);
});
button('save').addEventListener('click', () => {
  player.settle();
  download(`fencepost-${player.state.sku}.json`, 'application/json', toText(player.events));
});
button('share').addEventListener('click', async () => {
  player.settle();
  const url = `${location.origin}/#replay=${await pack(player.events)}`;
  if (url.length > longestLink) return setText($('share-text'), 'This race is too long for a link. Save it as a file instead.');
  await copy(url, $('share-text'), `Copied: a link of ${url.length} characters. It holds the whole race, and needs no server but one that shows this page.`);
});
input('load').addEventListener('change', async () => {
  const file = input('load').files?.[0];
  if (!file) return;
  try {
    const events = fromText(await file.text());
    if (!mayOpen()) return;
    player.load(events);
    setText($('share-text'), `${file.name} is shown.`);
  } catch (cause) {
    setText($('share-text'), cause instanceof Error ? cause.message : String(cause));
  } finally {
    input('load').value = ''; // the same file may be chosen again
  }
});
button('copy').addEventListener('click', () => copy($('curl').textContent ?? '', $('buy-text'), 'The curl lines are copied.'));
button('buy').addEventListener('click', async () => {
  const answer = await run.buyer(fleet.base, 'you');
  setText($('buy-text'), `${answer.status} ${answer.code}${answer.token ? `, token ${answer.token}` : ''}. ${answer.detail}`);
  try {
    await run.count();
  } catch (cause) {
    run.fail(cause);
  }
});

/**
 * @param {string} text
 * @param {HTMLElement} where
 * @param {string} done
 */
async function copy(text, where, done) {
  try {
    await navigator.clipboard.writeText(text);
    setText(where, done);
  } catch { // forbidden, or not a secure context
    setText(where, `The browser does not let the page copy. Copy this: ${text}`);
  }
}

$('log').addEventListener('click', (event) => {
  const row = /** @type {HTMLElement} */ (event.target).closest('tr');
  if (row?.dataset.entry) picture.mark(player.state, player.state.t, Number(row.dataset.entry));
});
input('log-filter').addEventListener('input', draw);

document.addEventListener('keydown', (event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  if (!input('shortcuts').checked || event.ctrlKey || event.altKey || event.metaKey) return;
  if (target.closest('input, select, textarea, summary, [role=region]')) return;
  const onButton = target.closest('button, a') !== null;
  /** @type {Record<string, () => unknown>} */
  const keys = {
    'ArrowRight': () => ($('guide').hidden ? player.step(1) : guide.next()),
    'ArrowLeft': () => ($('guide').hidden ? player.step(-1) : guide.back()),
    '.': () => player.step(1),
    ',': () => player.step(-1),
    'r': reset,
  };
  if (!onButton) keys[' '] = () => ($('guide').hidden ? pauseOrGo() : player.playing ? player.pause() : player.play());
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || (event.key === ' ' && player.events.length === 0 && !$('guide').hidden)) return;
  event.preventDefault();
  act();
});

// In a tab that nobody sees the streams are given back: all tabs of a browser share six connections to a server.
document.addEventListener('visibilitychange', () => {
  if (document.hidden && !run.busy) fleet.rest();
  else if (!document.hidden && fleet.urls.length > 0) fleet.follow(fleet.urls, key.value);
});
addEventListener('hashchange', readHash);
new ResizeObserver(draw).observe($('lanes'));

readAddress();
await discover();
await readHash();
