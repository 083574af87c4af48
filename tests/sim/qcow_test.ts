/**
 * The driver of QCOW version 1 against a model: random requests on simulated disks, with power cuts,
 * errors and a full disk. qemu-img and the offline check judge what is left.
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Arena, freeMemoryBytes, PAGE_BYTES } from "../../ffi/memory.ts";
import { checkQcow } from "../../src/qcow/check.ts";
import { createQcow } from "../../src/qcow/create.ts";
import { encodeHeader, l1Entries, type QcowHeader } from "../../src/qcow/format.ts";
import { Random } from "../../src/testing/random.ts";
import {
  assertHolds,
  type Outcome,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";
import { getFile, putFile, syncFile } from "../support/vhd.ts";

const DISK_SECTORS = 24 * 2048 - 3;

/** An image with clusters and tables of any size. */
function makeImage(
  simulation: Simulation,
  path: string,
  { clusterBits, l2Bits, backing }: { clusterBits: number; l2Bits: number; backing?: string },
): void {
  const name = new TextEncoder().encode(backing ?? "");
  const header: QcowHeader = {
    backingOffsetBytes: backing === undefined ? 0 : 48,
    backingLengthBytes: name.length,
    mtime: 0,
    sizeBytes: DISK_SECTORS * 512,
    clusterBits,
    l2Bits,
    cryptMethod: 0,
    l1OffsetBytes: Math.ceil((48 + name.length) / 8) * 8,
  };
  const bytes = new Uint8Array(header.l1OffsetBytes + 8 * l1Entries(header));
  bytes.set(encodeHeader(header));
  bytes.set(name, 48);
  putFile(simulation.disk, path, bytes);
  syncFile(simulation.disk, path);
}

interface Write {
  readonly sector: number;
  readonly count: number;
  readonly stamp: number;
  readonly outcome: Outcome;
}

/** What each sector may hold. */
class Model {
  /** Stamps of writes that were flushed, or of the backing file. */
  readonly durable = new Int32Array(DISK_SECTORS);
  readonly writes: Write[] = [];
  /** Each write has a higher stamp than all before. */
  lastStamp = 1000;

  isUnderWay(sector: number, count: number): boolean {
    return this.writes.some((write) =>
      write.outcome.errno === null && write.sector < sector + count &&
      sector < write.sector + write.count
    );
  }

  flushed(writes: readonly Write[]): void {
    for (const { sector, count, stamp } of writes) {
      for (let i = sector; i < sector + count; i++) {
        this.durable[i] = Math.max(this.durable[i], stamp);
      }
    }
  }

  allows(sector: number, stamp: number): boolean {
    return stamp === this.durable[sector] ||
      this.writes.some((write) =>
        write.stamp === stamp && stamp > this.durable[sector] && sector >= write.sector &&
        sector < write.sector + write.count
      );
  }
}

/** Random writes and flushes, near each other. */
function work(device: SimulatedDevice, random: Random, model: Model, turns: number): void {
  let flush: { outcome: Outcome; ended: Write[] } | null = null;
  for (let turn = 0; turn < turns; turn++) {
    // A batch takes some ten turns: more writes would only wait.
    for (let i = random.chance(0.25) ? random.below(5) : 0; i > 0; i--) {
      const count = 1 + random.below(random.chance(0.2) ? 300 : 24);
      const at = random.below(6) * 8192 + random.below(600);
      const sector = Math.min(at, DISK_SECTORS - count);
      if (model.isUnderWay(sector, count)) continue;
      const stamp = ++model.lastStamp;
      const outcome = device.write(sector, stampedSectors(sector, count, stamp));
      model.writes.push({ sector, count, stamp, outcome });
    }
    if (flush === null && random.chance(0.03)) {
      const ended = model.writes.filter(({ outcome }) => outcome.errno === 0);
      flush = { ended, outcome: device.flush() };
    }
    device.simulation.scheduler.turn();
    if (flush?.outcome.errno === 0) {
      model.flushed(flush.ended);
      flush = null;
    }
  }
}

function verify(device: SimulatedDevice, model: Model): void {
  for (let sector = 0; sector < DISK_SECTORS; sector += 512) {
    const count = Math.min(512, DISK_SECTORS - sector);
    const { data } = read(device, sector, count);
    assert.ok(data);
    for (let i = 0; i < count; i++) {
      const stamp = stampOf(data, i, sector + i);
      const what = `sector ${sector + i} has ${stamp}, flushed was ${model.durable[sector + i]}`;
      assert.ok(model.allows(sector + i, stamp), what);
    }
  }
}

