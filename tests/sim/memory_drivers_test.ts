/**
 * The drivers that keep data in memory, on a simulated disk: RAM disks, caches and write logs,
 * alone and in stacks, each compared with a model of the disk's contents.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Errno } from "../../ffi/errno.ts";
import { LOG_PAGE_RECORD_BYTES, LOG_PAGE_SECTORS, WriteLog } from "../../src/driver/log.ts";
import { Random } from "../../src/testing/random.ts";
import { testBit } from "../../src/vhd/format/bitmap.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  type Outcome,
  SECTOR_BYTES,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";

const DISK_MIB = 8;
const DISK_SECTORS = DISK_MIB * 2048;
const READ_SECTORS = 512;
const SEEDS = [1, 2, 3, 4];
const STACKS = [
  `ram:${DISK_MIB}`,
  "log:vhd:/disk.vhd",
  "bc:1:vhd:/disk.vhd",
  "bc:vhd:/disk.vhd",
  "log:bc:1:vhd:/disk.vhd",
  "bc:1:log:vhd:/disk.vhd",
  `log:bc:1:ram:${DISK_MIB}`,
];

/** A process with a disk of `DISK_MIB`. */
function simulate(seed: number, latencyMs = 5): Simulation {
  const simulation = new Simulation({ seed, latencyMs });
  const storage = simulation.disk;
  createDynamic("/disk.vhd", { storage, sizeBytes: DISK_SECTORS * SECTOR_BYTES });
  return simulation;
}

interface Place {
  readonly sector: number;
  readonly count: number;
}

/** Places that often overlap: half of them are in the first 512 KiB. */
function somePlace(random: Random): Place {
  const count = random.chance(0.5) ? 8 : 1 + random.below(200);
  const sector = random.below(random.chance(0.5) ? 1024 : DISK_SECTORS - count);
  return { sector, count };
}

/** The expected contents of a disk: the stamp of each sector, and which sectors have changed. */
class Model {
  readonly stamps = new Int32Array(DISK_SECTORS);
  readonly changed = new Uint8Array(DISK_SECTORS);

  put({ sector, count }: Place, stamp: number): void {
    this.stamps.fill(stamp, sector, sector + count);
    this.changed.fill(1, sector, sector + count);
  }

  compare(outcome: Outcome, sector: number): void {
    assert.equal(outcome.errno, 0);
    assert.ok(outcome.data);
    for (let i = 0; i < outcome.data.length / SECTOR_BYTES; i++) {
      const stamp = this.stamps[sector + i];
      // -1: the contents of a discarded sector are undefined.
      if (stamp !== -1) assert.equal(stampOf(outcome.data, i, sector + i), stamp);
    }
  }
}

/** A burst of requests, all in flight at once, without common sectors. */
function burst(device: SimulatedDevice, model: Model, random: Random, stamp: number): void {
  const taken: Place[] = [];
  const reads: { sector: number; outcome: Outcome }[] = [];
  for (let i = 0; i < 30; i++) {
    const place = somePlace(random);
    const { sector, count } = place;
    if (taken.some((t) => sector < t.sector + t.count && t.sector < sector + count)) continue;
    taken.push(place);
    const dice = random.next();
    if (dice < 0.4) {
      device.write(sector, stampedSectors(sector, count, stamp), random.chance(0.1));
      model.put(place, stamp);
    } else if (dice < 0.85) reads.push({ sector, outcome: device.read(sector, count) });
    else if (dice < 0.93) {
      device.zero(sector, count);
      model.put(place, 0);
    } else if (dice < 0.97) {
      device.discard(sector, count);
      model.put(place, -1);
    } else device.flush();
  }
  device.settle();
  for (const { sector, outcome } of reads) model.compare(outcome, sector);
}

