/** Images give back the I/O memory that they took, however they end. */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { freeMemoryBytes } from "../../ffi/memory.ts";
import { createQcow } from "../../src/qcow/create.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import type { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { Simulation, stampedSectors } from "../support/sim.ts";

const SIZE_BYTES = 16 << 20;
const MAKERS: Readonly<Record<string, (storage: SimulatedDisk) => void>> = {
  vhd: (storage) => createDynamic("/disk.vhd", { storage, sizeBytes: SIZE_BYTES }),
  qcow: (storage) => createQcow(storage, { path: "/disk.qcow" }, { sizeBytes: SIZE_BYTES }),
  qcow2: (storage) =>
    createQcow2("/disk.qcow2", { storage, sizeBytes: SIZE_BYTES, clusterBytes: 65536 }),
};

/** What a step takes for good: the first time, the region grows; later times tell. */
function assertTakesNothing(step: () => void): void {
  step();
  const before = freeMemoryBytes();
  for (let i = 0; i < 3; i++) step();
  assert.equal(before - freeMemoryBytes(), 0, "bytes that were not given back");
}

for (const [type, make] of Object.entries(MAKERS)) {
  Deno.test(`an image that was written and closed gives its memory back, ${type}`, () => {
    const simulation = new Simulation({ seed: 1 });
    make(simulation.disk);
    assertTakesNothing(() => {
      const device = simulation.open(`${type}:/disk.${type}`);
      const write = device.write(8, stampedSectors(8, 8, 1));
      device.settle();
      assert.equal(write.errno, 0);
      device.close();
    });
    simulation.close();
  });

  Deno.test(`an image for which the queue has no room gives its memory back, ${type}`, () => {
    const simulation = new Simulation({ seed: 1 });
    make(simulation.disk);
    const { queue } = simulation.context;
    let taken = 0;
    while (queue.reserve(1)) taken++;
    assertTakesNothing(() =>
      assert.throws(() => simulation.open(`${type}:/disk.${type}`), { errno: Errno.EBUSY })
    );
    queue.release(taken);
    simulation.open(`${type}:/disk.${type}`).close();
    simulation.close();
  });
}