function read(device: SimulatedDevice, sector: number, count: number): Outcome {
  const outcome = device.read(sector, count);
  device.settle();
  assert.equal(outcome.errno, 0);
  return outcome;
}

/** A raw file with data in most of its sectors, also in the model. */
function makeBase(simulation: Simulation, model: Model): void {
  const sectors = DISK_SECTORS - 5000;
  const bytes = new Uint8Array(sectors * 512);
  for (let sector = 0; sector < sectors; sector += 100) {
    const count = Math.min(97, sectors - sector);
    bytes.set(stampedSectors(sector, count, 7), sector * 512);
    model.durable.fill(7, sector, sector + count);
  }
  putFile(simulation.disk, "/base.raw", bytes);
  syncFile(simulation.disk, "/base.raw");
}

interface Shape {
  readonly clusterBits: number;
  readonly l2Bits: number;
  readonly isBacked: boolean;
}

const SHAPES: readonly Shape[] = [
  { clusterBits: 12, l2Bits: 9, isBacked: false },
  { clusterBits: 9, l2Bits: 12, isBacked: true },
  { clusterBits: 12, l2Bits: 6, isBacked: true },
  { clusterBits: 16, l2Bits: 6, isBacked: true },
  { clusterBits: 9, l2Bits: 6, isBacked: false },
];

function shaped(simulation: Simulation, { isBacked, ...shape }: Shape, model: Model): string {
  const backing = isBacked ? "/base.raw" : undefined;
  if (isBacked) makeBase(simulation, model);
  makeImage(simulation, "/disk.qcow", { ...shape, backing });
  return isBacked ? "qcow:raw:/disk.qcow" : "qcow:/disk.qcow";
}

function requireValid(simulation: Simulation): void {
  const { valid, findings } = checkQcow("/disk.qcow", { storage: simulation.disk });
  assert.ok(valid, JSON.stringify(findings));
}

for (const [index, shape] of SHAPES.entries()) {
  const { clusterBits, l2Bits, isBacked } = shape;
  const name = `2^${clusterBits} bytes, 2^${l2Bits} entries, ${
    isBacked ? "on a raw file" : "alone"
  }`;

  Deno.test(`QCOW: what is written is read, ${name}`, () => {
    const random = new Random(index + 1);
    const simulation = new Simulation({ seed: index, latencyMs: 3 });
    const model = new Model();
    const image = shaped(simulation, shape, model);
    const device = simulation.open(image);
    work(device, random, model, 400);
    device.settle();
    model.flushed(model.writes);
    verify(device, model);
    device.close();
    requireValid(simulation);
    const again = simulation.open(image, { readOnly: true });
    verify(again, model);
    again.close();
    simulation.close();
  });

  Deno.test(`QCOW: a power cut leaves every flushed byte, ${name}`, () => {
    for (let seed = 1; seed <= 8; seed++) {
      const random = new Random(seed);
      const simulation = new Simulation({ seed, latencyMs: 4, powerCuts: true });
      const model = new Model();
      const image = shaped(simulation, shape, model);
      const device = simulation.open(image);
      work(device, random, model, 20 + random.below(500));
      const after = new Simulation({ seed }, simulation);
      requireValid(after);
      const again = after.open(image);
      verify(again, model);
      again.close();
      requireValid(after);
      device.vbd.requests.memory.release();
      after.close();
    }
  });

  Deno.test(`QCOW: requests outlast errors and a full disk, ${name}`, () => {
    const random = new Random(index + 5);
    const simulation = new Simulation({ seed: index, latencyMs: 3 });
    const model = new Model();
    const image = shaped(simulation, shape, model);
    const device = simulation.open(image);
    simulation.fault = () => random.chance(0.1) ? Errno.EIO : 0;
    work(device, random, model, 300);
    simulation.lengthFault = Errno.ENOSPC;
    work(device, random, model, 100);
    simulation.fault = null;
    simulation.lengthFault = 0;
    device.settle();
    assert.ok(model.writes.every(({ outcome }) => outcome.errno === 0));
    model.flushed(model.writes);
    verify(device, model);
    device.close();
    requireValid(simulation);
    simulation.close();
  });
}

