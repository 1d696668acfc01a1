// The swim lanes: holders, the lock service and PostgreSQL, with time to the right, or downwards where there is no room. They
// are drawn from the state alone, live and replayed alike. Between two happenings there is at least the room that they need
// to be told apart; so what takes microseconds can be seen beside a pause of seconds, and distances are no measure of time.

import { svg } from './dom.js';
import { full, host, letter, lockLane, sentence, short } from './words.js';

/** @typedef {import('./reducer.js').State} State */
/** @typedef {import('./reducer.js').Entry} Entry */
/** @typedef {import('./reducer.js').Grant} Grant */

/** @typedef {{id: string, title: string, under: string}} Lane */
/** @typedef {{now: number, width: number, marked: number, choose: (n: number) => void}} View */

/** So many happenings are drawn; older ones are in the table. */
const mostEntries = { across: 18, down: 24 };

const drawn = new Set(['began', 'write', 'refused', 'lost', 'reign', 'fault']);

/** The entries that have a place in the lanes. @param {State} state */
export function entriesOf(state) {
  return state.log.filter((e) => drawn.has(e.kind));
}

/**
 * @param {State} state
 * @returns {Lane[]}
 */
function lanesOf(state) {
  const { instances, strategy } = state.settings;
  const names = [...new Set([strategy, ...state.log.flatMap((e) => (e.kind === 'reign' && e.strategy ? [e.strategy] : []))])];
  const places = { none: '', local: 'one in each process', postgres: 'in PostgreSQL' };
  const place = places[/** @type {keyof typeof places} */ (strategy)] ?? 'the lock service';
  return [
    ...instances.map((url) => ({ id: url, title: `Holder ${letter(state, url)}`, under: host(url).replace(/^127\.0\.0\.1/, '') })),
    names.length > 1
      ? { id: 'lock', title: 'Lock', under: names.join(', ').replace(/, zookeeper$/, ' …') }
      : { id: 'lock', title: lockLane(strategy), under: place },
    { id: 'postgres', title: 'PostgreSQL', under: 'the judge' },
  ];
}

/**
 * Where each moment lies along the time axis.
 * @param {State} state
 * @param {Entry[]} entries
 * @param {Grant[]} grants
 * @param {number} now
 * @param {{entry: number, other: number, most: number}} gaps
 */
function axis(state, entries, grants, now, gaps) {
  const first = entries[0].t;
  /** @type {{t: number, entry: number}[]} */
  const points = entries.map((e) => ({ t: e.t, entry: e.n }));
  const other = (/** @type {number | null} */ t) => {
    if (t !== null && t >= first && t <= now) points.push({ t, entry: 0 });
  };
  for (const g of grants) {
    other(g.to);
    other(g.until);
  }
  for (const p of state.pauses) {
    other(p.from);
    other(p.to);
  }
  other(now);
  points.sort((a, b) => a.t - b.t || b.entry - a.entry); // a bar ends where the arrow is that ends it
  let at = 0;
  const placed = points.map((p, i) => {
    if (i > 0) {
      const least = p.entry > 0 || points[i - 1].entry > 0 ? gaps.entry : gaps.other;
      at += Math.min(gaps.most, Math.max(least, 9 * Math.log1p(p.t - points[i - 1].t)));
    }
    return { ...p, at };
  });
  const ofEntry = new Map(placed.filter((p) => p.entry > 0).map((p) => [p.entry, p.at]));
  return {
    length: at,
    entry: (/** @type {Entry} */ e) => ofEntry.get(e.n) ?? 0,
    /** @param {number} t */
    time: (t) => {
      const i = placed.findIndex((p) => p.t >= t);
      if (i < 0) return at;
      if (i === 0 || placed[i].t === t) return placed[i].at;
      const [a, b] = [placed[i - 1], placed[i]];
      return a.at + ((b.at - a.at) * (t - a.t)) / (b.t - a.t);
    },
  };
}

/**
 * Where the part of the entries begins that is shown: around the one that is marked; the newest while the race runs; and in
 * the end the last that is not everyday, or the beginning.
 * @param {State} state
 * @param {Entry[]} all
 * @param {number} count
 * @param {number} marked
 */
function windowOf(state, all, count, marked) {
  const most = all.length - count;
  const chosen = all.findIndex((e) => e.n === marked);
  if (chosen >= 0) return Math.max(0, Math.min(most, chosen - Math.floor(count / 2)));
  if (state.phase !== 'done') return most;
  const special = all.findLastIndex((e) => e.kind !== 'began' && e.kind !== 'write');
  return special < 0 ? 0 : Math.max(0, Math.min(most, special + 3 - count));
}

