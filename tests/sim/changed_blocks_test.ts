/**
 * A disk with a log of changed blocks: each write, zero, fill and discard has its bits before it
 * reaches the image, through pauses and snapshots, and no other block has one.
 */
import assert from "node:assert/strict";
import { CBT_BLOCK_BYTES } from "../../src/cbt/cbt_log.ts";
import {
  changeCbtLog,
  coalesceCbtLogs,
  createCbtLog,
  readCbtHeader,
  readCbtLog,
} from "../../src/cbt/log_file.ts";
import { describeExport } from "../../src/frontend/nbd/connections.ts";
import { Random } from "../../src/testing/random.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { SECTOR_BYTES, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 24 * MIB;
const BLOCKS = DISK_BYTES / CBT_BLOCK_BYTES;
const BLOCK_SECTORS = CBT_BLOCK_BYTES / SECTOR_BYTES;
const LOG = "/disk.cbtlog";

function prepared(seed = 1): Simulation {
  const simulation = new Simulation({ seed, latencyMs: 2 });
  createDynamic("/a.vhd", { storage: simulation.disk, sizeBytes: DISK_BYTES });
  createCbtLog(LOG, { storage: simulation.disk, sizeBytes: DISK_BYTES });
  return simulation;
}

function changedIn(simulation: Simulation, path = LOG): number[] {
  const { bits } = readCbtLog(path, { storage: simulation.disk });
  return Array.from({ length: BLOCKS }, (_, block) => block)
    .filter((block) => ((bits[block >> 3] >> (block & 7)) & 1) === 1);
}

function change(device: SimulatedDevice, random: Random, changed: Set<number>): void {
  const count = 1 + random.below(400);
  const sector = random.below(DISK_BYTES / SECTOR_BYTES - count);
  const first = Math.floor(sector / BLOCK_SECTORS);
  const last = Math.floor((sector + count - 1) / BLOCK_SECTORS);
  for (let block = first; block <= last; block++) changed.add(block);
  switch (random.below(4)) {
    case 0:
      return void device.write(sector, stampedSectors(sector, count, 1));
    case 1:
      return void device.zero(sector, count);
    case 2:
      return void device.fill(sector, count);
    default:
      return void device.discard(sector, count);
  }
}

for (const seed of [1, 2, 3]) {
  Deno.test(`cbt: exactly the changed blocks have bits, through pauses, seed ${seed}`, () => {
    const simulation = prepared(seed);
    const random = new Random(seed);
    const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
    const changed = new Set<number>();
    for (let round = 0; round < 6; round++) {
      for (let i = 0; i < 6; i++) change(device, random, changed);
      device.read(random.below(1000), 8);
      device.settle();
      if (round % 2 === 0) continue;
      device.pause();
      if (round === 3) snapshot("/b.vhd", { storage: simulation.disk, parent: "/a.vhd" });
      device.resume(round >= 3 ? "vhd:/b.vhd" : null);
    }
    device.close();
    assert.deepEqual(changedIn(simulation), [...changed].sort((a, b) => a - b));
    simulation.close();
  });
}

Deno.test("cbt: bits are set before a write ends, and stay when the process dies", () => {
  const simulation = prepared();
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  device.write(5 * BLOCK_SECTORS - 1, stampedSectors(5 * BLOCK_SECTORS - 1, 2, 1));
  simulation.connection.die();
  assert.deepEqual(changedIn(simulation), [4, 5]);
  device.vbd.requests.memory.release();
  simulation.disk.close();
});

Deno.test("cbt: a disk resumes with another log, or with none", () => {
  const simulation = prepared();
  createCbtLog("/second.cbtlog", { storage: simulation.disk, sizeBytes: DISK_BYTES });
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  const write = (block: number): void => {
    const sector = block * BLOCK_SECTORS;
    device.write(sector, stampedSectors(sector, 1, 1));
    device.settle();
  };
  const resume = (changedBlocks: string | null): number => {
    let errno = -1;
    device.pause();
    device.vbd.resume(null, (error) => errno = error?.errno ?? 0, { changedBlocks });
    return errno;
  };
  write(1);
  assert.equal(resume("/second.cbtlog"), 0);
  write(2);
  assert.equal(resume(null), 0);
  write(3);
  device.pause();
  device.resume();
  write(4);
  device.close();
  assert.deepEqual(changedIn(simulation), [1]);
  assert.deepEqual(changedIn(simulation, "/second.cbtlog"), [2]);
  simulation.close();
});

