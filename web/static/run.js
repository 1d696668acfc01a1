// One race against the real instances, from the new item to the database's count. It promises that every buyer asks at most
// once, that nothing is repeated in silence, and that all that happens is told as events; it shows nothing itself.

import { explain, must, send, Trouble } from './api.js';

/** @typedef {import('./reducer.js').Event} Event */
/** @typedef {import('./reducer.js').Settings} Settings */
/** @typedef {import('./reducer.js').Answer} Answer */
/** @typedef {import('./reducer.js').ServerData} ServerData */
/** @typedef {import('./reducer.js').State} State */

// A browser opens at most six connections to one server (HTTP/1.1), of which the stream of events takes one. More requests
// would wait inside the browser, and their wait would be taken for the service's.
const perInstance = 5;

/** A clock that differs by more is another machine's. */
const mostSkewMs = 5000;

/** Nothing that a story waits for takes longer, unless something is broken. */
const patienceMs = 15_000;

export class Run {
  sku = '';
  /** @type {Settings | null} */
  settings = null;
  /** So many may ask in a second; 0: as fast as they are answered. */
  pace = 0;
  paused = false;
  stopped = false;
  busy = false;
  #began = 0;
  #skew = 0;
  #buyers = 0;
  #next = 0;
  #steps = 0;
  /** @type {(() => void)[]} */
  #waiting = [];
  /** @type {{test: () => boolean, done: () => void}[]} */
  #watches = [];

  /**
   * @param {{fleet: import('./fleet.js').Fleet, player: import('./player.js').Player, key: () => string}} page
   */
  constructor(page) {
    this.page = page;
  }

  /** ms since the race was prepared */
  get now() {
    return performance.now() - this.#began;
  }

