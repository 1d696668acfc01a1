// What can be counted in a state. Pure functions of it, used by the page, by the comparison and by tests.

/** @typedef {import('./reducer.js').State} State */
/** @typedef {import('./reducer.js').Buyer} Buyer */
/** @typedef {import('./reducer.js').BuyerState} BuyerState */

/** What a buyer looks like. @typedef {BuyerState | 'holding'} Look */

/** @type {Look[]} */
export const looks = ['waiting', 'asking', 'holding', 'sold', 'refused', 'fenced', 'failed'];

/**
 * The instances that hold the lock at this moment. Nobody outside an instance can tell whose request it holds it for.
 * @param {State} state
 */
export function holders(state) {
  return new Set(state.grants.filter((g) => g.to === null && g.strategy !== 'none').map((g) => g.instance));
}

/**
 * @param {Buyer} buyer
 * @param {Set<string>} holding
 * @returns {Look}
 */
export function look(buyer, holding) {
  return buyer.state === 'asking' && holding.has(buyer.instance) ? 'holding' : buyer.state;
}

/**
 * @param {State} state
 * @returns {Record<Look, number>}
 */
export function counts(state) {
  const n = { waiting: 0, asking: 0, holding: 0, sold: 0, refused: 0, fenced: 0, failed: 0 };
  const holding = holders(state);
  for (const b of state.buyers) n[look(b, holding)]++;
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
 * @param {State} state
 */
export function times(state) {
  const answers = state.buyers.flatMap((b) => (b.answer && b.answer.status !== 0 ? [b.answer] : []));
  const seconds = (state.endedAt - state.startedAt) / 1000;
  return {
    median: quantile(answers.map((a) => a.ms), 0.5),
    p99: quantile(answers.map((a) => a.ms), 0.99),
    lock: quantile(answers.flatMap((a) => (a.lockMs === undefined ? [] : [a.lockMs])), 0.5),
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
  for (const { answer, state } of buyers) {
    if (!answer) continue;
    const row = byCode.get(answer.code);
    if (row) row.buyers++;
    else byCode.set(answer.code, { code: answer.code, buyers: 1, state, detail: answer.detail, retryable: answer.retryable });
  }
  return [...byCode.values()].sort((a, b) => b.buyers - a.buyers);
}

/**
 * @param {Buyer[]} buyers
 * @param {string[]} instances
 */
export function byInstance(buyers, instances) {
  return instances.map((instance) => {
    const there = buyers.filter((b) => b.instance === instance);
    const n = (/** @type {BuyerState} */ state) => there.filter((b) => b.state === state).length;
    return { instance, sold: n('sold'), refused: n('refused') + n('fenced'), failed: n('failed') };
  });
}
