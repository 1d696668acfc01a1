// The swim lanes: holders, the lock service and PostgreSQL, with time to the right, or downwards where there is no room. They
// are drawn from the state alone, live and replayed alike. Between two happenings there is at least the room that they need
// to be told apart; so what takes microseconds can be seen beside a pause of seconds, and distances are no measure of time.

import { svg } from './dom.js';
import { full, host, letter, lockLane, sentence, short } from './words.js';

/** @typedef {import('./reducer.js').State} State */
/** @typedef {import('./reducer.js').Entry} Entry */
/** @typedef {import('./reducer.js').Grant} Grant */

/** @typedef {{id: string, title: string, under: string}} Lane */

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
  if (entries.length === 0) return { length: 0, entry: () => 0, time: () => 0 };
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
 * @param {State} state
 * @param {{now: number, width: number, marked: number, choose: (n: number) => void}} view
 * @returns {{picture: Element, shown: number}}
 */
export function lanes(state, { now, width, marked, choose }) {
  const down = width < 620;
  const all = entriesOf(state);
  const columns = lanesOf(state);
  const head = down ? 58 : 128;
  const tail = 44;
  let count = Math.min(all.length, down ? mostEntries.down : mostEntries.across);
  const gaps = down ? { entry: 40, other: 12, most: 84 } : { entry: 46, other: 12, most: 110 };
  /** @type {Entry[]} */
  let entries = [];
  /** @type {Grant[]} */
  let grants = [];
  let line = { length: 0, entry: (/** @type {Entry} */ _e) => 0, time: (/** @type {number} */ _t) => 0 };
  for (let narrower = true; count > 0;) { // as many as fit
    const from = windowOf(state, all, count, marked);
    entries = all.slice(from, from + count);
    if (from + count < all.length) now = entries[count - 1].t + 1; // what comes later is not on this picture
    const first = entries[0].t;
    grants = state.grants.filter((g) => (g.to ?? now) >= first && g.from <= now);
    line = axis(state, entries, grants, now, gaps);
    if (down || line.length <= width - head - 2 * tail) break;
    if (narrower) gaps.entry = 32;
    else count--;
    narrower = false;
  }
  const room = down ? (width - 8) / columns.length : 76;
  const end = down ? head + line.length + 2 * tail : width;
  const size = down ? { width, height: end } : { width, height: columns.length * room + 40 };
  /** Spreads what there is over the whole width. */
  const stretch = down || line.length === 0 ? 1 : Math.min(2.2, (width - head - 2 * tail) / line.length);
  const along = (/** @type {number} */ at) => head + tail * 0.7 + at * stretch;
  const across = (/** @type {number} */ lane) => (down ? 4 : 16) + room * (lane + 0.5);
  const lane = (/** @type {string} */ id) => columns.findIndex((c) => c.id === id);
  const lock = lane('lock');
  const judge = lane('postgres');

  const root = svg('svg', {
    viewBox: `0 0 ${size.width} ${size.height}`, width: size.width, height: size.height, class: 'lanes', role: 'img',
    'aria-label': `Swim lanes of ${columns.map((c) => c.title).join(', ')}. The same in words: see the list of steps below.`,
  });
  root.append(svg('defs', {}, hatch()));

  /** @param {number} a0 @param {number} a1 @param {number} c @param {number} thick @param {Record<string, string | number>} more */
  const bar = (a0, a1, c, thick, more) => {
    const long = Math.max(3, a1 - a0);
    return svg('rect', down
      ? { x: c - thick / 2, y: a0, width: thick, height: long, rx: 3, ...more }
      : { x: a0, y: c - thick / 2, width: long, height: thick, rx: 3, ...more });
  };
  /** @param {number} a @param {number} c @param {string} text @param {string} className @param {Record<string, string | number>} [more] */
  const label = (a, c, text, className, more = {}) => svg('text', { x: down ? c : a, y: down ? a : c, class: className, ...more }, text);

  columns.forEach((c, i) => {
    const at = across(i);
    root.append(down
      ? svg('line', { x1: at, y1: head, x2: at, y2: end - 6, class: 'rail' })
      : svg('line', { x1: head, y1: at, x2: width - 6, y2: at, class: 'rail' }));
    if (down) {
      const words = c.title.split(/ |(?<=Postgre)|(?<=Zoo)/); // a column is narrow
      const title = svg('text', { x: at, y: 14, class: 'lane-title', 'text-anchor': 'middle' });
      words.forEach((word, k) => title.append(svg('tspan', { x: at, dy: k === 0 ? 0 : 14 }, word)));
      root.append(title);
    } else {
      root.append(
        svg('text', { x: 4, y: at - 2, class: 'lane-title' }, c.title),
        svg('text', { x: 4, y: at + 15, class: 'lane-under' }, c.under),
      );
    }
  });
  if (entries.length === 0) return { picture: root, shown: 0 };

  const shown = along(0);
  const until = (/** @type {number | null} */ t) => along(line.time(Math.min(t ?? now, now)));
  const since = (/** @type {number} */ t) => Math.max(shown - tail * 0.5, along(line.time(t)));

  for (const g of grants) {
    const i = lane(g.instance);
    if (i < 0) continue;
    const from = since(g.from);
    const hue = `holder-${i}`;
    root.append(bar(from, Math.max(from, until(g.to)), across(i), 18, { class: `work ${hue}` }));
    if (g.strategy !== 'none') {
      const ends = g.until === null ? g.to : g.to === null ? g.until : Math.min(g.to, g.until);
      // Each process has a mutex of its own: side by side, and not one behind the other.
      const shift = g.strategy === 'local' ? (i - (state.settings.instances.length - 1) / 2) * 16 : 0;
      const to = Math.max(from, until(ends));
      root.append(bar(from, to, across(lock) + shift, g.strategy === 'local' ? 12 : 18, { class: hue }));
      const name = letter(state, g.instance) + (g.token && !down ? ` ${short(g.token)}` : '');
      if (to - from > (down ? 16 : name.length * 8 + 6)) {
        root.append(label(from + (down ? 13 : 5), across(lock) + shift + (down ? 0 : 4), name, 'on-bar', down ? { 'text-anchor': 'middle' } : {}));
      }
      if (ends !== null && g.until !== null && ends === g.until && g.until < now && (g.to === null || g.to > g.until + 1)) {
        root.append(svg('line', down
          ? { x1: across(lock) - 14, y1: to, x2: across(lock) + 14, y2: to, class: 'ended' }
          : { x1: to, y1: across(lock) - 14, x2: to, y2: across(lock) + 14, class: 'ended' }));
        root.append(label(to + (down ? 4 : 0), across(lock) + (down ? 17 : -18), 'ends', 'small', { 'text-anchor': down ? 'start' : 'middle' }));
      }
    }
  }
  for (const p of state.pauses) {
    const i = lane(p.instance);
    if (i < 0 || (p.to ?? now) < entries[0].t) continue;
    const from = since(p.from);
    const to = until(p.to);
    root.append(
      bar(from, to, across(i), 30, { class: 'pause-back' }),
      bar(from, to, across(i), 30, { class: 'pause', fill: 'url(#hatch)' }),
    );
    if (to - from > 50) root.append(label((from + to) / 2, across(i) + (down ? 0 : -20), 'paused', 'tag strong', { 'text-anchor': 'middle' }));
  }

  for (const e of entries) {
    const a = along(line.entry(e));
    const i = lane(e.instance);
    const grant = state.grants.find((g) => g.id === e.grant);
    const parts = mark(e, grant);
    if (!parts) continue;
    const group = svg('g', { class: `mark ${parts.tone}` }, svg('title', {}, sentence(state, e)));
    const [c0, c1] = parts.to === null
      ? [across(0) - room / 2 + 6, across(columns.length - 1) + room / 2 - 6]
      : [across(parts.from === 'holder' ? i : lane(parts.from)), across(parts.to === 'holder' ? i : lane(parts.to))];
    if (e.n === marked) {
      group.append(svg('rect', down
        ? { x: 2, y: a - 17, width: width - 4, height: 34, class: 'marker' }
        : { x: a - 20, y: 2, width: 40, height: size.height - 4, class: 'marker' }));
    }
    if (parts.flag) {
      group.append(label(a + (down ? 4 : 0), across(i) + (down ? 0 : -14), parts.text, 'tag strong', { 'text-anchor': 'middle' }));
    } else if (parts.to === null) {
      group.append(svg('line', down
        ? { x1: c0, y1: a, x2: c1, y2: a, class: 'across' }
        : { x1: a, y1: 18, x2: a, y2: c1 - 34, class: 'across' }));
      group.append(down
        ? svg('text', { x: width / 2, y: a - 4, class: 'tag', 'text-anchor': 'middle' }, parts.text)
        : svg('text', { x: Math.min(a, width - 40), y: 12, class: 'tag', 'text-anchor': 'middle' }, parts.text));
    } else {
      group.append(...arrow(a, c0, c1, parts.crossed, down));
      const middle = parts.near ? c1 + Math.sign(c0 - c1) * 22 : (c0 + c1) / 2;
      parts.text.split('\n').forEach((text, k, lines) => {
        const over = down ? -5 - 13 * (lines.length - 1 - k) : 0;
        group.append(down
          // In the middle of an arrow to PostgreSQL there can be another holder's bar, and red on its colour is not read.
          ? label(a + over, parts.crossed ? c1 + Math.sign(c0 - c1) * 30 : parts.near ? c1 + Math.sign(c0 - c1) * 24 : (c0 + c1) / 2, text, 'tag', { 'text-anchor': 'middle' })
          : label(a + 6, (parts.crossed ? across(judge) + 22 : middle) + 4 + 13 * k, text, 'tag', parts.crossed ? { 'text-anchor': 'middle', x: a } : {}));
      });
    }
    group.addEventListener('click', () => choose(e.n));
    root.append(group);
  }
  return { picture: root, shown: entries.length };
}