/**
 * The entries that are drawn, with the grants of their time, and where each moment lies along the time axis.
 * @param {State} state
 * @param {View} view
 * @param {boolean} down
 * @param {number} room  along the time axis; downwards there is always enough
 */
function fitting(state, view, down, room) {
  const all = entriesOf(state);
  const most = Math.min(all.length, down ? mostEntries.down : mostEntries.across);
  /** @param {number} count @param {{entry: number, other: number, most: number}} gaps */
  const part = (count, gaps) => {
    const from = windowOf(state, all, count, view.marked);
    const entries = all.slice(from, from + count);
    const now = from + count < all.length ? entries[count - 1].t + 1 : view.now; // what comes later is not on this picture
    const grants = state.grants.filter((g) => (g.to ?? now) >= entries[0].t && g.from <= now);
    return { entries, grants, now, line: axis(state, entries, grants, now, gaps) };
  };
  if (down) return part(most, { entry: 40, other: 12, most: 84 });
  let fit = part(most, { entry: 46, other: 12, most: 110 });
  for (let count = most; count > 0 && fit.line.length > room; count--) fit = part(count, { entry: 32, other: 12, most: 110 });
  return fit;
}

/**
 * @param {State} state  with one entry at least
 * @param {View} view
 * @returns {{picture: Element, shown: number}}
 */
export function lanes(state, view) {
  const drawing = new Drawing(state, view);
  return { picture: drawing.picture(), shown: drawing.entries.length };
}

const centred = { 'text-anchor': 'middle' };

/** A place is given along the time axis (a) and across the lanes (c), whichever way time runs. */
class Drawing {
  /**
   * @param {State} state
   * @param {View} view
   */
  constructor(state, view) {
    this.state = state;
    this.view = view;
    this.down = view.width < 620;
    this.columns = lanesOf(state);
    this.head = this.down ? 58 : 128;
    const tail = 44;
    const length = view.width - this.head - 2 * tail;
    const { entries, grants, now, line } = fitting(state, view, this.down, length);
    this.entries = entries;
    this.grants = grants;
    this.now = now;
    this.room = this.down ? (view.width - 8) / this.columns.length : 76;
    this.end = this.down ? this.head + line.length + 2 * tail : view.width;
    this.height = this.down ? this.end : this.columns.length * this.room + 40;
    /** Spreads what there is over the whole width. */
    const stretch = this.down ? 1 : Math.min(2.2, length / line.length);
    const along = (/** @type {number} */ at) => this.head + tail * 0.7 + at * stretch;
    /** @param {Entry} e */
    this.at = (e) => along(line.entry(e));
    /** Where a bar begins. @param {number} t */
    this.since = (t) => Math.max(along(0) - tail * 0.5, along(line.time(t)));
    /** Where a bar ends. @param {number | null} t  null: it goes on */
    this.until = (t) => along(line.time(Math.min(t ?? now, now)));
  }

  picture() {
    const { columns, height, view: { width } } = this;
    return svg('svg', {
      viewBox: `0 0 ${width} ${height}`, width, height, class: 'lanes', role: 'img',
      'aria-label': `Swim lanes of ${columns.map((c) => c.title).join(', ')}. The same in words: see the list of steps below.`,
    },
    svg('defs', {}, hatch()),
    ...columns.flatMap((c) => this.#rail(c)),
    ...this.grants.flatMap((g) => this.#grant(g)),
    ...this.state.pauses.flatMap((p) => this.#pause(p)),
    ...this.entries.flatMap((e) => this.#entry(e)));
  }

  /** @param {string} id */
  #lane(id) {
    return this.columns.findIndex((c) => c.id === id);
  }

  /** @param {number} lane */
  #across(lane) {
    return (this.down ? 4 : 16) + this.room * (lane + 0.5);
  }

  /** @param {number} a0 @param {number} a1 @param {number} c @param {number} thick @param {Record<string, string | number>} more */
  #bar(a0, a1, c, thick, more) {
    const long = Math.max(3, a1 - a0);
    return svg('rect', this.down
      ? { x: c - thick / 2, y: a0, width: thick, height: long, rx: 3, ...more }
      : { x: a0, y: c - thick / 2, width: long, height: thick, rx: 3, ...more });
  }

  /** @param {number} a0 @param {number} c0 @param {number} a1 @param {number} c1 @param {string} className */
  #line(a0, c0, a1, c1, className) {
    return svg('line', this.down
      ? { x1: c0, y1: a0, x2: c1, y2: a1, class: className }
      : { x1: a0, y1: c0, x2: a1, y2: c1, class: className });
  }

  /** @param {number} a @param {number} c @param {string} text @param {string} className @param {Record<string, string>} [more] */
  #label(a, c, text, className, more = {}) {
    return svg('text', { x: this.down ? c : a, y: this.down ? a : c, class: className, ...more }, text);
  }

