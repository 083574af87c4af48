/** A QCOW2 image that is only read is not changed, whatever its marks say. */
import assert from "node:assert/strict";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { snapshotQcow2 } from "../../src/qcow2/snapshot.ts";
import { changesOnly } from "../../src/testing/simulated_disk.ts";
import { assertHolds, Simulation, stampedSectors } from "../support/sim.ts";

const SIZE = 8 << 20;
const MARKS: readonly [string, bigint][] = [
  ["that was not closed", 1n],
  ["that is corrupt", 2n],
  ["that is corrupt and was not closed", 3n],
];

for (const [name, marks] of MARKS) {
  Deno.test(`an image ${name} is read, also below another one, and not changed`, () => {
    const simulation = new Simulation({ seed: 1, latencyMs: 1 });
    const { disk: storage } = simulation;
    createQcow2("/a", { storage, sizeBytes: SIZE, lazyRefcounts: true });
    const made = simulation.open("qcow2:/a");
    made.write(100, stampedSectors(100, 300, 1));
    made.settle();
    made.close();
    const file = storage.open("/a", "write");
    const fields = new Uint8Array(24);
    new DataView(fields.buffer).setBigUint64(0, marks);
    new DataView(fields.buffer).setBigUint64(16, 0xf1n);
    file.writeAt(fields, 72);
    // The last cluster is not whole.
    file.truncate(file.sizeBytes() - 1000);
    file.close();
    snapshotQcow2("/child", { storage, parent: { type: "qcow2", path: "/a" } });
    const changes: string[] = [];
    storage.beforeOperation = changesOnly(({ path, kind }) => {
      if (path === "/a") changes.push(kind);
      return 0;
    });
    const reading = simulation.open("qcow2:/a", { readOnly: true });
    assertHolds(reading, 100, 300, 1);
    const status = reading.status(0, 1000);
    reading.settle();
    assert.equal(status.errno, 0);
    reading.close();
    const child = simulation.open("qcow2:/child");
    assertHolds(child, 100, 300, 1);
    child.write(110, stampedSectors(110, 3, 2));
    child.zero(300, 100);
    child.settle();
    assertHolds(child, 110, 3, 2);
    child.close();
    assert.deepEqual(changes, []);
    simulation.close();
  });
}
