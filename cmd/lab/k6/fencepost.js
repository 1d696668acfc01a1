// What the scripts share. Thresholds are on what the service itself counts when the run is over: a client cannot see an oversell.
import { fail } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter, Gauge } from 'k6/metrics';

const url = __ENV.FENCEPOST_URL || 'http://127.0.0.1:8080';
const headers = { 'Content-Type': 'application/json' };
if (__ENV.FENCEPOST_API_KEY) headers.Authorization = `Bearer ${__ENV.FENCEPOST_API_KEY}`;

const oversold = new Gauge('oversold');
const lostUpdates = new Gauge('lost_updates');
const audits = new Counter('audits');
const created = new Counter('created');
const soldOut = new Counter('sold_out');
const otherwise = new Counter('answered_otherwise'); // its tag code says how

// Being sold out is an answer, and no failure.
http.setResponseCallback(http.expectedStatuses(200, 201, 409));

// The rate rises for a fifth of the time, and a request is sent when it is due, whatever became of those before it.
export function options() {
  const rate = Number(__ENV.RATE || 500);
  const seconds = Number(__ENV.SECONDS || 10);
  return {
    scenarios: {
      rush: {
        executor: 'ramping-arrival-rate',
        startRate: 0,
        timeUnit: '1s',
        preAllocatedVUs: 256,
        stages: [
          { duration: `${seconds / 5}s`, target: rate },
          { duration: `${seconds * 4 / 5}s`, target: rate },
        ],
      },
    },
    thresholds: {
      oversold: ['value==0'],
      lost_updates: ['value==0'],
      audits: ['count==1'], // a run without a verdict must not pass
      http_req_failed: ['rate<0.01'],
    },
    summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
  };
}

// create puts something on sale under the lock that was asked for, and finds out where the instances are.
export function create(path, body) {
  const lock = {};
  if (__ENV.STRATEGY) lock.strategy = __ENV.STRATEGY;
  if (__ENV.FENCING) lock.fencing = __ENV.FENCING;
  if (Object.keys(lock).length > 0) body.lock = lock;
  const made = http.post(url + path, JSON.stringify(body), { headers });
  if (made.status !== 201) fail(`${url}${path} answers ${made.status} ${made.body || made.error}`);
  const listed = http.get(`${url}/v1/instances`, { headers, responseCallback: http.expectedStatuses(200, 404) });
  const instances = listed.status === 200 ? listed.json('instances') : [];
  return instances.length > 0 ? instances : [url];
}

// attempt sends one request to one of the instances and counts it under its code.
export function attempt(instances, path, body) {
  const n = exec.scenario.iterationInTest;
  const response = http.post(instances[n % instances.length] + path, JSON.stringify(body), {
    headers: Object.assign({ 'Idempotency-Key': `${path}/${n}` }, headers),
    tags: { name: 'attempt' },
  });
  const code = response.status === 0 ? 'no_answer' : response.status === 201 ? 'created' : response.json('code');
  switch (code) {
    case 'created': return created.add(1);
    case 'out_of_stock': case 'coupon_exhausted': return soldOut.add(1);
    default: return otherwise.add(1, { code });
  }
}

// audit asks the database what was sold. It is the judge; whichever instance is still there may tell.
export function audit(instances, resource) {
  for (const instance of instances) {
    const answer = http.get(`${instance}/v1/audit?resource=${encodeURIComponent(resource)}`, { headers });
    if (answer.status !== 200) continue;
    const row = answer.json('resources.0');
    oversold.add(row.oversold);
    lostUpdates.add(row.drift);
    audits.add(1);
    console.log(`${resource}, lock ${row.strategy}, fencing ${row.fencing}: sold ${row.sold + row.held} of ${row.limit}, oversold ${row.oversold}`);
    return;
  }
  fail('there is no verdict: no instance answers the audit');
}