  /** @param {Lane} lane */
  #rail({ id, title, under }) {
    const at = this.#across(this.#lane(id));
    const line = this.#line(this.head, at, this.end - 6, at, 'rail');
    if (!this.down) return [line, svg('text', { x: 4, y: at - 2, class: 'lane-title' }, title), svg('text', { x: 4, y: at + 15, class: 'lane-under' }, under)];
    const words = title.split(/ |(?<=Postgre)|(?<=Zoo)/); // a column is narrow
    return [line, svg('text', { x: at, y: 14, class: 'lane-title', ...centred }, ...words.map((word, k) => svg('tspan', { x: at, dy: k === 0 ? 0 : 14 }, word)))];
  }

  /** What its holder did, and the lock itself. @param {Grant} g */
  #grant(g) {
    const { state, down } = this;
    const i = this.#lane(g.instance);
    if (i < 0) return [];
    const from = this.since(g.from);
    const hue = `holder-${i}`;
    const parts = [this.#bar(from, Math.max(from, this.until(g.to)), this.#across(i), 18, { class: `work ${hue}` })];
    if (g.strategy === 'none') return parts;

    const ends = g.until === null ? g.to : g.to === null ? g.until : Math.min(g.to, g.until);
    const to = Math.max(from, this.until(ends));
    const lock = this.#across(this.#lane('lock'));
    // Each process has a mutex of its own: side by side, and not one behind the other.
    const shift = g.strategy === 'local' ? (i - (state.settings.instances.length - 1) / 2) * 16 : 0;
    parts.push(this.#bar(from, to, lock + shift, g.strategy === 'local' ? 12 : 18, { class: hue }));
    const name = letter(state, g.instance) + (g.token && !down ? ` ${short(g.token)}` : '');
    if (to - from > (down ? 16 : name.length * 8 + 6)) {
      parts.push(this.#label(from + (down ? 13 : 5), lock + shift + (down ? 0 : 4), name, 'on-bar', down ? centred : {}));
    }
    if (ends !== null && ends === g.until && ends < this.now && (g.to === null || g.to > ends + 1)) {
      parts.push(
        this.#line(to, lock - 14, to, lock + 14, 'ended'),
        this.#label(to + (down ? 4 : 0), lock + (down ? 17 : -18), 'ends', 'small', { 'text-anchor': down ? 'start' : 'middle' }),
      );
    }
    return parts;
  }

  /** @param {State['pauses'][number]} p */
  #pause(p) {
    const i = this.#lane(p.instance);
    if (i < 0 || (p.to ?? this.now) < this.entries[0].t) return [];
    const from = this.since(p.from);
    const to = this.until(p.to);
    const parts = [
      this.#bar(from, to, this.#across(i), 30, { class: 'pause-back' }),
      this.#bar(from, to, this.#across(i), 30, { class: 'pause', fill: 'url(#hatch)' }),
    ];
    if (to - from > 50) parts.push(this.#label((from + to) / 2, this.#across(i) + (this.down ? 0 : -20), 'paused', 'tag strong', centred));
    return parts;
  }

  /** @param {Entry} e */
  #entry(e) {
    const { down, view: { width, marked, choose } } = this;
    const parts = mark(e, this.state.grants.find((g) => g.id === e.grant));
    if (!parts) return [];
    const a = this.at(e);
    const holder = this.#across(this.#lane(e.instance));
    const group = svg('g', { class: `mark ${parts.tone}` }, svg('title', {}, sentence(this.state, e)));
    if (e.n === marked) {
      group.append(svg('rect', down
        ? { x: 2, y: a - 17, width: width - 4, height: 34, class: 'marker' }
        : { x: a - 20, y: 2, width: 40, height: this.height - 4, class: 'marker' }));
    }
    if (parts.flag) {
      group.append(this.#label(a + (down ? 4 : 0), holder + (down ? 0 : -14), parts.text, 'tag strong', centred));
    } else if (parts.arrow) {
      const [c0, c1] = parts.arrow.map((end) => (end === 'holder' ? holder : this.#across(this.#lane(end))));
      group.append(...this.#arrow(a, c0, c1, parts.crossed), ...this.#besideArrow(a, c0, c1, parts));
    } else {
      const [first, last] = [this.#across(0) - this.room / 2 + 6, this.#across(this.columns.length - 1) + this.room / 2 - 6];
      group.append(
        down ? this.#line(a, first, a, last, 'across') : this.#line(a, 18, a, last - 34, 'across'),
        this.#label(down ? a - 4 : Math.min(a, width - 40), down ? width / 2 : 12, parts.text, 'tag', centred),
      );
    }
    group.addEventListener('click', () => choose(e.n));
    return [group];
  }

  /** @param {number} a @param {number} c0 @param {number} c1 @param {boolean} [crossed] */
  #arrow(a, c0, c1, crossed) {
    const direction = Math.sign(c1 - c0) || 1;
    const tip = c1 - direction * 10;
    const at = (/** @type {number} */ along, /** @type {number} */ across) => (this.down ? `${across} ${along}` : `${along} ${across}`);
    return [
      svg('path', { d: `M ${at(a, c0 + direction * 10)} L ${at(a, tip)}`, class: 'shaft' }),
      crossed
        ? svg('path', { d: `M ${at(a - 7, tip - 7)} L ${at(a + 7, tip + 7)} M ${at(a + 7, tip - 7)} L ${at(a - 7, tip + 7)}`, class: 'cross' })
        : svg('path', { d: `M ${at(a - 5, tip - direction * 8)} L ${at(a, tip)} L ${at(a + 5, tip - direction * 8)} Z`, class: 'tip' }),
    ];
  }

  /** What stands beside an arrow. @param {number} a @param {number} c0 @param {number} c1 @param {Mark} mark */
  #besideArrow(a, c0, c1, { text, crossed, near }) {
    const back = Math.sign(c0 - c1);
    const middle = (c0 + c1) / 2;
    return text.split('\n').map((line, k, lines) => {
      if (this.down) {
        // In the middle of an arrow to PostgreSQL there can be another holder's bar, and red on its colour is not read.
        const c = crossed ? c1 + back * 30 : near ? c1 + back * 24 : middle;
        return this.#label(a - 5 - 13 * (lines.length - 1 - k), c, line, 'tag', centred);
      }
      const c = crossed ? c1 + 22 : near ? c1 + back * 22 : middle;
      return this.#label(crossed ? a : a + 6, c + 4 + 13 * k, line, 'tag', crossed ? centred : {});
    });
  }
}

/**
 * An arrow from one lane to another, a flag at its holder, or else a line through all lanes.
 * @typedef {{arrow?: [from: string, to: string], flag?: boolean, text: string, tone: string, crossed?: boolean, near?: boolean}} Mark
 */

/**
 * What an entry looks like; null: it is not drawn.
 * @param {Entry} e
 * @param {Grant | undefined} grant
 * @returns {Mark | null}
 */
function mark(e, grant) {
  const token = grant?.token ? short(grant.token) : '';
  switch (e.kind) {
    case 'began':
      if (grant?.strategy === 'none') return { arrow: ['postgres', 'holder'], text: 'reads', tone: 'read' };
      if (grant?.strategy === 'postgres') return { arrow: ['holder', 'lock'], text: 'asks', tone: 'got' };
      return { arrow: ['lock', 'holder'], text: token || 'its own', tone: 'got' };
    case 'write':
      if (e.outcome === 'out_of_stock') return { arrow: ['postgres', 'holder'], text: 'none left', tone: 'read', near: true };
      return {
        arrow: ['holder', 'postgres'], near: true, tone: 'write',
        text: `${token || 'writes'}${(e.sections ?? 1) > 1 ? ` ×${e.sections}` : ''}`,
      };
    case 'refused':
      return { arrow: ['holder', 'postgres'], text: `${full(e.presented)} ✗\nat ${full(e.current)}`, tone: 'refused', crossed: true };
    case 'lost':
      return { flag: true, text: 'lock lost', tone: 'lost' };
    case 'reign':
      return { text: `epoch ${e.epoch}`, tone: 'reign' };
    case 'fault':
      if (e.what === 'pause' || e.what === 'resume') return null;
      return { text: faultLabel(e), tone: 'fault' };
  }
  return null;
}

/** @param {Entry} e */
function faultLabel(e) {
  switch (e.what) {
    case 'flush': return 'FLUSHALL';
    case 'cut': return 'cut off';
    case 'mend': return 'mended';
    case 'kill': return 'killed';
    case 'switch': return `to ${e.server}`;
    default: return e.what ?? '';
  }
}

function hatch() {
  return svg('pattern', { id: 'hatch', width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
    svg('line', { x1: 0, y1: 0, x2: 0, y2: 8, class: 'hatch' }));
}
