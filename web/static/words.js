// What the page says, as pure functions of the state: the verdict and its reasons, and each event in a sentence. The pictures
// have their twin in these words, so whatever a picture shows must be said here as well.

import { counts, outcomes } from './numbers.js';

/** @typedef {import('./reducer.js').State} State */
/** @typedef {import('./reducer.js').Entry} Entry */
/** @typedef {import('./reducer.js').Buyer} Buyer */
/** @typedef {import('./reducer.js').AuditRow} AuditRow */

/**
 * One row of the strategies list.
 * @typedef {object} Strategy
 * @property {string} name
 * @property {string} [summary]
 * @property {boolean} fences     it issues fencing tokens
 * @property {boolean} available
 * @property {string} [problem]   why it is not available, and what to do
 */

/**
 * The verdict: from the database's own count, never from the answers. Held units count as sold: they are promised to
 * somebody.
 * @param {AuditRow} row
 */
export function verdict(row) {
  return `Sold ${row.sold + row.held} of ${row.limit}. Oversold ${row.oversold}.`;
}

/**
 * What lies behind the verdict.
 * @param {State} state
 * @returns {string}
 */
export function reasons(state) {
  const row = state.audit;
  if (!row) return '';
  const told = counts(state).sold;
  const given = row.sold + row.held;
  const say = [];
  if (state.stopped) say.push('The race was stopped early.');
  if (row.oversold > 0) say.push(`${units(row.oversold)} that never existed ${row.oversold === 1 ? 'was' : 'were'} promised to buyers.`);
  if (row.drift > 0) say.push(`The stock counter is wrong by ${row.drift}: requests overwrote each other's writes.`);
  if (row.ok) say.push('Counter, ledger and reservations agree.');
  if (row.refused > 0) say.push(`The fence turned away ${row.refused} stale ${row.refused === 1 ? 'write' : 'writes'}.`);
  if (told > given) say.push(`${told} buyers were told yes, but the database knows of ${given} only.`);
  if (told < given) say.push(`${units(given - told)} more than buyers were told: answers were lost on the way.`);
  return say.join(' ');
}

/**
 * What is the matter and what to do, for every instance that did not answer and every code that the reader can mend.
 * @param {Buyer[]} buyers
 * @returns {string[]}
 */
export function troubles(buyers) {
  const say = [];
  const silent = buyers.filter((b) => b.answer?.code === 'no_answer');
  for (const instance of new Set(silent.map((b) => b.instance))) {
    const n = silent.filter((b) => b.instance === instance).length;
    say.push(`${host(instance)} did not answer ${n} ${n === 1 ? 'buyer' : 'buyers'}. See that the instance runs, then start again.`);
  }
  for (const { code, detail, buyers: n } of outcomes(buyers)) {
    if (code === 'backend_unavailable' || code === 'strategy_superseded') say.push(`${n} × ${code}: ${detail}`);
  }
  return say;
}

/**
 * Whether the strategy can run with the fence, and what the reader should know of the choice.
 * @param {Strategy | undefined} strategy
 * @param {'enforced'|'off'} wanted
 * @returns {{fencing: 'enforced'|'off', forced: boolean, hint: string}}
 */
export function fencingFor(strategy, wanted) {
  if (strategy && !strategy.fences) {
    return { fencing: 'off', forced: true, hint: `The lock “${strategy.name}” issues no fencing tokens, so PostgreSQL would have nothing to check: the fence must be off.` };
  }
  return wanted === 'off'
    ? { fencing: 'off', forced: false, hint: 'PostgreSQL takes every write. Only the lock stands between the buyers.' }
    : { fencing: 'enforced', forced: false, hint: 'PostgreSQL refuses a write whose token is older than one it has seen.' };
}

/** What a strategy is, beside its name. @param {string} strategy */
export function kindOf(strategy) {
  if (strategy === 'none') return 'no lock';
  return strategy === 'local' ? 'in each process' : 'real server';
}

/** Where the lock of a strategy is. @param {string} strategy */
export function lockLane(strategy) {
  const names = {
    none: 'No lock', local: 'Mutex', postgres: 'Row lock', redis: 'Redis', redlock: 'Redlock', zookeeper: 'ZooKeeper',
  };
  return names[/** @type {keyof typeof names} */ (strategy)] ?? 'Lock service';
}

