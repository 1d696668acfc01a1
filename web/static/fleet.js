// The instances as the page knows them, each with its stream of events. The streams are read with fetch and not with
// EventSource, which cannot send a key. It promises that a stream which breaks is taken up again behind the last event that
// was read, that its state is known at every moment, and that a restarted server is found again without anybody's doing.

/** @typedef {import('./reducer.js').ServerData} ServerData */

/**
 * @typedef {'connecting' | 'live' | 'gone' | 'none'} Link   none: this service has no stream for us
 * @typedef {'running' | 'paused' | 'killed'} ProcessState
 * @typedef {{url: string, link: Link, last: string, state: ProcessState}} Member
 */

// The service sends a sign of life every 15 seconds.
const silenceMs = 40_000;
const shortestPauseMs = 300;
const longestPauseMs = 2000;

export class Fleet {
  /** @type {Member[]} */
  members = [];
  /** @type {AbortController | null} */
  #streams = null;

  /**
   * @param {{event: (instance: string, kind: string, data: ServerData) => void, change: () => void}} told
   */
  constructor(told) {
    this.told = told;
  }

  /**
   * Follows these instances from now on. Those that were followed before go on behind their last event.
   * @param {string[]} urls
   * @param {string} key
   */
  follow(urls, key) {
    this.rest();
    this.members = urls.map((url) => this.members.find((m) => m.url === url) ?? { url, link: 'connecting', last: '', state: 'running' });
    const streams = new AbortController();
    this.#streams = streams;
    for (const m of this.members) this.#follow(m, key, streams.signal);
  }

  /** Closes the streams: browsers allow six connections to a server, over all tabs. */
  rest() {
    this.#streams?.abort();
    this.#streams = null;
  }

  get urls() {
    return this.members.map((m) => m.url);
  }

  /** An instance that can be asked now; that of the page if it is among them. */
  get base() {
    const fit = this.members.filter((m) => m.link !== 'gone' && m.state === 'running');
    return (fit.find((m) => m.url === location.origin) ?? fit[0])?.url ?? location.origin;
  }

  /**
   * What the laboratory says of the instances.
   * @param {{url: string, state: ProcessState}[]} states
   */
  learn(states) {
    for (const s of states) {
      const m = this.members.find((member) => member.url === s.url);
      if (m) m.state = s.state;
    }
    this.told.change();
  }

  /**
   * @param {Member} m
   * @param {string} key
   * @param {AbortSignal} over
   */
  async #follow(m, key, over) {
    for (let pause = shortestPauseMs; !over.aborted; pause = Math.min(2 * pause, longestPauseMs)) {
      const silent = new AbortController();
      let timer = setTimeout(() => silent.abort(), silenceMs);
      try {
        const headers = new Headers({ Accept: 'text/event-stream' });
        if (key) headers.set('Authorization', `Bearer ${key}`);
        if (m.last) headers.set('Last-Event-ID', m.last);
        const response = await fetch(`${m.url}/v1/events`, {
          headers, cache: 'no-store', credentials: 'omit', signal: AbortSignal.any([over, silent.signal]),
        });
        const later = response.status === 408 || response.status === 429; // there are too many readers, or requests, just now
        if (response.status >= 400 && response.status < 500 && !later) return this.#now(m, 'none');
        if (!response.ok || !response.body) throw new Error(`status ${response.status}`);
        this.#now(m, 'live');
        pause = shortestPauseMs;
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let rest = '';
        for (let part = await reader.read(); !part.done; part = await reader.read()) {
          clearTimeout(timer);
          timer = setTimeout(() => silent.abort(), silenceMs);
          rest = this.#read(m, rest + part.value);
        }
      } catch {
        // gone, or silent for too long: tried again below
      }
      clearTimeout(timer);
      if (over.aborted) return;
      this.#now(m, 'gone');
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  /**
   * Reads the whole events in the text, and returns what is left of it.
   * @param {Member} m
   * @param {string} text
   */
  #read(m, text) {
    const blocks = text.split('\n\n');
    const rest = blocks.pop() ?? '';
    for (const block of blocks) {
      let kind = '';
      let data = '';
      for (const line of block.split('\n')) {
        if (line.startsWith('id: ')) m.last = line.slice(4);
        if (line.startsWith('event: ')) kind = line.slice(7);
        if (line.startsWith('data: ')) data = line.slice(6);
      }
      if (kind) this.told.event(m.url, kind, JSON.parse(data));
    }
    return rest;
  }

  /**
   * @param {Member} m
   * @param {Link} link
   */
  #now(m, link) {
    if (m.link === link) return;
    m.link = link;
    this.told.change();
  }
}
