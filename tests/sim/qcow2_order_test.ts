/**
 * The order of writes of QCOW2 images that other programs made or left behind: a data file, an image that
 * was not closed, a repair, a new name of a backing file. The power fails before each operation.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { repairQcow2 } from "../../src/qcow2/repair.ts";
import { resizeQcow2 } from "../../src/qcow2/resize.ts";
import { createQcow } from "../../src/qcow/create.ts";
import { openQcow } from "../../src/qcow/image.ts";
import { setBackingName } from "../../src/qcow/rebase.ts";
import { Random } from "../../src/testing/random.ts";
import { changesOnly, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { assertHolds, Simulation, stampedSectors, stampOf } from "../support/sim.ts";
import { putFile, syncFile } from "../support/vhd.ts";

const PATH = "/a";
const MIB = 1 << 20;

/** Sets the number of 8 bytes at an offset of the image. */
function put(disk: SimulatedDisk, at: number, value: bigint): void {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value);
  const file = disk.open(PATH, "write");
  file.writeAt(bytes, at);
  file.sync();
  file.close();
}

function get(disk: SimulatedDisk, at: number): bigint {
  const bytes = new Uint8Array(8);
  const file = disk.open(PATH, "read");
  file.readAt(bytes, at);
  file.close();
  return new DataView(bytes.buffer).getBigUint64(0);
}

function placesOf(disk: SimulatedDisk): { table: number; counts: number } {
  const image = openQcow2(PATH, { storage: disk });
  image.close();
  const counts = Number(image.refcountTable.getBigUint64(0) & 0xfffffffffffe00n);
  return { table: Number(image.l1.getBigUint64(0) & 0xfffffffffffe00n), counts };
}

/** An image with data in four clusters. */
function made(
  simulation: Simulation,
  options: Partial<Parameters<typeof createQcow2>[1]> = {},
): void {
  createQcow2(PATH, { storage: simulation.disk, sizeBytes: MIB, ...options });
  const device = simulation.open(`qcow2:${PATH}`);
  device.write(0, stampedSectors(0, 512, 1));
  device.settle();
  device.close();
}

function faults(disk: SimulatedDisk): string {
  const image = openQcow2(PATH, { storage: disk });
  try {
    return checkQcow2(image).errors.join("\n");
  } finally {
    image.close();
  }
}

/** Runs work, and looks at what a cut of power before each of its changes leaves, in several ways. */
function atEachCut(
  disk: SimulatedDisk,
  work: () => void,
  look: (left: SimulatedDisk) => void,
): void {
  const random = new Random(1);
  const left: SimulatedDisk[] = [];
  disk.beforeOperation = changesOnly(() => {
    for (let i = 0; i < 12; i++) left.push(disk.photograph(random));
    return 0;
  });
  work();
  disk.beforeOperation = null;
  left.push(disk.photograph(random));
  for (const each of left) look(each);
}

/** Requires that an image is sound, and has the data of `made`. */
function requireWhole(disk: SimulatedDisk): void {
  assert.equal(faults(disk), "");
  const simulation = new Simulation({ seed: 1, disk });
  const device = simulation.open(`qcow2:${PATH}`, { readOnly: true });
  assertHolds(device, 0, 512, 1);
  device.close();
  simulation.close();
}

/** Makes an image whose data is in a file that held something before. */
function madeWithDataFile(simulation: Simulation): void {
  putFile(simulation.disk, "/data", stampedSectors(0, 2048, 7).slice());
  syncFile(simulation.disk, "/data");
  const dataFile = { name: "data", raw: false };
  createQcow2(PATH, { storage: simulation.disk, sizeBytes: MIB, clusterBytes: 4096, dataFile });
}

Deno.test("an image that was not closed is mended before it is written", () => {
  const simulation = new Simulation({ seed: 1 });
  made(simulation);
  const { counts } = placesOf(simulation.disk);
  // The counts of four clusters are lost, as those that a program keeps in memory.
  put(simulation.disk, counts + 8, 0n);
  put(simulation.disk, 72, 1n);
  const device = simulation.open(`qcow2:${PATH}`);
  device.write(1024, stampedSectors(1024, 512, 2));
  device.settle();
  assertHolds(device, 0, 512, 1);
  assertHolds(device, 1024, 512, 2);
  device.close();
  assert.equal(faults(simulation.disk), "");
  assert.equal(get(simulation.disk, 72), 0n);
  simulation.close();
});

Deno.test("a repair is done or not whenever the power fails, and clears flags of shared clusters", () => {
  const simulation = new Simulation({ seed: 1, powerCuts: true });
  const { disk } = simulation;
  made(simulation);
  const { table, counts } = placesOf(disk);
  // The last cluster is that of the third entry too, and a cluster behind all is counted.
  put(disk, table + 8 * 9, get(disk, table + 16));
  put(disk, counts + 32, 1n);
  atEachCut(disk, () => repairQcow2(PATH, { storage: disk }), (left) => {
    const simulated = new Simulation({ seed: 1, disk: left });
    const device = simulated.open(`qcow2:${PATH}`, { readOnly: true });
    assertHolds(device, 0, 512, 1);
    device.close();
    repairQcow2(PATH, { storage: left });
    requireWhole(left.copy());
    simulated.close();
  });
  requireWhole(disk.copy());
  simulation.close();
});

