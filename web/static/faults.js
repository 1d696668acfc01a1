// The instances with their state, and the buttons that break things. It promises that a button says what it really does, and
// one that cannot be pressed says why.

import { explain } from './api.js';
import { $, element, setText } from './dom.js';
import { host } from './words.js';

/**
 * What GET /demo answers; null if the service has no demonstration.
 * @typedef {object} Demo
 * @property {string} version
 * @property {number} lease_ttl_ms
 * @property {string} [no_lab]
 * @property {{
 *   instances: {url: string, state: import('./fleet.js').ProcessState}[],
 *   servers: {name: string, version: string, why_not?: string}[],
 *   machine: string, storage: string,
 * }} [lab]
 */

const notInDemo = 'This service runs without its demonstration, so nobody can break its servers from here. Run make demo, or start it with FENCEPOST_DEMO=on.';

/** Why there is no laboratory; empty if there is one. @param {Demo | null} demo */
export function noLab(demo) {
  if (!demo) return notInDemo;
  return demo.lab ? '' : demo.no_lab ?? 'There is no laboratory here.';
}

export class Faults {
  /** @type {Demo | null} */
  demo = null;
  #drawn = '';

  /**
   * @param {{run: import('./run.js').Run, fleet: import('./fleet.js').Fleet, announce: (text: string) => void}} page
   */
  constructor(page) {
    this.page = page;
  }

  draw() {
    const { fleet } = this.page;
    const key = JSON.stringify([this.demo, fleet.members.map((m) => [m.url, m.link, m.state])]);
    if (key === this.#drawn) return;
    this.#drawn = key;
    const why = noLab(this.demo);
    const focused = document.activeElement?.getAttribute('data-fault');
    const rows = fleet.members.flatMap((m, i) => [element('tr', { 'data-instance': m.url },
      element('td', {}, host(m.url)),
      element('td', { 'class': 'n', 'data-n': 'sold' }, '0'),
      element('td', { 'class': 'n', 'data-n': 'refused' }, '0'),
      element('td', { 'class': 'n', 'data-n': 'failed' }, '0')),
    element('tr', { class: 'under' },
      element('td', { colspan: '4' }, element('div', { class: 'presets' },
        element('span', { 'class': 'state', 'data-state-of': m.url }, `${String.fromCharCode(65 + i)} · ${m.state !== 'running' ? m.state : m.link === 'none' ? 'no events' : m.link}`),
        ...this.#instanceButtons(m, why)))),
    ]);
    $('instances').replaceChildren(...(rows.length > 0 ? rows : [element('tr', {}, element('td', { colspan: '4' }, 'None known.'))]));
    $('server-faults').replaceChildren(...this.#serverButtons(why));
    setText($('faults-text'), why || this.said);
    if (focused) /** @type {HTMLElement | null} */ (document.querySelector(`[data-fault="${CSS.escape(focused)}"]`))?.focus();
  }

  said = 'Each button says what it does to the real process, connection or server.';

  /**
   * @param {import('./fleet.js').Member} m
   * @param {string} why
   */
  #instanceButtons(m, why) {
    const target = { instance: m.url };
    if (m.state === 'paused') return [this.#button('resume', 'Resume (SIGCONT)', target, why)];
    if (m.state === 'killed') return [this.#button('start', 'Start again', target, why)];
    const noZooKeeper = this.demo?.lab?.servers.some((s) => s.name === 'zookeeper' && s.version) ? '' : 'There is no ZooKeeper here.';
    return [
      this.#button('pause', 'Pause (SIGSTOP)', target, why),
      this.#button('kill', 'Kill (SIGKILL)', target, why),
      this.#button('cut', 'Cut from ZooKeeper', target, why || noZooKeeper),
      this.#button('mend', 'Reconnect', target, why || noZooKeeper),
    ];
  }

  /** @param {string} why */
  #serverButtons(why) {
    const servers = this.demo?.lab?.servers.filter((s) => s.name !== 'postgres') ?? [];
    if (servers.length === 0) {
      return ['redis-1', 'zookeeper'].map((server) => this.#button('stop-server', `Kill ${server}`, { server }, why || 'It is not there.'));
    }
    return servers.flatMap((s) => {
      const cannot = why || s.why_not || '';
      const buttons = [
        this.#button('stop-server', `Kill ${s.name} (SIGKILL)`, { server: s.name }, cannot),
        this.#button('start-server', `Start ${s.name}`, { server: s.name }, cannot),
      ];
      if (s.name === 'redis-1') buttons.unshift(this.#button('flush', 'FLUSHALL on redis-1', { server: s.name }, cannot));
      return buttons;
    });
  }

  /**
   * @param {string} fault
   * @param {string} text
   * @param {{instance?: string, server?: string}} target
   * @param {string} why
   */
  #button(fault, text, target, why) {
    const b = element('button', { 'type': 'button', 'data-fault': `${fault} ${target.instance ?? target.server}` }, text);
    if (why) { // not disabled: the reason would be out of reach of the keyboard
      b.setAttribute('aria-disabled', 'true');
      b.setAttribute('aria-describedby', 'faults-text');
      b.title = why;
    }
    b.addEventListener('click', () => this.#do(fault, target, why));
    return b;
  }

  /**
   * @param {string} fault
   * @param {{instance?: string, server?: string}} target
   * @param {string} why
   */
  async #do(fault, target, why) {
    if (why) return this.#say(why);
    try {
      this.#say(`Done: ${await this.page.run.fault(fault, target)}.`);
    } catch (cause) {
      this.#say(explain(cause));
    }
  }

  /** @param {string} text */
  #say(text) {
    this.said = text;
    setText($('faults-text'), text);
    this.page.announce(text);
  }
}