Deno.test("QCOW: zeros, holes and an empty image", () => {
  const simulation = new Simulation({ seed: 1 });
  createQcow(simulation.disk, { path: "/disk.qcow" }, { sizeBytes: DISK_SECTORS * 512 });
  const device = simulation.open("qcow:/disk.qcow");
  device.zero(0, 4096);
  device.settle();
  const empty = device.status(0, 4096);
  device.settle();
  assert.deepEqual(empty.extents, [-4096]);
  device.write(100, stampedSectors(100, 4, 9));
  device.settle();
  device.zero(101, 1);
  device.settle();
  const { data } = read(device, 96, 8);
  assert.ok(data);
  const stamps = Array.from({ length: 8 }, (_, i) => stampOf(data, i, 96 + i));
  assert.deepEqual(stamps, [0, 0, 0, 0, 9, 0, 9, 9]);
  const held = device.status(0, 4096);
  device.settle();
  assert.deepEqual(held.extents, [-96, 8, -3992]);
  device.close();
  simulation.close();
});

Deno.test("QCOW: nothing guesses the format of a backing file", () => {
  const simulation = new Simulation({ seed: 1 });
  makeBase(simulation, new Model());
  makeImage(simulation, "/disk.qcow", { clusterBits: 12, l2Bits: 9, backing: "base.raw" });
  assert.throws(() => simulation.open("qcow:/disk.qcow"), /name it qcow:raw:\/disk\.qcow/);
  const json = 'json:{"driver":"raw","file":{"driver":"file","filename":"/base.raw"}}';
  makeImage(simulation, "/named.qcow", { clusterBits: 12, l2Bits: 9, backing: json });
  simulation.open("qcow:/named.qcow").close();
  assert.throws(() => simulation.open("qcow:qcow:/named.qcow"), /the image says that it is raw/);
  makeImage(simulation, "/top.qcow", { clusterBits: 12, l2Bits: 9, backing: "disk.qcow" });
  const device = simulation.open("qcow:qcow,raw:/top.qcow");
  const { data } = read(device, 0, 2);
  assert.equal(data && stampOf(data, 1, 1), 7);
  device.close();
  simulation.close();
});

Deno.test("QCOW: a cluster that goes beyond the end of the file is not where new ones are put", () => {
  const simulation = new Simulation({ seed: 1 });
  makeImage(simulation, "/disk.qcow", { clusterBits: 12, l2Bits: 9 });
  const first = simulation.open("qcow:/disk.qcow");
  first.write(0, stampedSectors(0, 8, 1));
  first.settle();
  first.close();
  const bytes = getFile(simulation.disk, "/disk.qcow");
  const view = new DataView(bytes.buffer);
  const table = Number(view.getBigUint64(Number(view.getBigUint64(40))));
  // The second cluster begins in the last sector of the file.
  view.setBigUint64(table + 8, BigInt(bytes.length - 512));
  putFile(simulation.disk, "/disk.qcow", bytes);
  const { findings } = checkQcow("/disk.qcow", { storage: simulation.disk });
  assert.match(findings.map(({ message }) => message).join(), /l2\[1\] is no place for a cluster/);
  const device = simulation.open("qcow:/disk.qcow", { retry: { timeoutMs: 0 } });
  device.write(16, stampedSectors(16, 8, 2));
  device.settle();
  const wrong = device.write(8, stampedSectors(8, 8, 3));
  device.settle();
  assert.equal(wrong.errno, Errno.EIO);
  assertHolds(device, 16, 8, 2);
  device.close();
  simulation.close();
});

