/** A check of a hostile QCOW2 ends soon, whatever its tables say. */
import assert from "node:assert/strict";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { repairQcow2 } from "../../src/qcow2/repair.ts";
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

Deno.test("tables that lead past the end of the file are errors, and a part of a cluster is none", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  const clusterBytes = 65536;
  createQcow2("/a.qcow2", { storage, sizeBytes: 1 << 20 });
  const made = getFile(storage, "/a.qcow2");
  const findings = (change: (view: DataView) => void, endBytes: number): readonly string[] => {
    // A table of clusters and a cluster behind what is there.
    const table = Math.ceil(made.length / clusterBytes) * clusterBytes;
    const bytes = new Uint8Array(table + endBytes);
    bytes.set(made.subarray(0, Math.min(made.length, bytes.length)));
    const view = new DataView(bytes.buffer);
    view.setBigUint64(Number(view.getBigUint64(40)), BigInt(table) | 1n << 63n);
    view.setBigUint64(table, BigInt(table + clusterBytes) | 1n << 63n);
    const counts = Number(view.getBigUint64(Number(view.getBigUint64(48))));
    for (const cluster of [0, 1]) view.setUint16(counts + 2 * (table / clusterBytes + cluster), 1);
    change(view);
    putFile(storage, "/a.qcow2", bytes);
    const image = openQcow2("/a.qcow2", { storage });
    const { errors } = checkQcow2(image);
    image.close();
    return errors;
  };
  const nothing = (): void => {};
  assert.deepEqual(findings(nothing, 2 * clusterBytes), []);
  assert.deepEqual(findings(nothing, clusterBytes + 1), []);
  assert.match(findings(nothing, clusterBytes).join(), /l2\[0\] .* past the end of the file/);
  const farBlock = (view: DataView): void =>
    view.setBigUint64(Number(view.getBigUint64(48)) + 8, 1n << 63n);
  assert.match(findings(farBlock, 2 * clusterBytes).join(), /refcount_table\[1\] leads past/);
  simulation.close();
});

Deno.test("subclusters with data of a cluster that has no place, or is compressed, are errors", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createQcow2("/a.qcow2", { storage, sizeBytes: 1 << 20, extendedL2: true });
  const made = getFile(storage, "/a.qcow2");
  const table = Math.ceil(made.length / 65536) * 65536;
  const findings = (entry: bigint, bits: bigint): readonly string[] => {
    const bytes = new Uint8Array(table + 2 * 65536);
    bytes.set(made);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(Number(view.getBigUint64(40)), BigInt(table) | 1n << 63n);
    view.setBigUint64(table, entry);
    view.setBigUint64(table + 8, bits);
    const counts = Number(view.getBigUint64(Number(view.getBigUint64(48))));
    view.setUint16(counts + 2 * (table / 65536), 1);
    if (entry !== 0n) view.setUint16(counts + 2 * (table / 65536 + 1), 1);
    putFile(storage, "/a.qcow2", bytes);
    const image = openQcow2("/a.qcow2", { storage });
    const { errors } = checkQcow2(image);
    image.close();
    return errors;
  };
  const cluster = BigInt(table + 65536);
  assert.deepEqual(findings(0n, 0n), []);
  assert.deepEqual(findings(0n, 1n << 40n), []);
  assert.deepEqual(findings(cluster | 1n << 63n, 1n), []);
  assert.deepEqual(findings(cluster | 1n << 62n, 0n), []);
  assert.match(findings(0n, 1n).join(), /data and no cluster/);
  assert.match(findings(cluster | 1n << 62n, 1n).join(), /compressed and has subclusters/);
  simulation.close();
});

Deno.test("bitmaps that cannot all be found are not taken for lost clusters", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createQcow2("/a.qcow2", { storage, sizeBytes: 1 << 20 });
  const bytes = getFile(storage, "/a.qcow2");
  const view = new DataView(bytes.buffer);
  const at = view.getUint32(100);
  // The extension, instead of the names of features, and the end of extensions.
  view.setBigUint64(88, 1n);
  view.setUint32(at, 0x23852875);
  view.setUint32(at + 4, 24);
  view.setBigUint64(at + 16, 24n);
  view.setBigUint64(at + 24, 65536n * 3n);
  view.setBigUint64(at + 32, 0n);
  for (const [count, problem] of [[100_000, /too many/], [2, /no entry 1/]] as const) {
    view.setUint32(at + 8, count);
    putFile(storage, "/a.qcow2", bytes);
    const image = openQcow2("/a.qcow2", { storage });
    const { errors, isMendable } = checkQcow2(image);
    image.close();
    assert.match(errors.join(), problem);
    assert.ok(!isMendable);
    assert.throws(() => repairQcow2("/a.qcow2", { storage }), /Cannot mend/);
  }
  simulation.close();
});
