// The guided stories. Each step says what is going to be seen and does it, to the real instances and, where it says so, to
// their servers. It promises that a step ends when what it tells of has happened, and fails with a reason if it does not.

import { deal } from './run.js';

/** @typedef {import('./run.js').Run} Run */
/** @typedef {import('./reducer.js').State} State */

/**
 * @typedef {object} Step
 * @property {string} title
 * @property {string} say
 * @property {(stage: Stage) => Promise<unknown>} [act]
 */

/**
 * @typedef {object} Story
 * @property {string} id
 * @property {string} title
 * @property {string[]} needs     strategies
 * @property {boolean} lab        the laboratory has to break something
 * @property {Step[]} steps
 */

/** The holders A and B of every story. */
const leastInstances = 2;

/** What a story acts on. It lasts from the first step to the last. */
export class Stage {
  /** Requests that are under way while the story goes on. @type {Promise<unknown>[]} */
  under = [];

  /**
   * @param {Run} run
   * @param {string[]} instances
   */
  constructor(run, instances) {
    this.run = run;
    this.instances = instances;
  }

  get a() { return this.instances[0]; }

  get b() { return this.instances[1]; }

  /**
   * Makes the item of a step; it is for A and B, unless more is said.
   * @param {string} title
   * @param {string} strategy
   * @param {'enforced' | 'off'} fencing
   * @param {{stock?: number, buyers?: number, instances?: string[], slow?: number}} [more]
   */
  begin(title, strategy, fencing, { stock = 1, buyers = 2, instances = this.instances.slice(0, 2), slow = 0 } = {}) {
    return this.run.prepare({ title, strategy, fencing, stock, buyers, instances, slow, seed: 1 });
  }

  /**
   * Many buyers at once.
   * @param {string} title
   * @param {string} strategy
   * @param {'enforced' | 'off'} fencing
   * @param {number} instances
   * @param {number} [slow]
   */
  async rush(title, strategy, fencing, instances, slow = 0) {
    const all = this.instances.slice(0, instances);
    await this.begin(title, strategy, fencing, { stock: 20, buyers: 90, instances: all, slow });
    await this.run.crowd(deal(90, all));
    await this.run.count();
  }

  /**
   * Two buyers at two instances want one unit at the same time; each takes its time between read and write.
   * @param {string} title
   * @param {string} strategy
   * @param {'enforced' | 'off'} fencing
   */
  async pair(title, strategy, fencing) {
    await this.begin(title, strategy, fencing);
    await Promise.all([this.run.buyer(this.a, 'Ada', 500), this.run.buyer(this.b, 'Ben', 500)]);
    await this.run.until((s) => s.grants.length >= 2 && s.grants.every((g) => g.to !== null), 'both locks are given back');
    await this.run.count();
  }

  /**
   * A takes the lock, reads, and is stopped when its next message is on the way that could change something.
   * @param {string} message
   */
  async stopA(message) {
    await this.run.fault('hold', { instance: this.a, message });
    this.under.push(this.run.buyer(this.a, 'Ada', 300));
    await this.run.fault('pause', { instance: this.a });
  }

  /** Waits for the requests that are under way. */
  async join() {
    await Promise.all(this.under);
    this.under = [];
  }

  /** A goes on, and everything that was under way comes to its end. */
  async wakeA() {
    await this.run.fault('resume', { instance: this.a });
    await this.join();
    await this.run.until((s) => s.grants.every((g) => g.to !== null), 'every lock is given back');
    await this.run.count();
  }

  /**
   * Buyers ask again, slowly enough that there are some before the order, while it is given, and after it.
   * @param {string} strategy
   */
  async goOn(strategy) {
    this.run.pace = 50;
    this.run.go();
    await this.run.switchTo(strategy);
  }

  /** Has every instance run, whatever somebody has done to it before. */
  async ready() {
    await this.run.look();
    for (const m of this.run.page.fleet.members) {
      if (m.state === 'paused') await this.run.fault('resume', { instance: m.url });
      if (m.state === 'killed') await this.run.fault('start', { instance: m.url });
    }
  }

  /** Puts right what the story may have left broken when it was broken off. */
  async tidy() {
    this.run.stopped = true;
    this.run.go();
    await this.ready();
    await Promise.allSettled(this.under);
    this.run.busy = false;
  }
}

