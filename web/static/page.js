// The page itself: reads the form, runs the race, draws the state.

import { must, send, Trouble } from './api.js';
import {
  byInstance, counts, deal, fencingFor, host, idle, outcomes, reasons, reduce, times, troubles, units, verdict,
} from './race.js';

/** @typedef {import('./race.js').Strategy} Strategy */

// A browser opens at most six connections to one server (HTTP/1.1). More requests than that would wait inside the browser,
// and their wait would be taken for the service's.
const perInstance = 6;

/**
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
const $ = (id) => /** @type {T} */ (document.getElementById(id));

const form = /** @type {HTMLFormElement} */ ($('form'));
const stock = /** @type {HTMLInputElement} */ ($('stock'));
const buyers = /** @type {HTMLInputElement} */ ($('buyers'));
const key = /** @type {HTMLInputElement} */ ($('key'));
const start = /** @type {HTMLButtonElement} */ ($('start'));
const stop = /** @type {HTMLButtonElement} */ ($('stop'));

let race = idle;
/** @type {Strategy[]} */
let strategies = [];
/** @type {string[]} */
let instances = [];
/** What keeps the page from working at all, if anything does. */
let hindrance = '';
/** What keeps it from working fully. */
let remark = '';
/** What the reader asked for before a strategy forced it off. @type {'enforced'|'off'} */
let wantedFencing = 'enforced';

// --- Running ---------------------------------------------------------------------------------------------------------

/** Asks the service what there is to choose from. */
async function discover() {
  hindrance = remark = '';
  try {
    strategies = (await must('GET', '/v1/strategies', key.value)).strategies;
    instances = await knownInstances();
  } catch (cause) {
    hindrance = words(cause);
    askForKey(cause);
  }
  drawStrategies();
  settle();
  draw();
}

/**
 * The base URLs of all instances. A service that asks for keys does not tell where its other instances are, and a browser
 * lets the page call them only if it was opened at one of these addresses: "localhost" is not "127.0.0.1" to it.
 */
async function knownInstances() {
  const { answer, body } = await send('GET', '/v1/instances', key.value);
  const all = answer.status === 200 ? body.instances.map((/** @type {string} */ url) => url.replace(/\/$/, '')) : [];
  if (all.length === 0 || all.includes(location.origin)) return all.length > 0 ? all : [location.origin];
  remark = `This page was opened at ${location.origin}, which is not the address of any instance, so the race uses this one instance only. Open ${all[0]}/ to race over all ${all.length}.`;
  return [location.origin];
}

/** One race, from the new item to the database's count. */
async function run() {
  const strategy = chosen();
  if (!strategy || !form.reportValidity()) return;
  const { fencing } = fencingFor(strategy, wantedFencing);
  const lock = { strategy: strategy.name, fencing };
  const sku = `race-${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 6)}`;
  const many = buyers.valueAsNumber;
  const secret = key.value;

  dispatch({ type: 'prepare', sku, stock: stock.valueAsNumber });
  const box = $('verdict').getBoundingClientRect();
  if (box.top < 0 || box.bottom > innerHeight) $('verdict').scrollIntoView(); // on a small screen it is below the form
  announce(`The race begins: ${many} buyers, ${units(race.stock)}, lock ${strategy.name}.`);
  try {
    await must('POST', '/v1/items', secret, { sku, name: 'Prize of the race', stock: race.stock, lock });
    dispatch({ type: 'start', buyers: deal(many, instances), at: performance.now() });
    await Promise.all(instances.map((instance) => serve(instance, secret)));
    dispatch({ type: 'count' });
    const audit = await must('GET', `/v1/audit?resource=${encodeURIComponent(`item/${sku}`)}`, secret);
    if (audit.resources?.length !== 1) throw new Trouble('The audit does not know the item of this race.', 200);
    dispatch({ type: 'audit', row: audit.resources[0] });
    announce(verdict(audit.resources[0]));
  } catch (cause) {
    dispatch({ type: 'break', trouble: words(cause) });
    announce(words(cause));
    askForKey(cause);
  }
}

/**
 * Lets the buyers of one instance ask, a few at a time. Stopping keeps the others from asking; a request on its way is
 * waited for, because its outcome would be unknown otherwise.
 * @param {string} instance
 * @param {string} secret
 */