  /** @param {any} event  without its time, if it is now */
  tell(event) {
    this.page.player.append({ t: this.now, ...event });
    this.#watches = this.#watches.filter(({ test, done }) => {
      if (!test()) return true;
      done();
      return false;
    });
  }

  /**
   * Returns when the state, with all that was told, passes the test.
   * @param {(state: State) => boolean} test
   * @param {string} what
   */
  until(test, what) {
    const passes = () => test(this.page.player.state);
    if (passes()) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#watches = this.#watches.filter((w) => w.done !== done);
        reject(new Trouble(`This was waited for in vain: ${what}. See that all instances run, then go back and forward again.`));
      }, patienceMs);
      const done = () => { clearTimeout(timer); resolve(undefined); };
      this.#watches.push({ test: passes, done });
    });
  }

  /**
   * An event of an instance. Those of other items are not of this race.
   * @param {string} instance
   * @param {string} kind
   * @param {ServerData & {at?: string}} data
   */
  server(instance, kind, data) {
    const resource = `item/${this.sku}`;
    const mine = kind === 'gap' || data.scope === resource || data.presented?.resource === resource
      || (data.grants ?? []).some((g) => g.resource === resource);
    if (!this.sku || !mine) return;
    const { at, ...rest } = data;
    this.tell({ type: 'server', t: at ? this.#when(at) : this.now, instance, kind, data: rest });
  }

  /** @param {string} at  RFC 3339; the digits behind the milliseconds decide what came first */
  #when(at) {
    const fraction = /\.(\d+)/.exec(at)?.[0] ?? '.0';
    const whole = Date.parse(at.replace(fraction, ''));
    let t = whole + Number(fraction) * 1000 - performance.timeOrigin - this.#began;
    if (this.#skew === 0 && Math.abs(t - this.now) > mostSkewMs) this.#skew = this.now - t;
    t += this.#skew;
    return Math.max(0, t);
  }

  /**
   * Makes the item. What was shown before is gone.
   * @param {Settings} settings
   */
  async prepare(settings) {
    this.busy = true;
    this.stopped = this.paused = false;
    this.pace = 0;
    this.settings = settings;
    this.#began = performance.now();
    this.#skew = this.#buyers = this.#next = this.#steps = 0;
    this.sku = `race-${settings.seed}-${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 6)}`;
    this.page.player.load([]);
    this.tell({ type: 'prepare', t: 0, sku: this.sku, settings });
    const lock = { strategy: settings.strategy, fencing: settings.fencing };
    await must('POST', `${this.page.fleet.base}/v1/items`, this.page.key(), { sku: this.sku, name: 'Prize of the race', stock: settings.stock, lock });
  }

  /**
   * A race from beginning to end.
   * @param {Settings} settings
   * @param {number} [pace]
   */
  async race(settings, pace = 0) {
    try {
      await this.prepare(settings);
      this.pace = pace;
      await this.crowd(deal(settings.buyers, settings.instances));
      await this.count();
    } catch (cause) {
      this.fail(cause);
    }
  }

  /**
   * Buyers who ask, a few at a time at each instance, in an order that the seed gives.
   * @param {{name: string, instance: string}[]} buyers
   */
  async crowd(buyers) {
    const first = this.#buyers;
    this.#buyers += buyers.length;
    this.tell({ type: 'start', buyers });
    const random = seeded(this.settings?.seed ?? 1);
    const serve = async (/** @type {string} */ instance) => {
      const queue = shuffled([...buyers.keys()].filter((i) => buyers[i].instance === instance), random);
      const clerk = async () => {
        for (;;) {
          if (queue.length === 0 || !(await this.#turn())) return;
          const i = queue.shift();
          if (i === undefined) return;
          await this.#ask(first + i, buyers[i].instance, buyers[i].name, this.settings?.slow ?? 0);
        }
      };
      await Promise.all(Array.from({ length: perInstance }, clerk));
    };
    await Promise.all([...new Set(buyers.map((b) => b.instance))].map(serve));
  }

  /**
   * One buyer more, whom the others do not wait for.
   * @param {string} instance
   * @param {string} name
   * @param {number} [slow]
   */
  async buyer(instance, name, slow = 0) {
    const i = this.#buyers++;
    this.tell({ type: 'start', buyers: [{ name, instance }] });
    return this.#ask(i, instance, name, slow);
  }

  /**
   * @param {number} i
   * @param {string} instance
   * @param {string} name
   * @param {number} slow
   */
  async #ask(i, instance, name, slow) {
    this.tell({ type: 'ask', buyer: i });
    const { sku } = this;
    const path = slow > 0 ? `/demo/items/${sku}/reservations` : `/v1/items/${sku}/reservations`;
    const body = slow > 0 ? { quantity: 1, customer_id: name, slow_ms: slow } : { quantity: 1, customer_id: name };
    const { answer } = await send('POST', instance + path, this.page.key(), body);
    if (sku === this.sku) this.tell({ type: 'answer', buyer: i, answer });
    return answer;
  }

  /** Waits until one more may ask; false: nobody may any more. */
  async #turn() {
    while (this.paused && !this.stopped && this.#steps === 0) await new Promise((resolve) => this.#waiting.push(() => resolve(undefined)));
    if (this.stopped) return false;
    if (this.#steps > 0) this.#steps--;
    if (this.pace > 0) {
      const at = Math.max(this.#next, performance.now());
      this.#next = at + 1000 / this.pace;
      await new Promise((resolve) => setTimeout(resolve, at - performance.now()));
    }
    return !this.stopped;
  }

  #wake() {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }

  pause() { this.paused = true; }

  go() {
    this.paused = false;
    this.#wake();
  }

  /** Lets one buyer ask. */
  step() {
    this.#steps++;
    this.#wake();
  }

  /** A request on its way is waited for, because its outcome would be unknown otherwise. */
  stop() {
    this.stopped = true;
    this.tell({ type: 'stop' });
    this.#wake();
  }

  /** The database's own count, and the end of the race. */
  async count() {
    this.tell({ type: 'count' });
    const path = `/v1/audit?resource=${encodeURIComponent(`item/${this.sku}`)}`;
    const audit = await must('GET', this.page.fleet.base + path, this.page.key());
    if (audit.resources?.length !== 1) throw new Trouble('The audit does not know the item of this race.');
    this.busy = false;
    this.tell({ type: 'audit', row: audit.resources[0] });
  }

  /** @param {unknown} cause */
  fail(cause) {
    this.busy = false;
    this.tell({ type: 'break', trouble: explain(cause) });
  }

  /**
   * Has the laboratory do something to an instance or a server, and tells what it did.
   * @param {string} fault
   * @param {{instance?: string, server?: string, message?: string}} target
   */
  async fault(fault, { instance = '', server = '', message = '' }) {
    const { fleet } = this.page;
    const number = instance ? fleet.urls.indexOf(instance) + 1 : 0;
    const body = { instance: number, server, resource: message ? `item/${this.sku}` : '', message };
    // Not by way of the one that it is done to: it may be unable to answer.
    const way = fleet.members.find((m) => m.url !== instance && m.link !== 'gone' && m.state === 'running')?.url ?? fleet.base;
    const done = await must('POST', `${way}/demo/lab/${fault}`, this.page.key(), body);
    const state = /** @type {Record<string, import('./fleet.js').ProcessState>} */ ({ pause: 'paused', resume: 'running', kill: 'killed', start: 'running' })[fault];
    if (state) fleet.learn([{ url: instance, state }]);
    if (fault !== 'hold' && this.settings) this.tell({ type: 'fault', t: this.#when(done.at), fault, instance, server, did: done.did });
    return String(done.did);
  }

  /** Asks the laboratory how the instances are: somebody else may have paused one, or ended a pause. */
  async look() {
    const demo = await must('GET', `${this.page.fleet.base}/demo`, this.page.key());
    if (demo.lab) this.page.fleet.learn(demo.lab.instances);
  }

  /**
   * Puts another strategy in charge of the item, while it is raced for.
   * @param {string} strategy
   */
  async switchTo(strategy) {
    await must('POST', `${this.page.fleet.base}/demo/items/${this.sku}/strategy`, this.page.key(), { strategy });
    this.tell({ type: 'fault', fault: 'switch', instance: '', server: strategy, did: `ordered ${strategy} in place of the lock that was in charge` });
  }
}

/**
 * Deals buyers to instances in turn, so that every instance takes part even in a small race.
 * @param {number} count
 * @param {string[]} instances
 */
export function deal(count, instances) {
  return Array.from({ length: count }, (_, i) => ({ name: `buyer-${i + 1}`, instance: instances[i % instances.length] }));
}

/**
 * Numbers between 0 and 1, the same for the same seed (mulberry32).
 * @param {number} seed
 */
export function seeded(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/**
 * @template T
 * @param {T[]} list
 * @param {() => number} random
 */
export function shuffled(list, random) {
  const copy = list.slice();
  for (let i = copy.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [copy[i], copy[j]] = [copy[j], copy[i]];
  }
  return copy;
}