Deno.test("cbt: NBD clients that come during a pause are told that there is a log", () => {
  const simulation = prepared();
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  assert.ok(describeExport(device.vbd).hasLog);
  device.pause();
  assert.ok(describeExport(device.vbd).hasLog);
  device.vbd.resume(null, (error) => assert.equal(error, null), { changedBlocks: null });
  assert.ok(!describeExport(device.vbd).hasLog);
  device.close();
  simulation.close();
});

Deno.test("cbt: a log that cannot be used refuses the open and the unpause with EPERM", () => {
  const simulation = prepared();
  const { disk: storage } = simulation;
  createCbtLog("/larger.cbtlog", { storage, sizeBytes: DISK_BYTES + CBT_BLOCK_BYTES });
  createCbtLog("/smaller.cbtlog", { storage, sizeBytes: DISK_BYTES - CBT_BLOCK_BYTES });
  createCbtLog("/short.cbtlog", { storage, sizeBytes: DISK_BYTES });
  const file = storage.open("/short.cbtlog", "write");
  file.truncate(60);
  file.close();
  const bad = ["/missing.cbtlog", "/larger.cbtlog", "/smaller.cbtlog", "/short.cbtlog", "/a.vhd"];
  for (const changedBlocks of bad) {
    const wanted = {
      code: "EPERM",
      message: /Cannot track changed blocks \(.*: Operation not permitted \(EPERM\)/,
    };
    assert.throws(() => simulation.open("vhd:/a.vhd", { changedBlocks }), wanted, changedBlocks);
  }
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  for (const changedBlocks of bad) {
    device.pause();
    let errno = 0;
    device.vbd.resume(null, (error) => errno = error?.errno ?? 0, { changedBlocks });
    assert.equal(errno, 1, changedBlocks);
    // The disk is still paused and opens with the log that it had.
    device.resume();
    device.write(0, stampedSectors(0, 1, 1));
    device.settle();
  }
  device.close();
  assert.deepEqual(changedIn(simulation), [0]);
  simulation.close();
});

Deno.test("cbt: after a log that cannot be used, an image is free at once", () => {
  const simulation = prepared();
  const storage = simulation.disk;
  createFixed("/fixed.vhd", { storage, sizeBytes: DISK_BYTES });
  for (const name of ["vhd:/a.vhd", "vhd:/fixed.vhd", "aio:/fixed.vhd"]) {
    const sectors = DISK_BYTES / SECTOR_BYTES;
    const device = simulation.open(name);
    device.pause();
    let errno = 0;
    device.vbd.resume(null, (error) => errno = error?.errno ?? 0, { changedBlocks: "/missing" });
    assert.equal(errno, 1, name);
    storage.open(name.slice(4), "write").close();
    device.resume();
    assert.ok(device.vbd.geometry.sectors >= sectors);
    device.close();
  }
  simulation.close();
});

Deno.test("cbt: beside a running disk all but bits and size of its log can be changed", () => {
  const simulation = prepared();
  const { disk: storage } = simulation;
  createCbtLog("/before.cbtlog", { storage, sizeBytes: DISK_BYTES });
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  const write = (block: number): void => {
    device.write(block * BLOCK_SECTORS, stampedSectors(block * BLOCK_SECTORS, 1, 1));
    device.settle();
  };
  write(2);
  const [parent, child] = [1, 2].map((byte) => new Uint8Array(16).fill(byte));
  changeCbtLog(LOG, { storage, parent, child });
  write(3);
  changeCbtLog(LOG, { storage, consistent: 7 });
  write(4);
  const busy = { code: "EBUSY" };
  assert.throws(() => changeCbtLog(LOG, { storage, sizeBytes: DISK_BYTES * 2 }), busy);
  assert.throws(() => createCbtLog(LOG, { storage, sizeBytes: DISK_BYTES }), busy);
  const logs = { storage, parent: "/before.cbtlog", child: LOG };
  assert.throws(() => coalesceCbtLogs(logs), busy);
  const wanted = { parent, child, consistent: 7, sizeBytes: DISK_BYTES };
  assert.deepEqual(readCbtHeader(LOG, { storage }), wanted);
  device.pause();
  coalesceCbtLogs(logs);
  device.resume();
  device.close();
  assert.deepEqual(readCbtHeader(LOG, { storage }), wanted);
  assert.deepEqual(changedIn(simulation), [2, 3, 4]);
  simulation.close();
});

for (const ends of ["close", "pause"] as const) {
  Deno.test(`cbt: a power cut after a ${ends} takes no bit, and no complete log lacks one`, () => {
    for (let seed = 1; seed <= 20; seed++) {
      const simulation = new Simulation({ seed, latencyMs: 2, powerCuts: true });
      const { disk: storage } = simulation;
      createDynamic("/a.vhd", { storage, sizeBytes: DISK_BYTES });
      createCbtLog(LOG, { storage, sizeBytes: DISK_BYTES });
      const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
      const random = new Random(seed);
      const changed = new Set<number>();
      for (let i = 0; i < 6; i++) change(device, random, changed);
      device.settle();
      device[ends]();
      let isCut = false;
      storage.beforeOperation = ({ kind }) => {
        if (kind !== "sync" || seed % 2 === 0) return 0;
        // The mark of a complete log is written and not synced.
        storage.cutPower();
        isCut = true;
        return 0;
      };
      try {
        changeCbtLog(LOG, { storage, consistent: 1 });
      } catch (error) {
        assert.ok(isCut, String(error));
      }
      const next = new Simulation({ latencyMs: 2 }, simulation);
      assert.deepEqual(changedIn(next), [...changed].sort((a, b) => a - b), `seed ${seed}`);
      if (ends === "pause") device.vbd.requests.memory.release();
      next.close();
    }
  });
}

Deno.test("cbt: a power cut under a running disk leaves a log that opens and says nothing wrong", () => {
  let [lost, kept] = [0, 0];
  for (let seed = 1; seed <= 20; seed++) {
    const simulation = new Simulation({ seed, latencyMs: 2, powerCuts: true });
    const { disk: storage } = simulation;
    createDynamic("/a.vhd", { storage, sizeBytes: DISK_BYTES });
    createCbtLog(LOG, { storage, sizeBytes: DISK_BYTES });
    const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
    const changed = new Set<number>();
    for (let i = 0; i < 6; i++) change(device, new Random(seed * 100 + i), changed);
    const next = new Simulation({ latencyMs: 2 }, simulation);
    const found = changedIn(next);
    assert.ok(found.every((block) => changed.has(block)), `seed ${seed}`);
    if (found.length < changed.size) lost++;
    else kept++;
    assert.equal(readCbtHeader(LOG, { storage }).consistent, 0);
    const again = next.open("vhd:/a.vhd", { changedBlocks: LOG });
    again.close();
    device.vbd.requests.memory.release();
    next.close();
  }
  // The simulated disk loses bits that were not synced, and keeps them.
  assert.ok(lost > 0 && kept > 0, `${lost} and ${kept}`);
});

Deno.test("cbt: an error of the sync of the log is told, and the disk runs on after a pause", () => {
  const simulation = prepared();
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  device.write(0, stampedSectors(0, 1, 1));
  device.settle();
  simulation.disk.beforeOperation = ({ kind, path }) => kind === "sync" && path === LOG ? 5 : 0;
  let errno = 0;
  device.vbd.pause((error) => errno = error?.errno ?? -1);
  simulation.runUntil(() => errno !== 0, "The pause");
  assert.equal(errno, 5);
  assert.equal(device.vbd.phase, "open");
  simulation.disk.beforeOperation = null;
  device.write(BLOCK_SECTORS, stampedSectors(BLOCK_SECTORS, 1, 1));
  device.settle();
  device.close();
  assert.deepEqual(changedIn(simulation), [0, 1]);
  simulation.close();
});
