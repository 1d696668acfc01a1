// The service's API as the page uses it. Nothing here throws away an answer: a refused request, and one that got no answer,
// come back as values.

/** @typedef {import('./reducer.js').Answer} Answer */

/** What did not succeed, in words for the reader. */
export class Trouble extends Error {
  /**
   * @param {string} message
   * @param {number} [status]  of the answer that was the trouble; 0: there was none
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * What a reader is told of a failure. What was not foreseen is for the console as well.
 * @param {unknown} cause
 */
export function explain(cause) {
  if (cause instanceof Trouble) return cause.message;
  console.error(cause);
  return `The page failed: ${cause}`;
}

// Longer than any instance waits for a lock: a request that gets no answer within it is reported, not repeated.
const patienceMs = 30_000;

/**
 * Sends one request and does not repeat it. The browser may: when a kept connection breaks before the first byte of the
 * answer, it sends even a POST again. What is sold that way is in the database's count, which is why the verdict is taken
 * from there.
 * @param {string} method
 * @param {string} url
 * @param {string} key   API key; empty: none is sent
 * @param {unknown} [body]
 * @returns {Promise<{answer: Answer, body: any}>}
 */
export async function send(method, url, key, body) {
  const headers = new Headers({ Accept: 'application/json, application/problem+json' });
  if (key) headers.set('Authorization', `Bearer ${key}`);
  if (body !== undefined) headers.set('Content-Type', 'application/json');
  const began = performance.now();
  try {
    const response = await fetch(url, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: 'no-store',
      credentials: 'omit',
      signal: AbortSignal.timeout(patienceMs),
    });
    const text = await response.text();
    const ms = performance.now() - began;
    const json = parse(text);
    return {
      body: json,
      answer: {
        status: response.status,
        code: response.ok ? 'created' : String(json?.code ?? `http_${response.status}`),
        detail: response.ok ? '' : String(json?.detail ?? response.statusText),
        retryable: json?.retryable === true,
        ms,
        lockMs: serverTiming(response.headers.get('Server-Timing'), 'lock'),
        token: response.headers.get('Fencepost-Token') ?? undefined,
      },
    };
  } catch (cause) {
    // fetch tells a refused connection, a missing CORS header and a broken answer apart for nobody but the console.
    const detail = cause instanceof DOMException && cause.name === 'TimeoutError'
      ? `no answer within ${patienceMs / 1000} s`
      : 'no connection, or it broke before the answer was complete';
    return { body: null, answer: { status: 0, code: 'no_answer', detail, retryable: false, ms: performance.now() - began } };
  }
}

/**
 * Sends a request that has to succeed for the race to go on.
 * @param {string} method
 * @param {string} url
 * @param {string} key
 * @param {unknown} [body]
 */
export async function must(method, url, key, body) {
  const { answer, body: json } = await send(method, url, key, body);
  if (answer.status >= 200 && answer.status < 300) return json;
  if (answer.status === 0) {
    throw new Trouble(`${new URL(url, location.href).host} does not answer (${answer.detail}). Start the service, then try again.`, 0);
  }
  if (answer.status === 401) throw new Trouble('The service wants an API key. Enter one under "API key", then try again.', 401);
  if (answer.status === 403) throw new Trouble('This API key may not do that. The race creates an item, which takes an admin\'s key.', 403);
  throw new Trouble(`The service answered ${answer.status} ${answer.code}: ${answer.detail}`, answer.status);
}

/** @param {string} text */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Reads one duration out of a Server-Timing header: "lock;dur=1.5, db;dur=3".
 * @param {string | null} header
 * @param {string} name
 * @returns {number | undefined}
 */
export function serverTiming(header, name) {
  for (const metric of (header ?? '').split(',')) {
    const [key, ...params] = metric.split(';').map((s) => s.trim());
    const dur = params.find((p) => p.startsWith('dur='));
    if (key === name && dur) return Number(dur.slice(4));
  }
  return undefined;
}
