// Compares all locks that are available, one after the other, with the same settings and the same seed. It promises that the
// rows are the verdicts of real races, and that what can be downloaded is what is shown.

import { $, button, download, element, setText, svg } from './dom.js';
import { times } from './numbers.js';
import { fencingFor, milliseconds, underWay, verdict } from './words.js';

/**
 * @typedef {object} Row
 * @property {string} strategy
 * @property {string} fencing
 * @property {number} stock
 * @property {number} buyers
 * @property {number} seed
 * @property {number} sold
 * @property {number} oversold
 * @property {number} p50_ms
 * @property {number} p99_ms
 * @property {number} per_second
 * @property {number} stale_refused
 * @property {string} trouble
 */

export class Compare {
  /** @type {Row[]} */
  rows = [];
  running = false;

  /**
   * @param {{
   *   run: import('./run.js').Run, player: import('./player.js').Player, announce: (text: string) => void,
   *   strategies: () => import('./words.js').Strategy[], settings: () => import('./reducer.js').Settings, taken: () => boolean, leaveStory: () => Promise<void>,
   * }} page
   */
  constructor(page) {
    this.page = page;
    button('compare').addEventListener('click', () => this.race());
    button('compare-csv').addEventListener('click', () => download('fencepost-compare.csv', 'text/csv', csv(this.rows)));
    button('compare-json').addEventListener('click', () => download('fencepost-compare.json', 'application/json', `${JSON.stringify(this.rows, null, 2)}\n`));
  }

  async race() {
    const { run, player, announce } = this.page;
    if (this.page.taken()) return setText($('compare-text'), underWay);
    this.running = true; // before the story is left, which takes time enough for a second click
    await this.page.leaveStory();
    this.rows = [];
    const available = this.page.strategies().filter((s) => s.available);
    for (const strategy of available) {
      setText($('compare-text'), `${this.rows.length + 1} of ${available.length}: ${strategy.name} …`);
      const settings = { ...this.page.settings(), strategy: strategy.name, fencing: fencingFor(strategy, 'enforced').fencing, title: `Comparing: ${strategy.name}` };
      await run.race(settings);
      const { state } = player;
      const t = times(state);
      this.rows.push({
        strategy: strategy.name, fencing: settings.fencing, stock: settings.stock, buyers: settings.buyers, seed: settings.seed,
        sold: state.audit ? state.audit.sold + state.audit.held : 0, oversold: state.audit?.oversold ?? 0,
        p50_ms: round(t.median), p99_ms: round(t.p99), per_second: round(t.rate), stale_refused: state.audit?.refused ?? 0,
        trouble: state.audit ? '' : state.trouble,
      });
      this.#draw();
      announce(`${strategy.name}: ${state.audit ? verdict(state.audit) : state.trouble}`);
      if (run.stopped) break;
    }
    this.running = false;
    setText($('compare-text'), `${this.rows.length} locks, one seed (${this.rows[0]?.seed}). The times are this browser’s, which runs beside the servers.`);
  }

  #draw() {
    $('compare-rows').replaceChildren(...this.rows.map((r) => element('tr', {},
      element('td', {}, element('code', {}, r.strategy)),
      element('td', {}, r.fencing),
      element('td', { class: 'n' }, r.trouble || `${r.sold} of ${r.stock}`),
      element('td', { class: r.oversold > 0 ? 'n bad' : 'n' }, r.oversold > 0 ? `! ${r.oversold}` : '0'),
      element('td', { class: 'n' }, milliseconds(r.p50_ms)),
      element('td', { class: 'n' }, milliseconds(r.p99_ms)),
      element('td', { class: 'n' }, String(Math.round(r.per_second))),
      element('td', { class: 'n' }, String(r.stale_refused)))));
    $('plots').replaceChildren(
      plot('Oversold', this.rows, (r) => r.oversold, String),
      plot('99 % answered within', this.rows, (r) => r.p99_ms, milliseconds),
      plot('Answers per second', this.rows, (r) => r.per_second, (n) => String(Math.round(n))),
    );
    button('compare-csv').disabled = button('compare-json').disabled = false;
  }
}

/** @param {number} n */
const round = (n) => Math.round(n * 100) / 100;

/**
 * @param {Row[]} rows
 */
export function csv(rows) {
  const columns = /** @type {(keyof Row)[]} */ (['strategy', 'fencing', 'stock', 'buyers', 'seed', 'sold', 'oversold', 'p50_ms', 'p99_ms', 'per_second', 'stale_refused', 'trouble']);
  const cell = (/** @type {unknown} */ value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return [columns.join(','), ...rows.map((r) => columns.map((c) => cell(r[c])).join(','))].join('\n') + '\n';
}

/**
 * Bars with their numbers beside them; the table above says the same.
 * @param {string} title
 * @param {Row[]} rows
 * @param {(r: Row) => number} value
 * @param {(n: number) => string} text
 */
function plot(title, rows, value, text) {
  const most = Math.max(...rows.map(value).filter(Number.isFinite), 0) || 1;
  const height = rows.length * 22 + 4;
  const picture = svg('svg', { viewBox: `0 0 300 ${height}`, class: 'plot', role: 'img', 'aria-label': `${title}: ${rows.map((r) => `${r.strategy} ${text(value(r))}`).join(', ')}` });
  rows.forEach((r, i) => {
    const long = Math.max(1, (135 * (value(r) || 0)) / most);
    picture.append(
      svg('text', { x: 0, y: i * 22 + 16 }, r.strategy),
      svg('rect', { x: 82, y: i * 22 + 4, width: long, height: 16, rx: 2, class: r.oversold > 0 ? 'plot-bad' : 'plot-good' }),
      svg('text', { x: 88 + long, y: i * 22 + 16 }, text(value(r))),
    );
  });
  return element('figure', {}, element('figcaption', {}, title), picture);
}
