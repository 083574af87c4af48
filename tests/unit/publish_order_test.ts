import assert from "node:assert/strict";
import { AssertionError } from "../../ffi/assert.ts";
import { PublishOrder } from "../../src/vhd/format/publish_order.ts";

Deno.test("the BAT may name a block only after a sync that began when the block was written", () => {
  const order = new PublishOrder();
  const first = order.written();
  assert.throws(() => order.requireDurable(first), AssertionError);
  order.syncStarts();
  const second = order.written();
  assert.throws(() => order.requireDurable(first), AssertionError);
  order.syncEnded(true);
  order.requireDurable(first);
  assert.throws(() => order.requireDurable(second), AssertionError, "written during the sync");
  order.syncStarts();
  order.syncEnded(false);
  assert.throws(() => order.requireDurable(second), AssertionError, "the sync failed");
  order.syncStarts();
  order.syncEnded(true);
  order.requireDurable(second);
  assert.throws(() => order.requireDurable(0), AssertionError);
  assert.throws(() => order.syncEnded(true), AssertionError);
});