async function serve(instance, secret) {
  const queue = [...race.buyers.keys()].filter((i) => race.buyers[i].instance === instance);
  const url = `${instance}/v1/items/${race.sku}/reservations`;
  const clerk = async () => {
    for (let i = queue.shift(); i !== undefined && !race.stopped; i = queue.shift()) {
      const { answer } = await send('POST', url, secret, { quantity: 1, customer_id: race.buyers[i].name });
      dispatch({ type: 'answer', buyer: i, answer, at: performance.now() });
    }
  };
  await Promise.all(Array.from({ length: perInstance }, clerk));
}

/** @param {unknown} cause */
function words(cause) {
  if (cause instanceof Trouble) return cause.message;
  console.error(cause);
  return `The page failed: ${cause}`;
}

/** @param {unknown} cause */
function askForKey(cause) {
  if (cause instanceof Trouble && (cause.status === 401 || cause.status === 403)) {
    /** @type {HTMLDetailsElement} */ ($('key-box')).open = true;
  }
}

// --- Choosing --------------------------------------------------------------------------------------------------------

function chosen() {
  const radio = /** @type {HTMLInputElement | null} */ (form.querySelector('input[name=strategy]:checked'));
  return strategies.find((s) => s.name === radio?.value);
}

/** Brings the form in line with itself and the address bar in line with the form, so that a race can be linked to. */
function settle() {
  const strategy = chosen();
  const { fencing, forced, hint } = fencingFor(strategy, wantedFencing);
  for (const radio of /** @type {NodeListOf<HTMLInputElement>} */ (form.querySelectorAll('input[name=fencing]'))) {
    radio.checked = radio.value === fencing;
    radio.disabled = forced && radio.value === 'enforced';
  }
  $('fencing-hint').textContent = hint;
  if (strategy) {
    const query = new URLSearchParams({ strategy: strategy.name, fencing: wantedFencing, stock: stock.value, buyers: buyers.value });
    history.replaceState(null, '', `?${query}`);
  }
  drawCurl();
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  if (/^\d+$/.test(query.get('stock') ?? '')) stock.value = /** @type {string} */ (query.get('stock'));
  if (/^\d+$/.test(query.get('buyers') ?? '')) buyers.value = /** @type {string} */ (query.get('buyers'));
  if (query.get('fencing') === 'off') wantedFencing = 'off';
}

// --- Drawing ---------------------------------------------------------------------------------------------------------

let drawing = false;