function contents(device: SimulatedDevice): Uint8Array {
  const all = new Uint8Array(DISK_SECTORS * SECTOR_BYTES);
  for (let sector = 0; sector < DISK_SECTORS; sector += READ_SECTORS) {
    const outcome = device.read(sector, READ_SECTORS);
    device.settle();
    assert.ok(outcome.data);
    all.set(outcome.data, sector * SECTOR_BYTES);
  }
  return all;
}

function readAll(device: SimulatedDevice, model: Model): void {
  model.compare({ errno: 0, data: contents(device) }, 0);
}

/** The log of a device, a byte for each sector. */
function logged(device: SimulatedDevice): Uint8Array {
  const log = device.vbd.writeLog;
  assert.ok(log, "the device keeps a log");
  const sectors = new Uint8Array(log.sectors);
  const pages = log.pages();
  const view = new DataView(pages.buffer);
  for (let at = 0; at < pages.length; at += LOG_PAGE_RECORD_BYTES) {
    const bits = pages.subarray(at + 4, at + LOG_PAGE_RECORD_BYTES);
    const first = view.getUint32(at, true) * bits.length * 8;
    for (let bit = 0; bit < bits.length * 8; bit++) {
      if (!testBit(bits, bit)) continue;
      assert.ok(first + bit < sectors.length, "no bit lies past the end");
      sectors[first + bit] = 1;
    }
  }
  return sectors;
}

for (const name of STACKS) {
  const keepsLog = name.includes("log:");
  Deno.test(`${name}: any requests, faults and pauses read back as a model says`, () => {
    for (const seed of SEEDS) {
      const random = new Random(seed);
      const simulation = simulate(seed, seed % 3 === 0 ? 0 : 5);
      const device = simulation.open(name);
      const model = new Model();
      simulation.fault = () => random.chance(0.03) ? Errno.EIO : 0;
      for (let round = 1; round <= 12; round++) {
        burst(device, model, random, round);
        if (random.chance(0.3)) {
          device.pause();
          device.resume();
        }
      }
      readAll(device, model);
      if (keepsLog) assert.deepEqual(logged(device), model.changed, `log, seed ${seed}`);
      else assert.equal(device.vbd.writeLog, undefined);
      device.close();
      simulation.close();
    }
  });
}

Deno.test("bc: what the cache has is what the disk has, however reads and writes overlap", () => {
  for (const seed of SEEDS) {
    const random = new Random(seed);
    const simulation = simulate(seed);
    const device = simulation.open("bc:1:vhd:/disk.vhd");
    simulation.fault = () => random.chance(0.03) ? Errno.EIO : 0;
    for (let round = 1; round <= 40; round++) {
      for (let i = 0; i < 40; i++) {
        const { sector, count } = somePlace(random);
        if (random.chance(0.6)) device.read(sector, count);
        else if (random.chance(0.1)) device.zero(sector, count);
        else device.write(sector, stampedSectors(sector, count, round));
        for (let turns = random.below(3); turns > 0; turns--) simulation.scheduler.turn();
      }
      device.settle();
    }
    const cached = contents(device);
    device.pause();
    device.resume("vhd:/disk.vhd");
    assert.ok(Buffer.from(contents(device)).equals(cached), `seed ${seed}`);
    device.close();
    simulation.close();
  }
});

Deno.test("bc: what was read while it changed is not kept", () => {
  const simulation = simulate(1);
  const storage = simulation.disk;
  const base = simulation.open("vhd:/disk.vhd");
  base.write(0, stampedSectors(0, 16, 1));
  base.settle();
  base.close();
  snapshot("/child.vhd", { storage, parent: "/disk.vhd" });
  const device = simulation.open("bc:1:vhd:/child.vhd");
  device.write(0, stampedSectors(0, 8, 2));
  device.settle();
  simulation.hang("/disk.vhd", 60_000);
  const slow = device.read(0, 16);
  const quick = device.read(0, 8);
  simulation.runUntil(() => quick.errno !== null, "A read of the child");
  const write = device.write(0, stampedSectors(0, 8, 3));
  simulation.runUntil(() => write.errno !== null, "The write");
  assert.equal(slow.errno, null, "the parent has not answered");
  device.settle();
  assert.deepEqual(
    slow.data,
    Uint8Array.of(...stampedSectors(0, 8, 2), ...stampedSectors(8, 8, 1)),
  );
  assert.deepEqual(contentsOf(device, 0, 8), stampedSectors(0, 8, 3));
  device.close();
  simulation.close();
});

