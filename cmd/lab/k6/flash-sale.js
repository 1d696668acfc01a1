// Many more buyers than units of one item.
//
//   k6 run -e STRATEGY=redis flash-sale.js
//
// FENCEPOST_URL, FENCEPOST_API_KEY, STRATEGY, FENCING, STOCK (1000), RATE (500 a second) and SECONDS (10) are set with -e.
import { attempt, audit, create, options as common } from './fencepost.js';

export const options = common();

export function setup() {
  const sku = `k6-${Date.now()}`;
  const instances = create('/v1/items', { sku, name: 'Flash sale', stock: Number(__ENV.STOCK || 1000) });
  return { sku, instances };
}

export default function ({ sku, instances }) {
  attempt(instances, `/v1/items/${sku}/reservations`, { quantity: 1 });
}

export function teardown({ sku, instances }) {
  audit(instances, `item/${sku}`);
}
