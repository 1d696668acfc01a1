// The one reducer: what is shown is a fold of events, whether they happen now or were recorded. It promises to be pure: the
// same events give the same state, and the state that it was given is left alone. Nothing else decides what a picture shows.

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

/**
 * @typedef {object} Settings
 * @property {string} strategy
 * @property {'enforced'|'off'} fencing
 * @property {number} stock
 * @property {number} buyers
 * @property {string[]} instances   their addresses
 * @property {number} slow          ms between read and write
 * @property {number} seed          who comes when, and to which instance
 * @property {string} title
 */

/** @typedef {'waiting'|'asking'|'sold'|'refused'|'fenced'|'failed'} BuyerState */

/** @typedef {{name: string, instance: string, state: BuyerState, answer: Answer | null}} Buyer */

/** @typedef {{resource?: string, strategy?: string, epoch: string, token?: string, grant_id?: string}} GrantData */

/**
 * What a server says in an event; which fields there are depends on the kind.
 * @typedef {object} ServerData
 * @property {GrantData[]} [grants]
 * @property {string} [outcome]
 * @property {number} [term_ms]
 * @property {number} [sections]
 * @property {string} [reason]
 * @property {GrantData} [presented]
 * @property {GrantData} [current]
 * @property {string} [scope]
 * @property {string} [epoch]
 * @property {string} [strategy]
 */

/**
 * Times are ms since the race was prepared.
 * @typedef {{t: number} & (
 *     {type: 'prepare', sku: string, settings: Settings}
 *   | {type: 'start', buyers: {name: string, instance: string}[]}
 *   | {type: 'ask', buyer: number}
 *   | {type: 'answer', buyer: number, answer: Answer}
 *   | {type: 'server', instance: string, kind: string, data: ServerData}
 *   | {type: 'fault', fault: string, instance: string, server: string, did: string}
 *   | {type: 'stop'}
 *   | {type: 'count'}
 *   | {type: 'audit', row: AuditRow}
 *   | {type: 'break', trouble: string}
 * )} Event
 */

/**
 * A lock that was held, or a transaction that ran without one.
 * @typedef {object} Grant
 * @property {string} id
 * @property {string} instance
 * @property {string} strategy
 * @property {string} epoch
 * @property {string} token        empty if there is none
 * @property {number} from
 * @property {number | null} until when the lease ends if nothing more is heard of the holder; null: it has no term
 * @property {number | null} to    when it was given back
 * @property {boolean} batched     its sections share transactions
 */

/**
 * One line of the log; the lanes draw from it and the table lists it.
 * @typedef {object} Entry
 * @property {number} n
 * @property {number} t
 * @property {'began'|'write'|'refused'|'lost'|'reign'|'fault'|'answer'|'gap'} kind
 * @property {string} instance
 * @property {string} [grant]
 * @property {string} [buyer]
 * @property {Answer} [answer]
 * @property {string} [outcome]
 * @property {number} [sections]
 * @property {string} [reason]
 * @property {GrantData} [presented]
 * @property {GrantData} [current]
 * @property {string} [what]      the fault, or the kind of change of a reign
 * @property {string} [server]
 * @property {string} [did]
 * @property {string} [epoch]
 * @property {string} [strategy]
 */

/**
 * @typedef {object} State
 * @property {'idle'|'preparing'|'running'|'counting'|'done'|'broken'} phase
 * @property {boolean} stopped           the reader ended it before every buyer had asked
 * @property {string} sku
 * @property {Settings} settings
 * @property {Buyer[]} buyers
 * @property {number} t                  the newest time
 * @property {number} startedAt
 * @property {number} endedAt
 * @property {AuditRow | null} audit
 * @property {string} trouble            why the race broke off
 * @property {Grant[]} grants
 * @property {{instance: string, from: number, to: number | null}[]} pauses
 * @property {Entry[]} log
 */

/** @type {State} */
export const idle = {
  phase: 'idle', stopped: false, sku: '', buyers: [], t: 0, startedAt: 0, endedAt: 0, audit: null, trouble: '', grants: [], pauses: [], log: [],
  settings: { strategy: '', fencing: 'off', stock: 0, buyers: 0, instances: [], slow: 0, seed: 1, title: '' },
};

/**
 * @param {State} state
 * @param {Event} event
 * @returns {State}
 */
export function reduce(state, event) {
  const t = Math.max(state.t, event.t);
  switch (event.type) {
    case 'prepare':
      return { ...idle, phase: 'preparing', sku: event.sku, settings: event.settings };
    case 'start': {
      const buyers = event.buyers.map((b) => ({ ...b, state: /** @type {BuyerState} */ ('waiting'), answer: null }));
      return { ...state, t, phase: 'running', buyers: [...state.buyers, ...buyers], startedAt: event.t, endedAt: event.t };
    }
    case 'ask':
      return { ...state, t, buyers: replaced(state.buyers, event.buyer, { state: 'asking' }) };
    case 'answer': {
      const { answer } = event;
      const buyer = state.buyers[event.buyer];
      if (!buyer) return state;
      const buyers = replaced(state.buyers, event.buyer, { state: meaning(answer), answer });
      return noted({ ...state, t, buyers, endedAt: event.t }, { t: event.t, kind: 'answer', instance: buyer.instance, buyer: buyer.name, answer });
    }
    case 'server':
      return server({ ...state, t }, event);
    case 'fault':
      return fault({ ...state, t }, event);
    case 'stop':
      return state.phase === 'running' ? { ...state, t, stopped: true } : state;
    case 'count':
      return { ...state, t, phase: 'counting' };
    case 'audit':
      return { ...state, t, phase: 'done', audit: event.row };
    case 'break':
      return { ...state, t, phase: 'broken', trouble: event.trouble };
  }
}