Deno.test("a repair sets the flag of a cluster that has one reference from then on", () => {
  const simulation = new Simulation({ seed: 1 });
  const { disk } = simulation;
  made(simulation);
  const { table, counts } = placesOf(disk);
  const cluster = Number(get(disk, table) & 0xfffffffffffe00n) / 65536;
  put(disk, table, BigInt(cluster * 65536));
  put(disk, counts + 2 * cluster, 0x0002_0001_0001_0001n);
  const image = openQcow2(PATH, { storage: disk });
  assert.deepEqual([checkQcow2(image).errorCount, checkQcow2(image).leakedClusters], [0, 1]);
  image.close();
  repairQcow2(PATH, { storage: disk });
  requireWhole(disk);
});

Deno.test("a disk is larger or not whenever the power fails", () => {
  const simulation = new Simulation({ seed: 1, powerCuts: true });
  const { disk } = simulation;
  made(simulation, { clusterBytes: 512 });
  atEachCut(disk, () => resizeQcow2(PATH, { storage: disk, sizeBytes: 16 * MIB }), requireWhole);
  simulation.close();
});

Deno.test("a QCOW has its old backing file or its new one whenever the power fails", () => {
  const disk = new SimulatedDisk({ seed: 1, powerCuts: true });
  createQcow(disk, { path: PATH }, { sizeBytes: MIB, backingName: "old.raw" });
  const seen = new Set<string | null>();
  atEachCut(disk, () => setBackingName(disk, PATH, "new.raw"), (left) => {
    const image = openQcow(PATH, { storage: left });
    seen.add(image.backingName);
    image.close();
    left.close();
  });
  assert.deepEqual([...seen].sort(), ["new.raw", "old.raw"]);
  disk.close();
});

Deno.test("zeros in an image of version 2 are data", () => {
  const simulation = new Simulation({ seed: 1 });
  const { disk } = simulation;
  putFile(disk, "/base", stampedSectors(0, 2048, 3).slice());
  const backing = { name: "base", format: "raw" };
  createQcow2(PATH, { storage: disk, sizeBytes: MIB, version: 2, backing });
  const device = simulation.open(`qcow2:${PATH}`);
  device.zero(128, 128);
  device.settle();
  assertHolds(device, 128, 128, 0);
  device.close();
  assert.equal(faults(disk), "");
  const { table } = placesOf(disk);
  assert.equal(get(disk, table + 8) & 1n, 0n);
  simulation.close();
});

Deno.test("subclusters that get data are no zeros any more", () => {
  const simulation = new Simulation({ seed: 1 });
  createQcow2(PATH, { storage: simulation.disk, sizeBytes: MIB, extendedL2: true });
  const device = simulation.open(`qcow2:${PATH}`);
  device.write(0, stampedSectors(0, 128, 1));
  device.settle();
  device.zero(0, 128);
  device.settle();
  const { table } = placesOf(simulation.disk);
  // As a program makes them that keeps clusters of zeros apart from holes.
  device.close();
  put(simulation.disk, table + 8, 0xffffffffn << 32n);
  const again = simulation.open(`qcow2:${PATH}`);
  again.write(5, stampedSectors(5, 10, 2));
  again.settle();
  assertHolds(again, 5, 10, 2);
  assertHolds(again, 15, 100, 0);
  again.close();
  assert.equal(faults(simulation.disk), "");
  simulation.close();
});

Deno.test("a write fails whose reference count cannot be written", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 1 });
  const { disk } = simulation;
  made(simulation);
  const { counts } = placesOf(disk);
  const device = simulation.open(`qcow2:${PATH}`, { retry: { timeoutMs: 0 } });
  disk.beforeOperation = ({ kind, offsetBytes }) =>
    kind === "write" && offsetBytes >= counts && offsetBytes < counts + 65536 ? Errno.EIO : 0;
  const outcome = device.write(1024, stampedSectors(1024, 8, 2));
  device.settle();
  assert.equal(outcome.errno, Errno.EIO);
  disk.beforeOperation = null;
  assertHolds(device, 1024, 8, 0);
  device.write(1032, stampedSectors(1032, 8, 3));
  device.settle();
  device.close();
  assert.equal(faults(disk), "");
  simulation.close();
});

// The devices that a cut of power takes keep their memory: these tests come last.

Deno.test("a flush makes the data in a data file durable", () => {
  for (let seed = 1; seed <= 8; seed++) {
    const simulation = new Simulation({ seed, powerCuts: true });
    madeWithDataFile(simulation);
    const device = simulation.open(`qcow2:${PATH}`);
    for (const stamp of [1, 2]) {
      device.write(8, stampedSectors(8, 64, stamp));
      device.settle();
      device.flush();
      device.settle();
    }
    const after = new Simulation({ seed }, simulation);
    const left = after.open(`qcow2:${PATH}`);
    assertHolds(left, 8, 64, 2);
    assertHolds(left, 0, 8, 0);
    left.close();
    after.close();
  }
});

Deno.test("what a data file held before never shows", () => {
  for (let seed = 1; seed <= 24; seed++) {
    const simulation = new Simulation({ seed, latencyMs: 3, powerCuts: true });
    madeWithDataFile(simulation);
    const device = simulation.open(`qcow2:${PATH}`);
    for (let at = 8; at < 1024; at += 128) device.write(at, stampedSectors(at, 16, 1));
    for (let turns = 0; turns < 3 * seed; turns++) simulation.scheduler.turn();
    const after = new Simulation({ seed }, simulation);
    const left = after.open(`qcow2:${PATH}`);
    const outcome = left.read(0, 512);
    left.settle();
    assert.ok(outcome.data);
    for (let i = 0; i < 512; i++) assert.ok(stampOf(outcome.data, i, i) <= 1, `sector ${i}`);
    left.close();
    after.close();
  }
});