/**
 * Instances are called A, B, C in the order in which the service lists them.
 * @param {State} state
 * @param {string} instance
 */
export function letter(state, instance) {
  const i = state.settings.instances.indexOf(instance);
  return i < 0 ? '?' : String.fromCharCode(65 + i);
}

/**
 * A token with its epoch, as the service writes it.
 * @param {{epoch: string, token?: string} | undefined} grant
 */
export function full(grant) {
  return grant?.token ? `${grant.epoch}.${grant.token}` : 'no token';
}

/** So much of a long token as there is room for. @param {string} token */
export function short(token) {
  return token.length > 6 ? `…${token.slice(-4)}` : token;
}

/**
 * The call by which PostgreSQL refused, and its SQLSTATE. It is lock_row, if PostgreSQL itself is the lock, or
 * present.
 * @param {Entry} e
 */
export function refusalSQL(e) {
  const state = { stale_fencing_token: 'FP001', strategy_superseded: 'FP002', fencing_required: 'FP005' }[e.reason ?? ''] ?? '';
  const p = e.presented;
  const call = p?.strategy === 'postgres' ? `lock_row('${p.resource}', ${p.epoch}, '${p.grant_id}')`
    : `present('${p?.resource}', '${p?.strategy}', ${p?.epoch}, ${p?.token ?? 'NULL'}, '${p?.grant_id}')`;
  return `SELECT ${call}; -- ERROR ${state}, 0 rows changed`;
}

/**
 * An entry of the log in a sentence.
 * @param {State} state
 * @param {Entry} e
 * @returns {string}
 */
export function sentence(state, e) {
  const who = `Holder ${letter(state, e.instance)}`;
  const grant = state.grants.find((g) => g.id === e.grant);
  const token = grant?.token ? ` with token ${full(grant)}` : '';
  switch (e.kind) {
    case 'began':
      switch (grant?.strategy) {
        case 'none': return `${who} takes no lock, and reads the stock.`;
        case 'local': return `${who} takes the mutex of its own process, which no other process knows of.`;
        case 'postgres': return `${who} asks PostgreSQL for the row lock, which comes with the token.`;
        default: return `${who} has the lock from ${lockLane(grant?.strategy ?? '')}${token}.`;
      }
    case 'write': {
      if (e.outcome === 'out_of_stock') return `${who} finds nothing left, and writes nothing${token}.`;
      const many = (e.sections ?? 1) > 1 ? `, for ${e.sections} requests at once` : '';
      return `${who} writes${token}${many}, and PostgreSQL takes it.`;
    }
    case 'refused':
      return `PostgreSQL refuses the write of holder ${letter(state, e.instance)}: it presents ${full(e.presented)}, and the fence is at ${full(e.current)} (${e.reason}).`;
    case 'lost':
      return `${who} notices that it cannot be sure of its lock any more, and stops.`;
    case 'reign':
      return `${lockLane(e.strategy ?? '')} is in charge of the item with epoch ${e.epoch}${e.what === 'epoch_raised' ? ': its counter had gone back, so the epoch was raised' : ''}.`;
    case 'fault':
      return `The laboratory ${e.did}.`;
    case 'gap':
      return `Some events of holder ${letter(state, e.instance)} were missed.`;
    case 'answer':
      return `${e.buyer} is answered ${e.answer?.code}${e.answer?.token ? ` (token ${e.answer.token})` : ''} after ${Math.round(e.answer?.ms ?? 0)} ms.`;
  }
}

/**
 * A word of a shell, whatever is in it: what a recording says goes into lines that somebody pastes, and anybody can have made it.
 * @param {string} text
 */
export function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

export const underWay = 'A race is under way. Wait for its end, or reset it.';

/**
 * @param {number} n
 */
export function units(n) {
  return n === 1 ? '1 unit' : `${n} units`;
}

/** @param {number} ms */
export function milliseconds(ms) {
  return Number.isNaN(ms) ? '–' : `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

/**
 * The part of an address that a reader recognises.
 * @param {string} url
 */
export function host(url) {
  return url.replace(/^https?:\/\//, '').replace(/\/$/, '');
}
