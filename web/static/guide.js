// The guide leads through the stories, step by step. It promises that "step k of n" and both buttons are always there and stay
// where they are, that going back shows what was seen then and repeats nothing, and that a step which fails says why.

import { explain } from './api.js';
import { $, button, element, select, setText } from './dom.js';
import { hindrance, Stage, stories } from './stories.js';
import { underWay, verdict } from './words.js';

/** @typedef {import('./reducer.js').Event} Event */
/** @typedef {import('./stories.js').Story} Story */

/**
 * What the page knows that decides which stories can be told.
 * @typedef {{strategies: import('./words.js').Strategy[], noLab: string, demo: boolean}} Facts
 */

export class Guide {
  story = stories[0];
  /** The step that is shown, from 1; 0: the story has not begun. */
  step = 0;
  /** @type {{events: Event[], position: number}[]} */
  #seen = [];
  /** @type {Stage | null} */
  #stage = null;
  acting = false;
  /** @type {Facts} */
  facts = { strategies: [], noLab: '', demo: false };

  /**
   * @param {{run: import('./run.js').Run, player: import('./player.js').Player, fleet: import('./fleet.js').Fleet, announce: (text: string) => void, taken: () => boolean}} page
   */
  constructor(page) {
    this.page = page;
    select('story').replaceChildren(...stories.map((s, i) => element('option', { value: s.id }, `${i + 1}. ${s.title}`)));
    select('story').addEventListener('change', () => this.open(select('story').value));
    button('story-next').addEventListener('click', () => this.next());
    button('story-back').addEventListener('click', () => this.back());
    button('story-end').addEventListener('click', () => this.goTo(this.story.steps.length));
  }

  get hindrance() {
    const { strategies, noLab, demo } = this.facts;
    return hindrance(this.story, strategies, this.page.fleet.urls.length, noLab, demo);
  }

  /** @param {string} id */
  async open(id) {
    if (this.acting) return this.draw();
    await this.leave();
    this.story = stories.find((s) => s.id === id) ?? stories[0];
    this.draw();
  }

  /** Ends the story, and puts right what it has broken. */
  async leave() {
    const stage = this.#stage;
    this.#stage = null;
    this.#seen = [];
    this.step = 0;
    this.#trouble('');
    try {
      await stage?.tidy();
    } catch (cause) {
      this.#trouble(explain(cause));
    }
    this.draw();
  }

  async next() {
    if (this.acting) return;
    if (this.step === this.story.steps.length) return this.open(stories[(stories.indexOf(this.story) + 1) % stories.length].id);
    await this.#forward();
  }

  /** @param {number} step */
  async goTo(step) {
    while (!this.acting && this.step < Math.min(step, this.story.steps.length) && await this.#forward());
  }

  back() {
    if (this.acting || this.step <= 1) return;
    this.step--;
    this.#show();
  }

  async #forward() {
    if (this.hindrance) return false;
    if (this.step === 0 && this.page.taken()) {
      this.#trouble(underWay);
      return false;
    }
    if (this.step < this.#seen.length) {
      this.step++;
      this.#show();
      return true;
    }
    const { run, player, fleet } = this.page;
    const newest = this.#seen.at(-1);
    if (newest) player.load(newest.events); // the story goes on where it has stopped, whatever is shown
    const first = this.#stage === null;
    const stage = this.#stage ??= new Stage(run, fleet.urls);
    this.step++;
    this.acting = true;
    this.#trouble('');
    this.draw();
    try {
      if (first) await stage.ready();
      await this.story.steps[this.step - 1].act?.(stage);
      player.settle();
      this.#seen.push({ events: player.events, position: player.events.length });
      const { audit } = player.state;
      this.page.announce(`Step ${this.step} of ${this.story.steps.length}: ${this.story.steps[this.step - 1].title}. ${audit ? verdict(audit) : ''}`);
      return true;
    } catch (cause) {
      const why = explain(cause);
      await this.leave();
      this.#trouble(`The story broke off. ${why}`);
      this.page.announce(why);
      return false;
    } finally {
      this.acting = false;
      this.draw();
    }
  }

  #show() {
    const { events, position } = this.#seen[this.step - 1];
    this.page.player.load(events);
    this.page.player.seek(position);
    this.draw();
    this.page.announce(`Step ${this.step} of ${this.story.steps.length}: ${this.story.steps[this.step - 1].title}`);
  }

  /** @param {string} text */
  #trouble(text) {
    $('story-trouble').hidden = !text;
    setText($('story-trouble'), text);
  }

  draw() {
    const { steps } = this.story;
    const step = steps[this.step - 1];
    select('story').value = this.story.id;
    select('story').disabled = this.acting;
    setText($('step-count'), `Step ${this.step} of ${steps.length}${this.acting ? ', under way …' : ''}`);
    setText($('story-title'), step?.title ?? this.story.title);
    setText($('story-say'), step?.say ?? (this.hindrance || `${steps.length} steps. Press “Begin”, or the right arrow key.`));
    const last = this.step === steps.length;
    setText(button('story-next'), this.step === 0 ? 'Begin' : last ? 'Next story' : 'Next');
    // Not disabled while a step is under way: the focus would be lost, and with it the keyboard.
    button('story-next').setAttribute('aria-disabled', String(this.acting || Boolean(this.hindrance)));
    button('story-back').setAttribute('aria-disabled', String(this.acting || this.step <= 1));
    button('story-end').setAttribute('aria-disabled', String(this.acting || last || Boolean(this.hindrance)));
    $('guide').setAttribute('aria-busy', String(this.acting));
    if (this.step > 0) history.replaceState(null, '', `#story=${this.story.id}&step=${this.step}`); // a link to this step
  }
}