/**
 * A refusal is the service's decision, so the buyer knows that nothing was bought. All else is a failure, also when it may
 * be tried again: retrying in silence would hide what the lock could not do.
 * @param {Answer} answer
 * @returns {BuyerState}
 */
export function meaning(answer) {
  if (answer.status === 201) return 'sold';
  if (answer.code === 'stale_fencing_token' || answer.code === 'strategy_superseded') return 'fenced';
  return answer.status === 409 ? 'refused' : 'failed';
}

/**
 * @template T
 * @param {T[]} list
 * @param {number} i
 * @param {Partial<T>} change
 */
function replaced(list, i, change) {
  const copy = list.slice();
  copy[i] = { ...list[i], ...change };
  return copy;
}

/**
 * @param {State} state
 * @param {Omit<Entry, 'n'>} entry
 * @returns {State}
 */
function noted(state, entry) {
  return { ...state, log: [...state.log, { n: state.log.length + 1, ...entry }] };
}

/**
 * @param {State} state
 * @param {Extract<Event, {type: 'server'}>} event
 * @returns {State}
 */
function server(state, { t, instance, kind, data }) {
  const resource = `item/${state.sku}`;
  const mine = (data.grants ?? []).find((g) => g.resource === resource);
  switch (kind) {
    case 'began':
      if (!mine?.grant_id) return state;
      return noted({
        ...state,
        grants: [...state.grants, {
          id: mine.grant_id, instance, strategy: mine.strategy ?? '', epoch: mine.epoch, token: mine.token ?? '',
          from: t, until: data.term_ms ? t + data.term_ms : null, to: null, batched: false,
        }],
      }, { t, kind: 'began', instance, grant: mine.grant_id });
    case 'renewed':
      return changed(state, mine, () => ({ until: t + (data.term_ms ?? 0) }));
    case 'batch':
      if (!mine?.grant_id) return state;
      return noted(changed(state, mine, () => ({ batched: true, token: mine.token ?? '' })),
        { t, kind: 'write', instance, grant: mine.grant_id, outcome: 'committed', sections: data.sections });
    case 'section': {
      if (!mine?.grant_id) return state; // it got no lock; its caller's answer says so
      const next = changed(state, mine, (g) => ({ token: mine.token ?? g.token }));
      const grant = next.grants.find((g) => g.id === mine.grant_id);
      // What the fence refused has an entry of its own, and what never came to the database has none.
      if (grant?.batched || !(data.outcome === 'committed' || data.outcome === 'out_of_stock')) return next;
      // A section is told of when its lock has been given back already; it has written before.
      const to = grant?.to ?? t;
      return noted(next, { t: Math.min(t, to), kind: 'write', instance, grant: mine.grant_id, outcome: data.outcome, sections: 1 });
    }
    case 'released':
      return changed(state, mine, (g) => ({ to: t, token: mine?.token ?? g.token }));
    case 'lost':
      if (!mine?.grant_id) return state;
      return noted(state, { t, kind: 'lost', instance, grant: mine.grant_id });
    case 'refused':
      if (data.presented?.resource !== resource) return state;
      return noted(state, {
        t, kind: 'refused', instance, grant: data.presented.grant_id, reason: data.reason, presented: data.presented, current: data.current,
      });
    case 'taken_over':
    case 'epoch_raised':
    case 'superseded':
      if (data.scope !== resource) return state;
      return noted(state, { t, kind: 'reign', instance, what: kind, epoch: data.epoch, strategy: data.strategy });
    case 'gap':
      return noted(state, { t, kind: 'gap', instance });
  }
  return state;
}

/**
 * @param {State} state
 * @param {GrantData | undefined} data
 * @param {(g: Grant) => Partial<Grant>} change
 * @returns {State}
 */
function changed(state, data, change) {
  const i = state.grants.findLastIndex((g) => g.id === data?.grant_id);
  return i < 0 ? state : { ...state, grants: replaced(state.grants, i, change(state.grants[i])) };
}

/**
 * @param {State} state
 * @param {Extract<Event, {type: 'fault'}>} event
 * @returns {State}
 */
function fault(state, { t, fault: what, instance, server: name, did }) {
  let { pauses, grants } = state;
  if (what === 'pause') pauses = [...pauses, { instance, from: t, to: null }];
  if (what === 'resume' || what === 'kill') {
    pauses = pauses.map((p) => (p.instance === instance && p.to === null ? { ...p, to: t } : p));
  }
  if (what === 'flush') { // the server keeps nothing, whatever the holder believes
    grants = grants.map((g) => (g.strategy === 'redis' && g.to === null && (g.until ?? 0) > t ? { ...g, until: t } : g));
  }
  return noted({ ...state, pauses, grants }, { t, kind: 'fault', what, instance, server: name, did });
}

/**
 * The state after the first n events.
 * @param {Event[]} events
 * @param {number} n
 * @param {State} [from]
 * @param {number} [done]  so many of them are in from already
 */
export function fold(events, n, from = idle, done = 0) {
  let state = from;
  for (let i = done; i < n; i++) state = reduce(state, events[i]);
  return state;
}
