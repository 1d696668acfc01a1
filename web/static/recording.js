// A recording is the events of a race, as a file or in a link. It promises that what is read back is checked: a recording can
// come from anybody, and one that is damaged or was made up is refused with a reason.

/** @typedef {import('./reducer.js').Event} Event */

/** Links longer than this are cut by some programs. */
export const longestLink = 30_000;

const mostEvents = 20_000;

/** @type {Record<string, Record<string, string>>} */
const shapes = {
  prepare: { sku: 'string', settings: 'object' },
  start: { buyers: 'array' },
  ask: { buyer: 'number' },
  answer: { buyer: 'number', answer: 'object' },
  server: { instance: 'string', kind: 'string', data: 'object' },
  fault: { fault: 'string', instance: 'string', server: 'string', did: 'string' },
  stop: {}, count: {},
  audit: { row: 'object' },
  break: { trouble: 'string' },
};

/** @param {Event[]} events */
export function toText(events) {
  return JSON.stringify({ fencepost: 1, events });
}

/**
 * @param {string} text
 * @returns {Event[]}
 */
export function fromText(text) {
  let recording;
  try {
    recording = JSON.parse(text);
  } catch {
    throw new Error('This is no recording: it is not JSON.');
  }
  if (recording?.fencepost !== 1 || !Array.isArray(recording.events)) throw new Error('This is no recording of a race.');
  const { events } = recording;
  if (events.length > mostEvents) throw new Error(`This recording is too long: ${events.length} events, and ${mostEvents} is the most.`);
  events.forEach((/** @type {any} */ event, /** @type {number} */ i) => {
    const shape = typeof event === 'object' && event !== null && Object.hasOwn(shapes, event.type) ? shapes[event.type] : undefined;
    if (!shape || !Number.isFinite(event.t)) throw new Error(`Event ${i + 1} of this recording is not one of a race.`);
    for (const [field, type] of Object.entries(shape)) {
      const value = event[field];
      const is = Array.isArray(value) ? 'array' : value === null ? 'null' : typeof value;
      if (is !== type) throw new Error(`Event ${i + 1} of this recording (${event.type}) has no proper ${field}.`);
    }
  });
  if (events[0]?.type !== 'prepare' || !Array.isArray(events[0].settings.instances)) throw new Error('This recording has no beginning.');
  return events;
}

/**
 * The recording, packed so that it fits behind the # of an address. It is never sent to a server.
 * @param {Event[]} events
 */
export async function pack(events) {
  const stream = new Blob([toText(events)]).stream().pipeThrough(new CompressionStream('deflate-raw'));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let binary = '';
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

/** @param {string} packed */
export async function unpack(packed) {
  try {
    const binary = atob(packed.replaceAll('-', '+').replaceAll('_', '/'));
    const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate-raw'));
    return fromText(await new Response(stream).text());
  } catch (cause) {
    throw new Error(`The link holds no recording that can be read. It may have been cut off. ${cause instanceof Error ? cause.message : ''}`);
  }
}
