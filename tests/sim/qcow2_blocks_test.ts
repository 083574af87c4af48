/** Refcount blocks of QCOW2 images: the power fails before each operation while they are made. */
import assert from "node:assert/strict";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { Random } from "../../src/testing/random.ts";
import { changesOnly, type SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { Simulation, stampedSectors } from "../support/sim.ts";

const PATH = "/a";
const MIB = 1 << 20;

function faults(disk: SimulatedDisk): readonly string[] {
  const image = openQcow2(PATH, { storage: disk });
  try {
    return checkQcow2(image).errors;
  } finally {
    image.close();
  }
}

Deno.test("a refcount table never names a block that is not in the file", () => {
  const random = new Random(1);
  const simulation = new Simulation({ seed: 1, latencyMs: 1, powerCuts: true });
  const { disk } = simulation;
  // Each block counts 64 clusters, and the table has to grow, too.
  createQcow2(PATH, { storage: disk, sizeBytes: 4 * MIB, clusterBytes: 512, refcountBits: 64 });
  const device = simulation.open(`qcow2:${PATH}`);
  let cuts = 0;
  disk.beforeOperation = changesOnly(() => {
    for (let i = 0; i < 3; i++, cuts++) {
      const left = disk.photograph(random);
      assert.deepEqual(faults(left), [], `cut ${cuts}`);
      left.close();
    }
    return 0;
  });
  for (let at = 0; at < 480; at += 48) {
    device.write(at, stampedSectors(at, 40, 1));
    device.settle();
  }
  disk.beforeOperation = null;
  assert.ok(cuts > 300, `${cuts} cuts`);
  device.close();
  assert.deepEqual(faults(disk), []);
  simulation.close();
});
