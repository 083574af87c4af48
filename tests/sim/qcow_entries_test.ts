/**
 * QCOW images that are refused, and entries that lead to a structure or to another cluster; writes of a
 * batch of which one fails.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { checkQcow } from "../../src/qcow/check.ts";
import { createQcow } from "../../src/qcow/create.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";
import { getFile, putFile } from "../support/vhd.ts";

const PATH = "/disk.qcow";
const SECTORS = 2048;

interface Made {
  readonly simulation: Simulation;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
  /** Byte of the L1 table, and of the L2 table. */
  readonly l1: number;
  readonly table: number;
}

/** An image with data in its first two clusters, of 4 KiB. */
function made(): Made {
  const simulation = new Simulation({ seed: 1 });
  createQcow(simulation.disk, { path: PATH }, { sizeBytes: SECTORS * 512 });
  const device = simulation.open(`qcow:${PATH}`);
  device.write(0, stampedSectors(0, 16, 1));
  device.settle();
  device.close();
  const bytes = getFile(simulation.disk, PATH);
  const view = new DataView(bytes.buffer);
  const l1 = Number(view.getBigUint64(40));
  return { simulation, bytes, view, l1, table: Number(view.getBigUint64(l1)) };
}

function open({ simulation, bytes }: Made, readOnly = false): SimulatedDevice {
  putFile(simulation.disk, PATH, bytes);
  return simulation.open(`qcow:${PATH}`, { readOnly, retry: { timeoutMs: 0 } });
}

Deno.test("QCOW: an encrypted image is refused", () => {
  const image = made();
  image.view.setUint32(36, 1);
  for (const readOnly of [true, false]) {
    assert.throws(() => open(image, readOnly), /encrypted with AES.*EOPNOTSUPP/s);
  }
  image.simulation.close();
});

Deno.test("QCOW: an image whose L1 table is little-endian is read, and not written", () => {
  const image = made();
  const { bytes, view } = image;
  // The table behind the header of the first blktap.
  const moved = { ...image, bytes: new Uint8Array(bytes.length + 4096) };
  moved.bytes.set(bytes);
  const at = bytes.length;
  moved.bytes.set(bytes.slice(image.l1, image.l1 + 8).reverse(), at);
  const front = new DataView(moved.bytes.buffer);
  front.setBigUint64(40, BigInt(at));
  front.setUint32(48, 0x58454efb);
  front.setUint32(60, 0);
  assert.throws(() => open(moved), /little-endian.*EROFS/s);
  const device = open(moved, true);
  assertHolds(device, 0, 16, 1);
  device.close();
  assert.equal(view.getUint32(4), 1);
  image.simulation.close();
});

Deno.test("QCOW: an entry that leads into the L1 table is neither read nor written", () => {
  const image = made();
  const { view, table } = image;
  view.setBigUint64(table, BigInt(512 * Math.floor(image.l1 / 512)) || 512n);
  // The image's L1 table begins in its first sector: a table further on is needed for an entry.
  const moved = { ...image, bytes: new Uint8Array(image.bytes.length + 4096) };
  moved.bytes.set(image.bytes);
  moved.bytes.set(image.bytes.subarray(image.l1, image.l1 + 8), image.bytes.length);
  const front = new DataView(moved.bytes.buffer);
  front.setBigUint64(40, BigInt(image.bytes.length));
  front.setBigUint64(table, BigInt(image.bytes.length));
  const device = open(moved);
  const outcomes = [device.read(0, 8), device.write(0, stampedSectors(0, 8, 2))];
  device.settle();
  assert.deepEqual(outcomes.map(({ errno }) => errno), [Errno.EIO, Errno.EIO]);
  assertHolds(device, 8, 8, 1);
  device.close();
  const after = getFile(image.simulation.disk, PATH);
  const at = image.bytes.length;
  assert.deepEqual(after.slice(at, at + 4096), moved.bytes.slice(at, at + 4096));
  image.simulation.close();
});

Deno.test("QCOW: a check finds two clusters in one place, and two tables", () => {
  const image = made();
  const { view, table, simulation, bytes } = image;
  view.setBigUint64(table + 8, view.getBigUint64(table));
  putFile(simulation.disk, PATH, bytes);
  const { findings, valid } = checkQcow(PATH, { storage: simulation.disk });
  assert.match(findings.map(({ message }) => message).join(), /l2\[1\] names room that something/);
  assert.equal(valid, false);
  simulation.close();
});

Deno.test("QCOW: an image with a table that the end of the file cuts is refused", () => {
  const image = made();
  image.view.setBigUint64(image.l1, BigInt(image.bytes.length - 512));
  for (const readOnly of [true, false]) {
    assert.throws(() => open(image, readOnly), /l1\[0\] .* no place for a table/);
  }
  image.simulation.close();
});

Deno.test("QCOW: an image of which two entries lead to one table is not written", () => {
  const simulation = new Simulation({ seed: 1 });
  createQcow(simulation.disk, { path: PATH }, { sizeBytes: 8 << 20 });
  const device = simulation.open(`qcow:${PATH}`);
  device.write(0, stampedSectors(0, 16, 1));
  device.settle();
  device.close();
  const bytes = getFile(simulation.disk, PATH);
  const view = new DataView(bytes.buffer);
  const l1 = Number(view.getBigUint64(40));
  view.setBigUint64(l1 + 8, view.getBigUint64(l1));
  putFile(simulation.disk, PATH, bytes);
  assert.throws(() => simulation.open(`qcow:${PATH}`), /two entries of its L1 table/);
  simulation.open(`qcow:${PATH}`, { readOnly: true }).close();
  simulation.close();
});

Deno.test("QCOW: of a batch, a write that fails leaves what was below", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 5 });
  const { disk } = simulation;
  putFile(disk, "/base.raw", stampedSectors(0, SECTORS, 3).slice());
  createQcow(disk, { path: PATH }, { sizeBytes: SECTORS * 512, backingName: "base.raw" });
  const device = simulation.open(`qcow:raw:${PATH}`, { retry: { timeoutMs: 0 } });
  // The table is there: both writes change it.
  device.write(1000, stampedSectors(1000, 8, 4));
  device.settle();
  disk.beforeOperation = ({ kind, lengthBytes }) =>
    kind === "write" && lengthBytes === 16 * 512 ? Errno.EIO : 0;
  const failing = device.write(0, stampedSectors(0, 16, 5));
  // In one turn both would be one operation.
  simulation.scheduler.turn();
  const outcomes = [failing, device.write(64, stampedSectors(64, 24, 6))];
  device.settle();
  disk.beforeOperation = null;
  assert.deepEqual(outcomes.map(({ errno }) => errno), [Errno.EIO, 0]);
  assertHolds(device, 0, 64, 3);
  assertHolds(device, 64, 24, 6);
  assertHolds(device, 1000, 8, 4);
  device.close();
  const again = simulation.open(`qcow:raw:${PATH}`, { readOnly: true });
  assertHolds(again, 0, 64, 3);
  assertHolds(again, 64, 24, 6);
  again.close();
  simulation.close();
});