for (const isPacked of [false, true]) {
  const kind = isPacked ? "compressed" : "plain";
  Deno.test(`QCOW: an image that was cut gets no new clusters, ${kind}`, () => {
    const simulation = new Simulation({ seed: 1 });
    makeImage(simulation, "/disk.qcow", { clusterBits: 12, l2Bits: 6 });
    const perTable = 64 * 8;
    const first = simulation.open("qcow:/disk.qcow");
    // The table of the last cluster is far from that of the first, and the cluster is at the end.
    for (const sector of [0, 9 * perTable + 8, 9 * perTable]) {
      first.write(sector, stampedSectors(sector, 8, 1));
      first.settle();
    }
    first.close();
    const bytes = getFile(simulation.disk, "/disk.qcow");
    const cut = bytes.slice(0, bytes.length - 4096);
    const view = new DataView(cut.buffer);
    const l1 = Number(view.getBigUint64(40));
    const table = Number(view.getBigUint64(l1 + 9 * 8));
    assert.equal(Number(view.getBigUint64(table)), cut.length, "the cluster is behind the end");
    if (isPacked) view.setBigUint64(table, 1n << 63n | 100n << 51n | BigInt(cut.length - 50));
    putFile(simulation.disk, "/disk.qcow", cut);
    syncFile(simulation.disk, "/disk.qcow");
    const device = simulation.open("qcow:/disk.qcow", { retry: { timeoutMs: 0 } });
    const refused = [
      device.write(8, stampedSectors(8, 8, 2)),
      device.write(20 * perTable, stampedSectors(20 * perTable, 8, 2)),
    ];
    device.settle();
    assert.deepEqual(refused.map(({ errno }) => errno), [Errno.EIO, Errno.EIO]);
    assert.equal(getFile(simulation.disk, "/disk.qcow").length, cut.length);
    // What it has can be written, and what it lost is not zeros.
    const own = device.write(0, stampedSectors(0, 8, 3));
    device.settle();
    assert.equal(own.errno, 0);
    assertHolds(device, 0, 8, 3);
    assertHolds(device, 9 * perTable + 8, 8, 1);
    const lost = device.read(9 * perTable, 8);
    device.settle();
    assert.equal(lost.errno, Errno.EIO);
    device.close();
    assert.match(simulation.log.join("\n"), /disk\.qcow was cut: .*no new ones/);
    simulation.close();
  });
}

Deno.test("QCOW: a first new cluster waits for tables that cannot be read, and is tried again", () => {
  const simulation = new Simulation({ seed: 1 });
  makeImage(simulation, "/disk.qcow", { clusterBits: 12, l2Bits: 9 });
  const first = simulation.open("qcow:/disk.qcow");
  first.write(0, stampedSectors(0, 8, 1));
  first.settle();
  first.close();
  let failures = 3;
  const device = simulation.open("qcow:/disk.qcow");
  // The table is in the cache from here on, and others are read to look for lost clusters.
  read(device, 16, 8);
  simulation.disk.beforeOperation = ({ kind }) => kind === "read" && failures-- > 0 ? Errno.EIO : 0;
  const write = device.write(8, stampedSectors(8, 8, 2));
  device.settle();
  assert.equal(write.errno, 0);
  assert.ok(failures < 0);
  simulation.disk.beforeOperation = null;
  assertHolds(device, 8, 8, 2);
  device.close();
  simulation.close();
});

Deno.test("QCOW: a first new cluster waits for memory for the look at the tables", () => {
  const simulation = new Simulation({ seed: 1 });
  makeImage(simulation, "/disk.qcow", { clusterBits: 12, l2Bits: 9 });
  const first = simulation.open("qcow:/disk.qcow");
  first.write(0, stampedSectors(0, 8, 1));
  first.settle();
  first.close();
  const device = simulation.open("qcow:/disk.qcow");
  const all: Arena[] = [];
  for (let bytes = freeMemoryBytes(); bytes >= PAGE_BYTES;) {
    try {
      all.push(new Arena(bytes));
    } catch {
      bytes /= 2;
    }
  }
  const write = device.write(8, stampedSectors(8, 8, 2));
  simulation.scheduler.turn();
  assert.equal(write.errno, null);
  assert.match(simulation.log.join("\n"), /ENOMEM/);
  for (const arena of all) arena.release();
  device.settle();
  assert.equal(write.errno, 0);
  assertHolds(device, 8, 8, 2);
  device.close();
  simulation.close();
});

for (const place of [0, 9000]) {
  Deno.test(`QCOW: a name at ${place} without a place or a length is nowhere`, () => {
    const simulation = new Simulation({ seed: 1 });
    makeImage(simulation, "/disk.qcow", { clusterBits: 12, l2Bits: 9 });
    const bytes = getFile(simulation.disk, "/disk.qcow");
    const view = new DataView(bytes.buffer);
    const isPlace = place > 0;
    view.setBigUint64(8, BigInt(place));
    // Without a place the length says nothing.
    view.setUint32(16, isPlace ? 0 : 0xffffffff);
    putFile(simulation.disk, "/disk.qcow", bytes);
    const device = simulation.open("qcow:/disk.qcow");
    device.write(0, stampedSectors(0, 64, 1));
    device.settle();
    device.close();
    assert.deepEqual(checkQcow("/disk.qcow", { storage: simulation.disk }).findings, []);
    simulation.close();
  });
}
