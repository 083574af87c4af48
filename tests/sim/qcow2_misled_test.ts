/**
 * QCOW2 images with entries that lead to a structure of the image, or to no cluster. What such an entry
 * leads to keeps its content and its reference, whatever is written to the cluster of the disk.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2, type Qcow2Image } from "../../src/qcow2/image/image.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";
import { getFile } from "../support/vhd.ts";

const PATH = "/a";
const MIB = 1 << 20;
const CLUSTER = 65536;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

interface Made {
  readonly simulation: Simulation;
  /** Byte of the L2 table. */
  readonly table: number;
  readonly header: Qcow2Image["header"];
}

/** An image with data in its first four clusters, and an entry that was changed. */
function made(change: (made: Made) => [at: number, entry: bigint]): Made {
  const simulation = new Simulation({ seed: 1, latencyMs: 1 });
  createQcow2(PATH, { storage: simulation.disk, sizeBytes: MIB });
  const device = simulation.open(`qcow2:${PATH}`);
  device.write(0, stampedSectors(0, 512, 1));
  device.settle();
  device.close();
  const image = openQcow2(PATH, { storage: simulation.disk });
  const table = image.l1.getUint32(4, false);
  image.close();
  const whole = { simulation, table, header: image.header };
  const [at, entry] = change(whole);
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, entry);
  const file = simulation.disk.open(PATH, "write");
  file.writeAt(bytes, at);
  file.close();
  return whole;
}

function open({ simulation }: Made): SimulatedDevice {
  return simulation.open(`qcow2:${PATH}`, { retry: { timeoutMs: 0 } });
}

const WRONG: readonly [what: string, change: (made: Made) => [number, bigint]][] = [
  ["the header, shared", ({ table }) => [table, 512n]],
  ["a place within a cluster, shared", ({ table }) => [table, BigInt(4 * CLUSTER + 512)]],
  ["the L1 table, shared", ({ table, header }) => [table, header.l1TableOffset]],
  ["the refcount table, shared", ({ table, header }) => [table, header.refcountTableOffset]],
  ["the header, compressed", ({ table }) => [table, COMPRESSED | 512n]],
  ["the L1 table, compressed", ({ table, header }) => [table, COMPRESSED | header.l1TableOffset]],
  [
    "the refcount table, as a shared L2 table",
    ({ header }) => [Number(header.l1TableOffset), header.refcountTableOffset],
  ],
  [
    "a place within a cluster, as a shared L2 table",
    ({ header, table }) => [Number(header.l1TableOffset), BigInt(table + 512)],
  ],
];

for (const [what, change] of WRONG) {
  for (const act of ["write", "zero", "discard"] as const) {
    Deno.test(`an entry that leads to ${what}: a ${act} changes nothing`, () => {
      const image = made(change);
      const { simulation, header } = image;
      const device = open(image);
      const before = getFile(simulation.disk, PATH);
      const outcome = act === "write"
        ? device.write(0, stampedSectors(0, 8, 2))
        : device[act](0, 128);
      device.settle();
      // Other entries of a table that is none decide whether there is something to discard.
      if (act === "write") assert.equal(outcome.errno, Errno.EIO);
      device.close();
      const after = getFile(simulation.disk, PATH);
      const keeps = (at: number, length: number): void =>
        assert.deepEqual(after.slice(at, at + length), before.slice(at, at + length));
      keeps(0, 72);
      keeps(80, 432);
      keeps(Number(header.l1TableOffset), CLUSTER);
      // The refcount table, and its block behind it: nothing has lost a reference.
      keeps(Number(header.refcountTableOffset), 2 * CLUSTER);
      simulation.close();
    });
  }
}

Deno.test("an entry with a flag and no place is none", () => {
  const image = made(({ table }) => [table + 8, COPIED]);
  const checked = openQcow2(PATH, { storage: image.simulation.disk });
  assert.equal(checkQcow2(checked).errorCount, 0);
  checked.close();
  const device = open(image);
  assertHolds(device, 128, 128, 0);
  device.write(130, stampedSectors(130, 8, 2));
  device.settle();
  assertHolds(device, 128, 2, 0);
  assertHolds(device, 130, 8, 2);
  assertHolds(device, 0, 128, 1);
  device.close();
  image.simulation.close();
});

Deno.test("an entry of the L1 table with a flag and no place is none", () => {
  const image = made(({ header }) => [Number(header.l1TableOffset), COPIED]);
  const device = open(image);
  assertHolds(device, 0, 512, 0);
  device.write(130, stampedSectors(130, 8, 2));
  device.settle();
  assertHolds(device, 130, 8, 2);
  device.close();
  const checked = openQcow2(PATH, { storage: image.simulation.disk });
  assert.equal(checkQcow2(checked).errorCount, 0);
  checked.close();
  image.simulation.close();
});

Deno.test("a check finds a table that the end of the file cuts", () => {
  const image = made(({ table }) => [table + 8, 0n]);
  const { disk } = image.simulation;
  const file = disk.open(PATH, "write");
  file.truncate(image.table + CLUSTER - 1);
  file.close();
  const checked = openQcow2(PATH, { storage: disk });
  assert.match(checkQcow2(checked).errors.join(), /l1\[0\] .* is cut by the end of the file/);
  checked.close();
  image.simulation.close();
});

Deno.test("a check finds subclusters with data that have no cluster", () => {
  const simulation = new Simulation({ seed: 1 });
  const { disk } = simulation;
  createQcow2(PATH, { storage: disk, sizeBytes: MIB, extendedL2: true });
  const device = simulation.open(`qcow2:${PATH}`);
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  device.close();
  for (const entry of [0n, 1n]) {
    const image = openQcow2(PATH, { storage: disk });
    const table = image.l1.getUint32(4, false);
    const file = disk.open(PATH, "write");
    const bytes = new Uint8Array(16);
    new DataView(bytes.buffer).setBigUint64(0, entry);
    new DataView(bytes.buffer).setBigUint64(8, 3n);
    file.writeAt(bytes, table + 16);
    file.close();
    assert.match(
      checkQcow2(image).errors.join(),
      /l2\[1\] .* subclusters with data and no cluster/,
    );
    image.close();
  }
  simulation.close();
});
