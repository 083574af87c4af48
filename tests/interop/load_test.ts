import assert from "node:assert/strict";
import { holdLoad } from "../support/load.ts";
import { needsServed } from "../support/served.ts";

const { ignore, suffix } = needsServed("fio");

Deno.test({
  name: `load: 20 disks in one tapdisk, five under fio, and nothing is left of it${suffix}`,
  ignore,
  async fn() {
    const { operations, memoryKib, descriptors } = await holdLoad({
      disks: 20,
      clients: 5,
      seconds: 5,
    });
    assert.ok(operations > 1000, `${operations} operations`);
    assert.ok(descriptors.all >= descriptors.one + 20 * 3, "each disk has descriptors of its own");
    assert.equal(descriptors.emptied, descriptors.one);
    // The memory of a client's slots is used once; it does not grow with time.
    assert.ok(memoryKib.end - memoryKib.early < 48 * 1024, JSON.stringify(memoryKib));
  },
});
