// The player holds the events of one race and shows the state after so many of them. Live is only the case where that is all
// of them. It promises that a state which is shown is always the fold of the events before it, however one got there.

import { fold, idle, reduce } from './reducer.js';

/** @typedef {import('./reducer.js').Event} Event */
/** @typedef {import('./reducer.js').State} State */

// Nobody waits longer than this for the next event of a replay.
const longestGapMs = 1500;

export class Player {
  /** @type {Event[]} */
  events = [];
  position = 0;
  /** @type {State} */
  state = idle;
  playing = false;
  speed = 1;
  #clock = 0;
  #frame = 0;

  /** @param {() => void} changed */
  constructor(changed) {
    this.changed = changed;
  }

  /** Whether the newest event is shown, and the next one will be. */
  get live() {
    return this.position === this.events.length;
  }

  /** @param {Event} event */
  append(event) {
    const live = this.live && !this.playing;
    this.events.push(event);
    if (!live) return this.changed();
    this.state = reduce(this.state, event);
    this.position++;
    this.changed();
  }

  /** @param {Event[]} events */
  load(events) {
    this.pause();
    this.events = events;
    this.position = 0;
    this.state = idle;
    this.seek(events.length);
  }

  /**
   * Puts the events in the order in which they happened: what the servers tell arrives later than what they tell of.
   */
  settle() {
    const sorted = this.events.toSorted((a, b) => a.t - b.t);
    if (sorted.every((e, i) => e === this.events[i])) return;
    this.events = sorted;
    this.state = fold(this.events, this.position);
  }

  /** @param {number} position */
  seek(position) {
    const to = Math.max(0, Math.min(position, this.events.length));
    this.state = to >= this.position ? fold(this.events, to, this.state, this.position) : fold(this.events, to);
    this.position = to;
    this.changed();
  }

  /**
   * One event that shows, forwards or backwards.
   * @param {1 | -1} direction
   */
  step(direction) {
    this.pause();
    this.settle();
    let to = this.position + direction;
    while (to > 0 && to < this.events.length && !shows(this.events[to - 1])) to += direction;
    this.seek(to);
  }

  play() {
    this.settle();
    if (this.live) this.seek(1);
    this.playing = true;
    this.#clock = this.events[this.position - 1]?.t ?? 0;
    let last = performance.now();
    const tick = (/** @type {number} */ now) => {
      this.#clock += (now - last) * this.speed;
      last = now;
      let to = this.position;
      while (to < this.events.length && this.events[to].t <= this.#clock) to++;
      const next = this.events[to];
      if (next && next.t - this.#clock > longestGapMs) this.#clock = next.t - longestGapMs;
      if (to !== this.position) this.seek(to);
      if (to >= this.events.length) this.playing = false;
      this.changed();
      if (this.playing) this.#frame = requestAnimationFrame(tick);
    };
    this.#frame = requestAnimationFrame(tick);
    this.changed();
  }

  pause() {
    cancelAnimationFrame(this.#frame);
    this.playing = false;
    this.changed();
  }
}

/** @param {Event} event */
function shows(event) {
  return event.type !== 'ask' && !(event.type === 'server' && (event.kind === 'section' || event.kind === 'renewed'));
}