/** @param {import('./race.js').Event} event */
function dispatch(event) {
  race = reduce(race, event);
  if (drawing) return;
  drawing = true; // many answers, one drawing per frame
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

/**
 * @param {string} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 */
function element(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

function draw() {
  const busy = race.phase === 'preparing' || race.phase === 'running' || race.phase === 'counting';
  start.disabled = busy || !chosen();
  stop.disabled = race.phase !== 'running' || race.stopped;
  drawVerdict();
  drawNotice();
  drawMeter();
  drawBuyers();
  drawNumbers();
  drawTables();
  if (race.phase === 'preparing') drawCurl();
}

function drawVerdict() {
  const n = counts(race.buyers);
  const asked = race.buyers.length - n.waiting;
  const [tone, text, why] = {
    idle: ['idle', 'No race has run yet.', 'Start without a lock first, then choose one.'],
    preparing: ['busy', 'Creating the item …', ''],
    running: ['busy', `${asked} of ${race.buyers.length} buyers have their answer.`, race.stopped ? 'Stopping: waiting for the requests on their way.' : ''],
    counting: ['busy', 'PostgreSQL is counting …', ''],
    done: [race.audit?.ok ? 'good' : 'bad', race.audit ? verdict(race.audit) : '', reasons(race)],
    broken: ['broken', 'There is no verdict.', race.trouble],
  }[race.phase];
  $('verdict').dataset.tone = tone;
  setText($('verdict-text'), text);
  setText($('verdict-why'), why);
  if (race.phase === 'running') announceNowAndThen(text);
}

function drawNotice() {
  const list = hindrance ? [hindrance] : [remark, ...troubles(race.buyers)].filter(Boolean);
  const shown = list.join('\n');
  const notice = $('notice');
  if (notice.dataset.shown === shown) return;
  notice.dataset.shown = shown;
  notice.hidden = list.length === 0;
  $('again').hidden = !hindrance;
  $('troubles').replaceChildren(...list.map((text) => element('li', {}, text)));
}

/** Until the database has counted, the answers are what is known. */
function drawMeter() {
  const counted = race.audit !== null;
  const limit = race.audit?.limit ?? race.stock;
  const sold = race.audit ? race.audit.sold + race.audit.held : counts(race.buyers).sold;
  const over = race.audit?.oversold ?? Math.max(0, sold - limit);
  const scale = Math.max(limit, sold, 1);
  $('meter-sold').style.width = `${(100 * Math.min(sold, limit)) / scale}%`;
  $('meter-over').style.width = `${(100 * Math.max(0, sold - limit)) / scale}%`;
  let text = 'Nothing sold yet.';
  if (limit > 0) {
    text = over > 0
      ? `${sold} sold of ${limit} in stock: ${over} below zero`
      : `${sold} sold of ${limit} in stock: ${limit - sold} left`;
    text += counted ? ', by the database’s count.' : ', by the answers so far.';
  }
  const meter = $('meter');
  meter.setAttribute('aria-valuemax', String(Math.max(limit, 1)));
  meter.setAttribute('aria-valuenow', String(Math.min(sold, Math.max(limit, 1))));
  meter.setAttribute('aria-valuetext', text);
  setText($('meter-text'), text);
}

/** What is drawn now, so that only the dots that changed are touched. @type {(import('./race.js').Buyer | null)[]} */
let drawn = [];

function drawBuyers() {
  const field = $('field');
  if (field.children.length !== race.buyers.length) {
    field.replaceChildren(...race.buyers.map(() => element('span', { class: 'dot' })));
    drawn = race.buyers.map(() => null);
  }
  race.buyers.forEach((buyer, i) => {
    if (drawn[i] === buyer) return;
    drawn[i] = buyer;
    const dot = /** @type {HTMLElement} */ (field.children[i]);
    dot.dataset.state = buyer.state;
    dot.title = [
      `${buyer.name} at ${host(buyer.instance)}: ${buyer.answer?.code ?? 'waiting'}`,
      buyer.answer ? `${Math.round(buyer.answer.ms)} ms` : '',
      buyer.answer?.token ? `token ${buyer.answer.token}` : '',
    ].filter(Boolean).join(', ');
  });
  const n = counts(race.buyers);
  for (const [state, count] of Object.entries(n)) {
    setText(/** @type {HTMLElement} */ (document.querySelector(`[data-count=${state}]`)), String(count));
  }
  field.setAttribute('aria-label', race.buyers.length === 0
    ? 'No buyers yet'
    : `${race.buyers.length} buyers: ${n.sold} sold, ${n.refused} refused, ${n.failed} failed, ${n.waiting} waiting`);
}

function drawNumbers() {
  const t = times(race);
  setText($('n-median'), milliseconds(t.median));
  setText($('n-p99'), milliseconds(t.p99));
  setText($('n-lock'), milliseconds(t.lock));
  setText($('n-rate'), Number.isNaN(t.rate) ? '–' : String(Math.round(t.rate)));
}

/** @param {number} ms */
function milliseconds(ms) {
  return Number.isNaN(ms) ? '–' : `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

/** Lets a long code break behind an underscore. @param {string} code */
function breakable(code) {
  return code.split(/(?<=_)/).flatMap((part, i) => (i === 0 ? [part] : [document.createElement('wbr'), part]));
}

function drawTables() {
  const rows = outcomes(race.buyers).map((o) => element('tr', {},
    element('td', {}, element('div', { class: 'outcome' }, element('span', { 'class': 'dot', 'data-state': o.state }), element('code', {}, ...breakable(o.code)))),
    element('td', { class: 'n' }, String(o.buyers)),
    element('td', {}, o.code === 'created' ? 'One unit is held for the buyer.' : o.detail + (o.retryable ? ' May be tried again.' : ''))));
  $('outcomes').replaceChildren(...(rows.length > 0 ? rows : [element('tr', {}, element('td', { colspan: '3' }, 'None yet.'))]));
  const places = byInstance(race.buyers, instances).map((i) => element('tr', {},
    element('td', {}, host(i.instance)),
    element('td', { class: 'n' }, String(i.sold)),
    element('td', { class: 'n' }, String(i.refused)),
    element('td', { class: 'n' }, String(i.failed))));
  $('instances').replaceChildren(...(places.length > 0 ? places : [element('tr', {}, element('td', { colspan: '4' }, 'None known.'))]));
}

function drawStrategies() {
  const query = new URLSearchParams(location.search).get('strategy');
  const usable = strategies.filter((s) => s.available);
  // Without a wish of the reader's the race that goes wrong comes first: it shows what the others are for.
  const first = chosen() ?? usable.find((s) => s.name === query) ?? usable.find((s) => s.name === 'none') ?? usable[0];
  const rows = strategies.map((s) => {
    const input = element('input', { type: 'radio', name: 'strategy', value: s.name, id: `strategy-${s.name}`, 'aria-describedby': `about-${s.name}` });
    /** @type {HTMLInputElement} */ (input).disabled = !s.available;
    /** @type {HTMLInputElement} */ (input).checked = s === first;
    const about = s.available ? s.summary ?? '' : `Not available: ${s.problem ?? 'no reason given'}`;
    return element('div', { 'class': 'strategy', 'data-available': String(s.available) },
      input,
      element('label', { for: `strategy-${s.name}` }, s.name),
      element('p', { class: 'hint', id: `about-${s.name}` }, about));
  });
  if (rows.length === 0) rows.push(element('p', { class: 'hint' }, hindrance ? 'The service did not say.' : 'The service offers none.'));
  $('strategies').replaceChildren(element('legend', {}, 'Lock'), ...rows);
}

function drawCurl() {
  const strategy = chosen();
  const { fencing } = fencingFor(strategy, wantedFencing);
  const sku = race.sku || 'chair';
  const auth = key.value ? " \\\n  -H 'Authorization: Bearer …'" : '';
  const json = " \\\n  -H 'Content-Type: application/json'";
  const item = JSON.stringify({ sku, name: 'Prize', stock: Number(stock.value) || 1, lock: { strategy: strategy?.name ?? 'postgres', fencing } });
  setText($('curl'), [
    `curl -X POST ${location.origin}/v1/items${auth}${json} \\\n  -d '${item}'`,
    `curl -i -X POST ${location.origin}/v1/items/${sku}/reservations${auth}${json} \\\n  -d '{"quantity":1,"customer_id":"buyer-1"}'`,
    `curl '${location.origin}/v1/audit?resource=item/${sku}'${auth}`,
  ].join('\n'));
}

/**
 * @param {HTMLElement} e
 * @param {string} text
 */
function setText(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

// --- Speaking --------------------------------------------------------------------------------------------------------

let announcedAt = 0;

/** @param {string} text */
function announce(text) {
  announcedAt = performance.now();
  $('status').textContent = text;
}

/** Progress is worth a sentence now and then; one for every sale would drown everything else a screen reader says.
 * @param {string} text */
function announceNowAndThen(text) {
  if (performance.now() - announcedAt > 3000) announce(text);
}

// --- Beginning -------------------------------------------------------------------------------------------------------

/** Storage can be forbidden; the page then forgets, and works. @param {() => void} work */
function ifStorageAllows(work) {
  try {
    work();
  } catch {
    // nothing to do
  }
}

const theme = /** @type {HTMLSelectElement} */ ($('theme'));
theme.addEventListener('change', () => {
  document.documentElement.dataset.theme = theme.value;
  ifStorageAllows(() => localStorage.setItem('theme', theme.value));
});
ifStorageAllows(() => {
  theme.value = localStorage.getItem('theme') ?? '';
  document.documentElement.dataset.theme = theme.value;
  key.value = sessionStorage.getItem('key') ?? '';
});

key.addEventListener('change', () => {
  ifStorageAllows(() => sessionStorage.setItem('key', key.value));
  if (strategies.length === 0) discover();
});
form.addEventListener('input', (event) => {
  const input = /** @type {HTMLInputElement} */ (event.target);
  if (input.name === 'fencing') wantedFencing = input.value === 'off' ? 'off' : 'enforced';
  settle();
});
form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (!start.disabled) run();
});
form.addEventListener('click', (event) => {
  const preset = /** @type {HTMLElement} */ (event.target).closest('button')?.dataset;
  if (!preset?.stock || !preset.buyers) return;
  stock.value = preset.stock;
  buyers.value = preset.buyers;
  settle();
});
stop.addEventListener('click', () => dispatch({ type: 'stop' }));
$('again').addEventListener('click', discover);

readAddress();
discover();
