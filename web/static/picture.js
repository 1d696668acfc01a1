// Draws a state into the page: verdict, meter, buyers, lanes, numbers and tables. It promises to look at nothing but the state
// and what the reader has chosen to look at, so that a replay shows what was shown live, and to touch only what has changed.

import { $, breakable, element, input, setText } from './dom.js';
import { entriesOf, lanes } from './lanes.js';
import { byInstance, counts, holders, look, looks, outcomes, times } from './numbers.js';
import { host, letter, milliseconds, reasons, refusalSQL, sentence, verdict } from './words.js';

/** @typedef {import('./reducer.js').State} State */
/** @typedef {import('./reducer.js').Buyer} Buyer */

const mostRows = 100;

/** While many answers arrive, what is read and not glanced at is drawn so rarely: the dots must not have to wait for it. */
const calmMs = 200;

export class Picture {
  /** The entry that is marked in the lanes and in the table. */
  marked = 0;
  /** @type {{buyers: Buyer[], looks: string[], dots: HTMLElement[]}} */
  #field = { buyers: [], looks: [], dots: [] };
  #lanes = '';
  #outcomes = '';
  #calm = 0;
  /** @type {State | null} */
  #logged = null;
  #filter = '';

  /**
   * @param {State} state
   * @param {number} now   how far the time has come, also where nothing has happened since the last event
   */
  draw(state, now) {
    this.#verdict(state);
    this.#meter(state);
    this.#buyers(state);
    if (state.phase === 'running' && performance.now() - this.#calm < calmMs) return; // the page draws again, soon
    this.#calm = performance.now();
    this.#drawLanes(state, now);
    this.#why(state);
    this.#numbers(state);
    this.#log(state);
  }

  /** @param {State} state */
  #verdict(state) {
    const n = counts(state);
    const asked = state.buyers.length - n.waiting - n.asking - n.holding;
    const [tone, text, why] = {
      idle: ['idle', 'No race has run yet.', 'Start without a lock first, then choose one.'],
      preparing: ['busy', 'Creating the item …', ''],
      running: ['busy', `${asked} of ${state.buyers.length} buyers have their answer.`, state.stopped ? 'Stopping: waiting for the requests on their way.' : ''],
      counting: ['busy', 'PostgreSQL is counting …', ''],
      done: [state.audit?.ok ? 'good' : 'bad', state.audit ? verdict(state.audit) : '', reasons(state)],
      broken: ['broken', 'There is no verdict.', state.trouble],
    }[state.phase];
    $('verdict').dataset.tone = tone;
    setText($('verdict-text'), text);
    setText($('verdict-why'), [state.settings.title, why].filter(Boolean).join('. '));
  }

