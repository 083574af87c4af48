/** A check of a hostile QCOW2 ends soon, whatever its tables say. */
import assert from "node:assert/strict";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { Simulation } from "../support/sim.ts";
import { getFile, putFile } from "../support/vhd.ts";

Deno.test("a refcount table with a million blocks, all of them in one place, is not followed", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createQcow2("/a.qcow2", { storage, sizeBytes: 1 << 20 });
  const made = getFile(storage, "/a.qcow2");
  const clusters = 32;
  const bytes = new Uint8Array(made.length + clusters * 65536);
  bytes.set(made);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(48, BigInt(made.length));
  view.setUint32(56, clusters);
  for (let i = 0; i < clusters * 8192; i++) view.setBigUint64(made.length + 8 * i, 131072n);
  putFile(storage, "/a.qcow2", bytes);
  const image = openQcow2("/a.qcow2", { storage });
  let reads = 0;
  storage.beforeOperation = ({ kind }) => {
    if (kind === "read") reads++;
    return 0;
  };
  const { errorCount } = checkQcow2(image);
  assert.ok(errorCount > 0);
  assert.ok(reads < 20, `${reads} reads`);
  image.close();
  simulation.close();
});