/**
 * What an entry looks like: an arrow from one lane to another, a line through all of them, or a flag at its holder.
 * @param {Entry} e
 * @param {Grant | undefined} grant
 * @returns {{from: string, to: string | null, text: string, tone: string, crossed?: boolean, flag?: boolean, near?: boolean} | null}
 */
function mark(e, grant) {
  const token = grant?.token ? short(grant.token) : '';
  switch (e.kind) {
    case 'began':
      if (grant?.strategy === 'none') return { from: 'postgres', to: 'holder', text: 'reads', tone: 'read' };
      if (grant?.strategy === 'postgres') return { from: 'holder', to: 'lock', text: 'asks', tone: 'got' };
      return { from: 'lock', to: 'holder', text: token || 'its own', tone: 'got' };
    case 'write':
      if (e.outcome === 'out_of_stock') return { from: 'postgres', to: 'holder', text: 'none left', tone: 'read', near: true };
      return {
        from: 'holder', to: 'postgres', near: true, tone: 'write',
        text: `${token || 'writes'}${(e.sections ?? 1) > 1 ? ` ×${e.sections}` : ''}`,
      };
    case 'refused':
      return { from: 'holder', to: 'postgres', text: `${full(e.presented)} ✗\nat ${full(e.current)}`, tone: 'refused', crossed: true };
    case 'lost':
      return { from: 'holder', to: 'holder', text: 'lock lost', tone: 'lost', flag: true };
    case 'reign':
      return { from: 'holder', to: null, text: `epoch ${e.epoch}`, tone: 'reign' };
    case 'fault':
      if (e.what === 'pause' || e.what === 'resume') return null;
      return { from: 'holder', to: null, text: faultLabel(e), tone: 'fault' };
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

/**
 * @param {number} a
 * @param {number} c0
 * @param {number} c1
 * @param {boolean | undefined} crossed
 * @param {boolean} down
 */
function arrow(a, c0, c1, crossed, down) {
  const direction = Math.sign(c1 - c0) || 1;
  const tip = c1 - direction * 10;
  const at = (/** @type {number} */ along, /** @type {number} */ across) => (down ? `${across} ${along}` : `${along} ${across}`);
  const start = c0 + direction * 10;
  return [
    svg('path', { d: `M ${at(a, start)} L ${at(a, tip)}`, class: 'shaft' }),
    crossed
      ? svg('path', { d: `M ${at(a - 7, tip - 7)} L ${at(a + 7, tip + 7)} M ${at(a + 7, tip - 7)} L ${at(a - 7, tip + 7)}`, class: 'cross' })
      : svg('path', { d: `M ${at(a - 5, tip - direction * 8)} L ${at(a, tip)} L ${at(a + 5, tip - direction * 8)} Z`, class: 'tip' }),
  ];
}

function hatch() {
  return svg('pattern', { id: 'hatch', width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
    svg('line', { x1: 0, y1: 0, x2: 0, y2: 8, class: 'hatch' }));
}