  /** Until the database has counted, the answers are what is known. @param {State} state */
  #meter(state) {
    const limit = state.audit?.limit ?? state.settings.stock;
    const sold = state.audit ? state.audit.sold + state.audit.held : counts(state).sold;
    const over = state.audit?.oversold ?? Math.max(0, sold - limit);
    const scale = Math.max(limit, sold, 1);
    $('meter-sold').style.width = `${(100 * Math.min(sold, limit)) / scale}%`;
    $('meter-over').style.width = `${(100 * Math.max(0, sold - limit)) / scale}%`;
    let text = 'Nothing sold yet.';
    if (limit > 0) {
      text = over > 0
        ? `${sold} sold of ${limit} in stock: ${over} below zero`
        : `${sold} sold of ${limit} in stock: ${limit - sold} left`;
      text += state.audit ? ', by the database’s count.' : ', by the answers so far.';
    }
    const meter = $('meter');
    meter.setAttribute('aria-valuemax', String(Math.max(limit, 1)));
    meter.setAttribute('aria-valuenow', String(Math.min(sold, Math.max(limit, 1))));
    meter.setAttribute('aria-valuetext', text);
    setText($('meter-text'), text);
  }

  /** @param {State} state */
  #buyers(state) {
    const field = this.#field;
    const holding = holders(state);
    const same = field.dots.length === state.buyers.length
      && state.buyers.every((b, i) => field.buyers[i]?.name === b.name && field.buyers[i]?.instance === b.instance);
    if (!same) {
      field.dots = state.buyers.map(() => element('span', { class: 'dot' }));
      field.looks = [];
      field.buyers = [];
      $('fields').replaceChildren(...state.settings.instances.map((instance) => element('div', { class: 'at' },
        element('p', { class: 'hint' }, `${letter(state, instance)} · ${host(instance)}`),
        element('div', { class: 'field' }, ...field.dots.filter((_, i) => state.buyers[i].instance === instance)))));
    }
    state.buyers.forEach((buyer, i) => {
      const now = look(buyer, holding);
      if (field.looks[i] !== now) {
        field.looks[i] = now;
        field.dots[i].dataset.state = now;
      }
      if (field.buyers[i] === buyer) return;
      field.buyers[i] = buyer;
      field.dots[i].title = [
        `${buyer.name} at ${host(buyer.instance)}: ${buyer.answer?.code ?? buyer.state}`,
        buyer.answer ? `${Math.round(buyer.answer.ms)} ms` : '',
        buyer.answer?.token ? `token ${buyer.answer.token}` : '',
      ].filter(Boolean).join(', ');
    });
    const n = counts(state);
    for (const name of looks) setText(/** @type {HTMLElement} */ (document.querySelector(`[data-count=${name}]`)), String(n[name]));
    const said = looks.filter((name) => n[name] > 0).map((name) => `${n[name]} ${name}`).join(', ');
    $('fields').setAttribute('aria-label', state.buyers.length === 0 ? 'No buyers yet' : `${state.buyers.length} buyers: ${said}`);
  }

  /**
   * @param {State} state
   * @param {number} now
   */
  #drawLanes(state, now) {
    const box = $('lanes');
    const width = box.clientWidth;
    const open = state.grants.some((g) => g.to === null) || state.pauses.some((p) => p.to === null);
    const entries = entriesOf(state);
    const key = [state.sku, entries.length, state.grants.length, width, this.marked, state.t, open ? Math.floor(now / 200) : 0].join();
    if (this.#lanes === key || width === 0) return;
    this.#lanes = key;
    let shown = 0;
    if (entries.length === 0) {
      box.replaceChildren(element('p', { class: 'hint' }, 'Nothing has happened yet. The lanes of holders, lock and PostgreSQL are drawn here.'));
    } else {
      const drawn = lanes(state, { now, width, marked: this.marked, choose: (n) => this.mark(state, now, n) });
      box.replaceChildren(drawn.picture);
      shown = drawn.shown;
    }
    setText($('lanes-text'), shown < entries.length ? `${shown} of ${entries.length} happenings are drawn. Choose another in the table of events, or go back in time.` : '');
    const words = entries.slice(-400).map((e) => element('li', { value: String(e.n) }, sentence(state, e)));
    $('steps').replaceChildren(...(words.length > 0 ? words : [element('li', {}, 'Nothing has happened yet.')]));
  }

  /**
   * Marks an entry in lanes and table; a second time takes the mark away.
   * @param {State} state
   * @param {number} now
   * @param {number} n
   */
  mark(state, now, n) {
    this.marked = this.marked === n ? 0 : n;
    this.#logged = null;
    this.draw(state, now);
  }

  /** One line of cause for the newest refusal, or the one that is marked, with the SQL that has refused it. @param {State} state */
  #why(state) {
    const refusals = state.log.filter((e) => e.kind === 'refused');
    const e = refusals.find((r) => r.n === this.marked) ?? refusals.at(-1);
    $('why').hidden = !e;
    if (!e) return;
    setText($('why-text'), sentence(state, e));
    setText($('why-sql'), refusalSQL(e));
  }

  /** @param {State} state */
  #numbers(state) {
    const t = times(state);
    setText($('n-median'), milliseconds(t.median));
    setText($('n-p99'), milliseconds(t.p99));
    setText($('n-lock'), milliseconds(t.lock));
    setText($('n-rate'), Number.isNaN(t.rate) ? '–' : String(Math.round(t.rate)));
    const answers = outcomes(state.buyers);
    const key = JSON.stringify(answers);
    if (key !== this.#outcomes) {
      this.#outcomes = key;
      this.#drawOutcomes(answers);
    }
    for (const row of byInstance(state.buyers, state.settings.instances)) {
      for (const what of /** @type {const} */ (['sold', 'refused', 'failed'])) {
        const cell = document.querySelector(`[data-instance="${CSS.escape(row.instance)}"] [data-n=${what}]`);
        if (cell) setText(cell, String(row[what]));
      }
    }
  }

  /** @param {ReturnType<typeof outcomes>} answers */
  #drawOutcomes(answers) {
    const rows = answers.map((o) => element('tr', {},
      element('td', {}, element('div', { class: 'outcome' }, element('span', { 'class': 'dot', 'data-state': o.state }), element('code', {}, ...breakable(o.code)))),
      element('td', { class: 'n' }, String(o.buyers)),
      element('td', {}, o.code === 'created' ? 'One unit is held for the buyer.' : o.detail + (o.retryable ? ' May be tried again.' : ''))));
    $('outcomes').replaceChildren(...(rows.length > 0 ? rows : [element('tr', {}, element('td', { colspan: '3' }, 'None yet.'))]));
  }

  /** The table stands still while somebody reads in it. @param {State} state */
  #log(state) {
    const filter = input('log-filter').value.trim().toLowerCase();
    if ($('log-box').contains(document.activeElement) && this.#logged !== null && filter === this.#filter) return;
    if (this.#logged?.log === state.log && filter === this.#filter) return;
    this.#logged = state;
    this.#filter = filter;
    const wanted = filter ? state.log.filter((e) => `${e.buyer ?? ''} holder ${letter(state, e.instance)}`.toLowerCase().includes(filter)) : state.log;
    const rows = wanted.slice(-mostRows).reverse().map((e) => element('tr', { 'data-entry': String(e.n), 'class': `${e.kind}${e.n === this.marked ? ' marked' : ''}` },
      element('td', { class: 'n' }, e.t.toFixed(1)),
      element('td', {}, e.buyer ?? (e.instance ? `holder ${letter(state, e.instance)}` : e.server ?? '')),
      element('td', {}, e.kind === 'answer' ? sentence(state, e) : element('button', { type: 'button', class: 'plain' }, sentence(state, e)))));
    $('log').replaceChildren(...(rows.length > 0 ? rows : [element('tr', {}, element('td', { colspan: '3' }, filter ? 'None of those.' : 'None yet.'))]));
  }
}
