// The logic of a race, without the page and without the network: what an answer means, how the state changes, and what is
// said about it in the end. Everything here is a pure function.

/**
 * What came back for one buyer. Status 0: no answer came.
 * @typedef {object} Answer
 * @property {number} status
 * @property {string} code        "created", the problem's code, or "no_answer"
 * @property {string} detail      the problem's own words
 * @property {boolean} retryable  the service says that the request may be sent again
 * @property {number} ms          from sending until the whole answer was there
 * @property {number} [lockMs]    how long the request waited for its lock
 * @property {string} [token]     "<epoch>.<token>"; text, because a token can be larger than a number holds exactly
 */

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
 * The database's count of one resource.
 * @typedef {object} AuditRow
 * @property {number} limit
 * @property {number} sold
 * @property {number} held
 * @property {number} oversold
 * @property {number} drift
 * @property {number} refused
 * @property {boolean} ok
 */

/** @typedef {'waiting'|'sold'|'refused'|'failed'} BuyerState */

/** @typedef {{name: string, instance: string, state: BuyerState, answer: Answer | null}} Buyer */

/**
 * @typedef {object} Race
 * @property {'idle'|'preparing'|'running'|'counting'|'done'|'broken'} phase
 * @property {boolean} stopped           the reader ended it before every buyer had asked
 * @property {string} sku
 * @property {number} stock
 * @property {Buyer[]} buyers
 * @property {number} startedAt          ms, of a clock that only moves forward
 * @property {number} endedAt
 * @property {AuditRow | null} audit
 * @property {string} trouble            why the race broke off
 */

/**
 * @typedef {{type: 'prepare', sku: string, stock: number}
 *   | {type: 'start', buyers: Buyer[], at: number}
 *   | {type: 'answer', buyer: number, answer: Answer, at: number}
 *   | {type: 'stop'}
 *   | {type: 'count'}
 *   | {type: 'audit', row: AuditRow}
 *   | {type: 'break', trouble: string}} Event
 */

/** @type {Race} */
export const idle = {
  phase: 'idle', stopped: false, sku: '', stock: 0, buyers: [], startedAt: 0, endedAt: 0, audit: null, trouble: '',
};

/**
 * @param {Race} race
 * @param {Event} event
 * @returns {Race}
 */
export function reduce(race, event) {
  switch (event.type) {
    case 'prepare':
      return { ...idle, phase: 'preparing', sku: event.sku, stock: event.stock };
    case 'start':
      return { ...race, phase: 'running', buyers: event.buyers, startedAt: event.at, endedAt: event.at };
    case 'answer': {
      const buyers = race.buyers.slice();
      buyers[event.buyer] = { ...buyers[event.buyer], state: meaning(event.answer), answer: event.answer };
      return { ...race, buyers, endedAt: event.at };
    }
    case 'stop':
      return race.phase === 'running' ? { ...race, stopped: true } : race;
    case 'count':
      return { ...race, phase: 'counting' };
    case 'audit':
      return { ...race, phase: 'done', audit: event.row };
    case 'break':
      return { ...race, phase: 'broken', trouble: event.trouble };
  }
}

/**
 * Deals buyers to instances in turn, so that every instance takes part even in a small race.
 * @param {number} count
 * @param {string[]} instances
 * @returns {Buyer[]}
 */
export function deal(count, instances) {
  return Array.from({ length: count }, (_, i) => ({
    name: `buyer-${i + 1}`, instance: instances[i % instances.length], state: 'waiting', answer: null,
  }));
}

/**
 * A refusal is the service's decision, so the buyer knows that nothing was bought. All else is a failure, also when it may
 * be tried again: retrying in silence would hide what the lock could not do.
 * @param {Answer} answer
 * @returns {BuyerState}
 */
export function meaning(answer) {
  if (answer.status === 201) return 'sold';
  return answer.status === 409 ? 'refused' : 'failed';
}

/**
 * @param {Buyer[]} buyers
 * @returns {Record<BuyerState, number>}
 */
export function counts(buyers) {
  const n = { waiting: 0, sold: 0, refused: 0, failed: 0 };
  for (const b of buyers) n[b.state]++;
  return n;
}

/**
 * The smallest value that at least the share q of all values does not exceed; NaN of none.
 * @param {number[]} values
 * @param {number} q
 */
export function quantile(values, q) {
  if (values.length === 0) return NaN;
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];
}

/**
 * Times in ms over the buyers that got an answer; no answer at all is not a fast one.
 * @param {Race} race
 */
export function times(race) {
  const answers = race.buyers.map((b) => b.answer).filter((a) => a !== null && a.status !== 0);
  const latencies = answers.map((a) => /** @type {Answer} */ (a).ms);
  const waits = answers.map((a) => /** @type {Answer} */ (a).lockMs).filter((ms) => ms !== undefined);
  const seconds = (race.endedAt - race.startedAt) / 1000;
  return {
    median: quantile(latencies, 0.5),
    p99: quantile(latencies, 0.99),
    lock: quantile(/** @type {number[]} */ (waits), 0.5),
    rate: seconds > 0 ? answers.length / seconds : NaN,
  };
}

/**
 * The answers by code, most frequent first.
 * @param {Buyer[]} buyers
 * @returns {{code: string, buyers: number, state: BuyerState, detail: string, retryable: boolean}[]}
 */
export function outcomes(buyers) {
  const byCode = new Map();
  for (const { answer } of buyers) {
    if (!answer) continue;
    const row = byCode.get(answer.code);
    if (row) row.buyers++;
    else byCode.set(answer.code, { code: answer.code, buyers: 1, state: meaning(answer), detail: answer.detail, retryable: answer.retryable });
  }
  return [...byCode.values()].sort((a, b) => b.buyers - a.buyers);
}

/**
 * @param {Buyer[]} buyers
 * @param {string[]} instances
 */
export function byInstance(buyers, instances) {
  return instances.map((instance) => ({ instance, ...counts(buyers.filter((b) => b.instance === instance)) }));
}

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
 * @param {Race} race
 * @returns {string}
 */
export function reasons(race) {
  const row = race.audit;
  if (!row) return '';
  const told = counts(race.buyers).sold;
  const given = row.sold + row.held;
  const say = [];
  if (race.stopped) say.push('The race was stopped early.');
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

/**
 * @param {number} n
 */
export function units(n) {
  return n === 1 ? '1 unit' : `${n} units`;
}

/**
 * The part of an address that a reader recognises.
 * @param {string} url
 */
export function host(url) {
  return url.replace(/^https?:\/\//, '').replace(/\/$/, '');
}