Deno.test("bc: the statistics tell of its hits, and hits cost no disk operation", () => {
  const simulation = simulate(1);
  const device = simulation.open("bc:1:vhd:/disk.vhd");
  device.write(0, stampedSectors(0, 256, 7));
  device.settle();
  const cache = () => device.vbd.statistics().images[0].cache;
  device.read(16, 32);
  device.settle();
  assert.deepEqual(cache(), { hits: 0, misses: 32 });
  const { operations } = simulation.context.queue.statistics;
  const again = device.read(20, 20);
  device.settle();
  assert.equal(simulation.context.queue.statistics.operations, operations);
  assert.equal(again.errno, 0);
  assert.deepEqual(again.data, stampedSectors(20, 20, 7));
  assert.deepEqual(cache(), { hits: 20, misses: 32 });
  // The start and the end are cached; the range between them is read in one piece.
  device.read(100, 8);
  device.settle();
  const wide = device.read(40, 68);
  device.settle();
  assert.deepEqual(wide.data, stampedSectors(40, 68, 7));
  assert.deepEqual(cache(), { hits: 20 + 8 + 8, misses: 32 + 8 + 52 });
  const { images } = device.vbd.statistics();
  assert.deepEqual(images.map(({ driver }) => driver.name), ["bc", "vhd"]);
  assert.deepEqual(images[0].hits, [36, 0]);
  assert.equal(images[1].cache, undefined);
  device.close();
  simulation.close();
});

Deno.test("log: cleared while a write is under way, it has that write again", () => {
  const simulation = simulate(1);
  const device = simulation.open("log:vhd:/disk.vhd");
  const changed = () => logged(device).reduce((sum, bit) => sum + bit, 0);
  device.write(100, stampedSectors(100, 8, 1));
  device.settle();
  const late = device.write(5000, stampedSectors(5000, 16, 2));
  simulation.scheduler.turn();
  assert.equal(late.errno, null, "the write is under way");
  assert.equal(changed(), 24);
  device.vbd.writeLog?.clear();
  assert.equal(changed(), 16);
  device.settle();
  device.vbd.writeLog?.clear();
  assert.equal(changed(), 0);
  device.read(5000, 16);
  device.settle();
  assert.equal(changed(), 0);
  device.close();
  assert.equal(device.vbd.writeLog, undefined);
  simulation.close();
});

Deno.test("log: a size that no disk has is refused each time, and the log stays", () => {
  const log = new WriteLog();
  const sink = { pieceDone() {}, extent: () => true, statusDone() {} };
  log.attach(sink, 2048);
  log.begin(0, 100, 8);
  for (const sectors of [2 ** 37 + 8, 2 ** 39, 2 ** 44, 2 ** 44]) {
    assert.throws(() => log.attach(sink, sectors), { code: "EFBIG" });
    assert.equal(log.sectors, 2048);
  }
  assert.equal(log.pages()[4 + 12], 0x0f);
  log.attach(sink, 2 ** 37);
  assert.equal(log.sectors, 2 ** 37);
  log.release();
});

Deno.test("log: sectors beyond 2^32 are noted where they are", () => {
  const log = new WriteLog();
  const sink = { pieceDone() {}, extent: () => true, statusDone() {} };
  log.attach(sink, 2 ** 33);
  log.begin(0, 2 ** 32 + 100, 8);
  const pages = log.pages();
  assert.equal(pages.length, LOG_PAGE_RECORD_BYTES);
  assert.equal(new DataView(pages.buffer).getUint32(0, true), 2 ** 32 / LOG_PAGE_SECTORS);
  assert.deepEqual([...pages.subarray(4 + 12, 4 + 14)], [0x0f, 0xf0]);
  log.release();
});

