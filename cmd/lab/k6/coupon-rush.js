// Many more customers than uses of one coupon.
//
//   k6 run -e STRATEGY=zookeeper coupon-rush.js
//
// FENCEPOST_URL, FENCEPOST_API_KEY, STRATEGY, FENCING, USES (1000), RATE (500 a second) and SECONDS (10) are set with -e.
import exec from 'k6/execution';

import { attempt, audit, create, options as common } from './fencepost.js';

export const options = common();

export function setup() {
  const code = `k6-${Date.now()}`;
  const instances = create('/v1/coupons', { code, max_redemptions: Number(__ENV.USES || 1000) });
  return { code, instances };
}

export default function ({ code, instances }) {
  attempt(instances, `/v1/coupons/${code}/redemptions`, { customer_id: `customer-${exec.scenario.iterationInTest}` });
}

export function teardown({ code, instances }) {
  audit(instances, `coupon/${code}`);
}