/** @type {Story[]} */
export const stories = [
  {
    id: 'no-lock', title: 'No lock at all', needs: ['none'], lab: false,
    steps: [
      {
        title: '90 buyers, 20 units, no lock',
        say: 'Each request reads the stock, decides, and writes the new stock back. Between read and write there are 20 ms, such as a fraud check takes. Nobody waits for anybody. Then PostgreSQL counts what was really promised.',
        act: (stage) => stage.rush('No lock, 90 buyers', 'none', 'off', 3, 20),
      },
      {
        title: 'The same with two buyers and one unit',
        say: 'Slowly: both read “1 left” before either has written. Both write “0 left”, and both are told yes. The second write has overwritten the first.',
        act: (stage) => stage.pair('No lock, two buyers', 'none', 'off'),
      },
      {
        title: 'What a lock has to do',
        say: 'Reading, deciding and writing belong together: the second buyer must not read before the first has written. Next: a lock in each server’s memory.',
      },
    ],
  },
  {
    id: 'mutex', title: 'A mutex on two servers', needs: ['local'], lab: false,
    steps: [
      {
        title: 'One server',
        say: 'A mutex in the process is enough as long as there is one process. All 90 buyers ask the same instance. Between read and write there are 20 ms again.',
        act: (stage) => stage.rush('A mutex, one instance', 'local', 'off', 1, 20),
      },
      {
        title: 'Two servers',
        say: 'The same code and the same buyers, now over two instances. Each has a mutex of its own, and they know nothing of each other.',
        act: (stage) => stage.rush('A mutex, two instances', 'local', 'off', 2, 20),
      },
      {
        title: 'Two locks for one unit',
        say: 'Look at the lane of the lock: two bars side by side. A lock has to be in one place that all servers ask.',
        act: (stage) => stage.pair('A mutex, two buyers', 'local', 'off'),
      },
    ],
  },
  {
    id: 'redis', title: 'A Redis lock that works', needs: ['redis'], lab: false,
    steps: [
      {
        title: 'One lock for all servers',
        say: 'The lock is a key in Redis with a deadline, a lease. All three instances ask there. Nothing is oversold.',
        act: (stage) => stage.rush('Redis, 90 buyers', 'redis', 'enforced', 3),
      },
      {
        title: 'One after the other',
        say: 'Two buyers, one unit: the second waits until the first has given the lock back. Each lock comes with a number that only rises, a fencing token.',
        act: (stage) => stage.pair('Redis, two buyers', 'redis', 'enforced'),
      },
      {
        title: 'Is that enough?',
        say: 'It is as long as holders are quick. But a lease ends by the clock, also when its holder is still at work and does not know. The next story stops one.',
      },
    ],
  },
  {
    id: 'paused-holder', title: 'The paused holder', needs: ['redis'], lab: true,
    steps: [
      {
        title: 'Fence off: A is stopped before its write',
        say: 'One unit. A takes the lock and reads “1 left”. Its write is on the way to PostgreSQL when the process is stopped with SIGSTOP, as a long pause of a virtual machine would; the laboratory holds the write back.',
        act: async (stage) => {
          await stage.begin('Paused holder, fence off', 'redis', 'off');
          await stage.stopA('write');
        },
      },
      {
        title: 'The lease ends, and B buys',
        say: 'A stopped process renews nothing. After two seconds Redis gives the lock to B, with the next token. B reads “1 left”, too, and sells the unit.',
        act: (stage) => stage.run.buyer(stage.b, 'Ben'),
      },
      {
        title: 'A’s write arrives',
        say: 'It carries the older token, but nobody checks. PostgreSQL takes it, A wakes up and says yes: one unit is sold twice.',
        act: (stage) => stage.wakeA(),
      },
      {
        title: 'The same with the fence on',
        say: 'The same item, buyers and pause. With the fence a transaction must present its token before anything else, so this is what is on the way when A is stopped. Again the lease ends, and B buys.',
        act: async (stage) => {
          await stage.begin('Paused holder, fence on', 'redis', 'enforced');
          await stage.stopA('presentation');
          await stage.run.buyer(stage.b, 'Ben');
        },
      },
      {
        title: 'PostgreSQL refuses A',
        say: 'A presents its token, and PostgreSQL has seen B’s, which is newer. It refuses the transaction, whatever A believes. Nothing is oversold.',
        act: (stage) => stage.wakeA(),
      },
    ],
  },
  {
    id: 'forgetful-redis', title: 'The Redis node that forgot', needs: ['redis'], lab: true,
    steps: [
      {
        title: 'Fence off: A holds token 3',
        say: 'Three units. Two are sold, so Redis has counted to 2. A takes the lock with token 3, reads “1 left”, and is stopped for a moment so that we can look.',
        act: async (stage) => {
          await stage.begin('Redis forgets, fence off', 'redis', 'off', { stock: 3, buyers: 4 });
          await twoSales(stage);
          await stage.stopA('write');
        },
      },
      {
        title: 'Redis forgets everything',
        say: 'FLUSHALL: the lock of A is gone long before its time, and the counter with it. B is given the same lock with token 1, reads “1 left”, and buys.',
        act: async (stage) => {
          await stage.run.fault('flush', { server: 'redis-1' });
          await stage.run.buyer(stage.b, 'Ben');
        },
      },
      {
        title: 'Both have sold the last unit',
        say: 'A’s write arrives. Four buyers were told yes, and there were three units.',
        act: (stage) => stage.wakeA(),
      },
      {
        title: 'The same with the fence on',
        say: 'PostgreSQL remembers token 3 and refuses B’s token 1. B still has the lock, so the counter must have gone back: the epoch is raised, and B comes again with a token of epoch 2. That one is newer than everything before.',
        act: async (stage) => {
          await stage.begin('Redis forgets, fence on', 'redis', 'enforced', { stock: 3, buyers: 4 });
          await twoSales(stage);
          await stage.stopA('presentation');
          await stage.run.fault('flush', { server: 'redis-1' });
          await stage.run.buyer(stage.b, 'Ben');
        },
      },
      {
        title: 'A is of an epoch that is over',
        say: 'A presents what it was given before Redis forgot. Its epoch is not in charge any more, and it is refused. It asks for the lock again, under the new epoch, reads anew, and finds nothing left. Three units, three sold.',
        act: (stage) => stage.wakeA(),
      },
    ],
  },
  {
    id: 'dead-session', title: 'The ZooKeeper session that died', needs: ['zookeeper'], lab: true,
    steps: [
      {
        title: 'A is cut off from ZooKeeper',
        say: 'A’s lock is a node that lives as long as A’s session. A is at work when the laboratory closes its connections to ZooKeeper and lets no new one through. B waits for the lock.',
        act: async (stage) => {
          const { run } = stage;
          await stage.begin('ZooKeeper session', 'zookeeper', 'enforced');
          stage.under.push(run.buyer(stage.a, 'Ada', 4000));
          await run.until((s) => s.grants.some((g) => g.instance === stage.a), 'A has the lock');
          stage.under.push(run.buyer(stage.b, 'Ben'));
          await run.fault('cut', { instance: stage.a });
        },
      },
      {
        title: 'A stops by itself',
        say: 'A hears nothing from ZooKeeper, and its own clock tells that the session may be over soon. It gives up before it has written anything, and says so: 503 lock_lost, may be tried again.',
        act: (stage) => stage.run.until((s) => s.buyers.some((b) => b.name === 'Ada' && b.answer !== null), 'A answers'),
      },
      {
        title: 'The session dies, and B buys',
        say: 'When the session is over ZooKeeper removes the node, and B is next. This time the holder has noticed in time. The fence is for the time when it cannot.',
        act: async (stage) => {
          await stage.join();
          await stage.run.fault('mend', { instance: stage.a });
          await stage.run.count();
        },
      },
    ],
  },
  {
    id: 'switching', title: 'Switching under load', needs: ['postgres', 'redis', 'zookeeper'], lab: true,
    steps: [
      {
        title: 'A race under row locks',
        say: '150 buyers, 50 units, three instances. The item is locked by PostgreSQL’s row locks. After some of the buyers the race is held for a moment.',
        act: async (stage) => {
          const all = stage.instances.slice(0, 3);
          const { run } = stage;
          await stage.begin('Switching under load', 'postgres', 'enforced', { stock: 50, buyers: 150, instances: all });
          stage.under.push(run.crowd(deal(150, all)));
          await answered(stage, 30);
          run.pause();
        },
      },
      {
        title: 'To Redis, while buyers ask',
        say: 'The order goes to PostgreSQL, which puts Redis in charge of the item with the next epoch. Instances notice at their next write, and follow. Requests that are under way with the old lock are refused by the fence and begin again.',
        act: async (stage) => {
          await stage.goOn('redis');
          await answered(stage, 90);
          stage.run.pause();
        },
      },
      {
        title: 'To ZooKeeper, to the end',
        say: 'Once more. For a moment two kinds of lock are in use at once, and still no unit is sold twice: the epoch says which one counts.',
        act: async (stage) => {
          await stage.goOn('zookeeper');
          await stage.join();
          await stage.run.count();
        },
      },
    ],
  },
];

/** @param {Stage} stage */
async function twoSales(stage) {
  await stage.run.buyer(stage.b, 'Xia');
  await stage.run.buyer(stage.b, 'Yan');
}

/**
 * @param {Stage} stage
 * @param {number} n
 */
function answered(stage, n) {
  return stage.run.until((s) => s.buyers.filter((b) => b.answer).length >= n, `${n} buyers have their answer`);
}

/**
 * Why a story cannot be told here; empty if it can.
 * @param {Story} story
 * @param {import('./words.js').Strategy[]} strategies
 * @param {number} instances
 * @param {string} noLab
 * @param {boolean} demo
 */
export function hindrance(story, strategies, instances, noLab, demo) {
  for (const name of story.needs) {
    const s = strategies.find((known) => known.name === name);
    if (!s?.available) return `It needs the lock ${name}. ${s?.problem ?? 'The service does not know it.'}`;
  }
  if (instances < leastInstances) return `It needs ${leastInstances} instances, and the page can reach ${instances}. Run make demo.`;
  if (!demo) return 'It slows requests down, which this service does not allow. Run make demo, or start it with FENCEPOST_DEMO=on.';
  return story.lab ? noLab : '';
}