Deno.test("log: it outlasts a pause and a change of the image, also to a larger one", () => {
  const simulation = simulate(1);
  const storage = simulation.disk;
  createDynamic("/larger.vhd", { storage, sizeBytes: 64 << 20 });
  const device = simulation.open("log:vhd:/disk.vhd");
  device.write(DISK_SECTORS - 4, stampedSectors(DISK_SECTORS - 4, 4, 1));
  device.settle();
  device.pause();
  assert.equal(logged(device).length, DISK_SECTORS);
  assert.throws(() => device.resume("log:vhd:/missing.vhd"));
  device.resume("log:vhd:/larger.vhd");
  device.write(100_000, stampedSectors(100_000, 2, 1));
  device.settle();
  const bits = logged(device);
  assert.equal(bits.length, 64 * 2048);
  assert.deepEqual(
    Array.from(bits.keys()).filter((sector) => bits[sector] === 1),
    [DISK_SECTORS - 4, DISK_SECTORS - 3, DISK_SECTORS - 2, DISK_SECTORS - 1, 100_000, 100_001],
  );
  device.pause();
  device.resume("vhd:/larger.vhd");
  assert.equal(device.vbd.writeLog, undefined);
  device.close();
  simulation.close();
});

Deno.test("ram: a file's content to begin with; what is written goes with the device", () => {
  const simulation = simulate(1);
  const storage = simulation.disk;
  const file = storage.open("/disk.raw", "create-new");
  file.writeAt(new Uint8Array(stampedSectors(0, 3000, 5)), 0);
  file.writeAt(new Uint8Array(100).fill(1), 3000 * SECTOR_BYTES);
  const device = simulation.open("ram:/disk.raw");
  assert.equal(device.vbd.sectors, 3000);
  assert.deepEqual(contentsOf(device, 2990, 10), stampedSectors(2990, 10, 5));
  device.write(2995, stampedSectors(2995, 5, 6));
  device.zero(1, 2990);
  device.settle();
  device.pause();
  device.resume();
  assert.deepEqual(contentsOf(device, 2991, 4), stampedSectors(2991, 4, 5));
  assert.deepEqual(contentsOf(device, 2995, 5), stampedSectors(2995, 5, 6));
  assert.deepEqual(contentsOf(device, 1, 400), new Uint8Array(400 * SECTOR_BYTES));
  device.close();
  const again = simulation.open("ram:/disk.raw");
  assert.deepEqual(contentsOf(again, 1, 400), stampedSectors(1, 400, 5));
  again.close();
  simulation.close();
});

function contentsOf(device: SimulatedDevice, sector: number, count: number): Uint8Array | null {
  const outcome = device.read(sector, count);
  device.settle();
  return outcome.data;
}

Deno.test("names of images in memory and of stacks that make no sense are refused", () => {
  const simulation = simulate(1);
  const refusals: [string, RegExp][] = [
    ["ram:0", /ram:0 with 0 bytes/],
    ["ram:16385", /from one sector to 16384 MiB\): .*\(ENOMEM\)/],
    ["ram:/missing", /\/missing: .*\(ENOENT\)/],
    ["log:/disk.vhd", /TYPE:PATH/],
    ["log:nosuch:/disk.vhd", /"nosuch" \(types: .*bc.*log.*ram.*\)/],
    ["log:vhd:/missing.vhd", /\/missing\.vhd/],
    ["bc:0:vhd:/disk.vhd", /from 1 to 4096 MiB/],
    ["bc:64:", /TYPE:PATH/],
    ["log:log:vhd:/disk.vhd", /only one/],
  ];
  for (const [name, reason] of refusals) assert.throws(() => simulation.open(name), reason, name);
  simulation.close();
});
