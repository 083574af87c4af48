/**
 * A disk with a log of changed blocks: each write, zero, fill and discard has its bits before it
 * reaches the image, through pauses and snapshots, and no other block has one.
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { CBT_BLOCK_BYTES } from "../../src/cbt/cbt_log.ts";
import {
  changeCbtLog,
  coalesceCbtLogs,
  createCbtLog,
  readCbtHeader,
  readCbtLog,
} from "../../src/cbt/log_file.ts";
import { describeExport } from "../../src/frontend/nbd/connections.ts";
import type { DiskOperation } from "../../src/testing/simulated_disk.ts";
import { Random } from "../../src/testing/random.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  assertHolds,
  SECTOR_BYTES,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
} from "../support/sim.ts";

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

type Change = "write" | "zero" | "fill" | "discard";

function start(device: SimulatedDevice, change: Change, sector: number, count: number) {
  if (change !== "write") return device[change](sector, count);
  return device.write(sector, stampedSectors(sector, count, 7));
}

function isSetInMemory({ vbd }: SimulatedDevice, block: number): boolean {
  return ((vbd.changedBits?.[block >> 3] ?? 0) >> (block & 7) & 1) === 1;
}

for (const kind of ["write", "zero", "fill", "discard"] as const) {
  for (const errno of [Errno.EIO, Errno.ENOSPC]) {
    Deno.test(`cbt: a ${kind} waits while its bit cannot be written, error ${errno}`, () => {
      const simulation = prepared();
      const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
      device.write(0, stampedSectors(0, 1, 1));
      // What is to be changed has a block in the image, so that each kind goes to the disk.
      device.write(9 * BLOCK_SECTORS, stampedSectors(9 * BLOCK_SECTORS, 8, 1));
      device.settle();
      device.pause();
      createCbtLog(LOG, { storage: simulation.disk, sizeBytes: DISK_BYTES });
      device.resume();
      const { scheduler, disk } = simulation;
      const toImage: DiskOperation[] = [];
      let failed = 0;
      let isBroken = true;
      disk.beforeOperation = (operation) => {
        const { kind, path } = operation;
        const changes = kind === "write" || kind === "punch";
        if (path === "/a.vhd" && changes) toImage.push(operation);
        if (path !== LOG || !changes || !isBroken) return 0;
        failed++;
        return errno;
      };
      const sector = 9 * BLOCK_SECTORS;
      const outcome = start(device, kind, sector, 8);
      const untilMs = scheduler.nowMs() + 10_000;
      simulation.runUntil(() => scheduler.nowMs() >= untilMs, "Ten seconds");
      assert.equal(outcome.errno, null);
      assert.ok(failed > 5, `${failed} tries`);
      assert.equal(toImage.length, 0);
      assert.ok(!isSetInMemory(device, 9));
      assert.deepEqual(changedIn(simulation), []);
      isBroken = false;
      device.settle();
      assert.equal(outcome.errno, 0);
      assert.ok(toImage.length > 0);
      assert.ok(isSetInMemory(device, 9));
      assert.deepEqual(changedIn(simulation), [9]);
      if (kind === "write") assertHolds(device, sector, 8, 7);
      disk.beforeOperation = null;
      device.close();
      assert.deepEqual(changedIn(simulation), [9]);
      simulation.close();
    });
  }
}

Deno.test("cbt: an error that is not tried again ends the write; its bit and the image stay", () => {
  const simulation = prepared();
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  let toImage = 0;
  simulation.disk.beforeOperation = ({ kind, path }) => {
    if (kind === "write" && path !== LOG) toImage++;
    return kind === "write" && path === LOG ? Errno.EROFS : 0;
  };
  const outcome = device.write(0, stampedSectors(0, 1, 1));
  device.settle();
  assert.deepEqual([outcome.errno, toImage], [Errno.EROFS, 0]);
  assert.ok(!isSetInMemory(device, 0));
  simulation.disk.beforeOperation = null;
  device.close();
  assert.deepEqual(changedIn(simulation), []);
  simulation.close();
});

Deno.test("cbt: the log has all bits before the first write to the image, and each is written once", () => {
  const simulation = prepared();
  const random = new Random(4);
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  const known = new Set<number>();
  let [toImage, toLog] = [0, 0];
  let wanted = new Set<number>();
  simulation.disk.beforeOperation = ({ kind, path, offsetBytes, lengthBytes }) => {
    if (kind !== "write" && kind !== "punch") return 0;
    if (path === "/a.vhd") {
      toImage++;
      const bits = changedIn(simulation);
      assert.deepEqual([...wanted].filter((block) => !bits.includes(block)), []);
      return 0;
    }
    toLog++;
    const fresh = [...wanted].filter((block) => !known.has(block)).map((block) => block >> 3);
    assert.deepEqual(
      [offsetBytes, lengthBytes],
      [48 + Math.min(...fresh), 1 + Math.max(...fresh) - Math.min(...fresh)],
    );
    for (const block of wanted) known.add(block);
    return 0;
  };
  for (let i = 0; i < 200; i++) {
    wanted = new Set();
    change(device, random, wanted);
    device.settle();
  }
  assert.ok(toImage > 100 && toLog > 20 && toLog < 180, `${toImage} and ${toLog}`);
  toLog = 0;
  simulation.disk.beforeOperation = ({ path }) => {
    if (path === LOG) toLog++;
    return 0;
  };
  const fillAll = (): number => {
    for (let block = 0; block < BLOCKS; block += 4) device.fill(block * BLOCK_SECTORS, 512);
    device.settle();
    return toLog;
  };
  const after = fillAll();
  assert.equal(changedIn(simulation).length, BLOCKS);
  // What has its bits costs no call.
  toLog = after;
  assert.equal(fillAll(), after);
  simulation.disk.beforeOperation = null;
  device.close();
  simulation.close();
});

Deno.test("cbt: bits that a failed sync lost, and that cannot be written again, are in the next log", () => {
  const simulation = prepared();
  const { disk } = simulation;
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  device.write(0, stampedSectors(0, 1, 1));
  device.settle();
  let [syncs, writes] = [0, 0];
  let isDropping = false;
  disk.beforeOperation = ({ kind, path }) => {
    if (path !== LOG) return 0;
    if (kind === "sync") {
      syncs++;
      return Errno.EIO;
    }
    if (kind !== "write" || syncs === 0 || isDropping) return 0;
    if (++writes > 1) return Errno.EIO;
    // The kernel has dropped the pages that it could not write.
    const file = disk.open(LOG, "write", { unlocked: true });
    isDropping = true;
    file.writeAt(new Uint8Array(BLOCKS / 8), 48);
    isDropping = false;
    file.close();
    return Errno.EIO;
  };
  let errno = 0;
  device.vbd.pause((error) => errno = error?.errno ?? -1);
  simulation.runUntil(() => errno !== 0, "The pause");
  assert.deepEqual([errno, device.vbd.phase, syncs, writes], [Errno.EIO, "paused", 1, 2]);
  assert.deepEqual(changedIn(simulation), []);
  disk.beforeOperation = null;
  device.resume();
  assert.ok(isSetInMemory(device, 0));
  assert.deepEqual(changedIn(simulation), [0]);
  device.close();
  assert.deepEqual(changedIn(simulation), [0]);
  simulation.close();
});

Deno.test("cbt: the bits of a log that was cut meanwhile are there again after the close", () => {
  const simulation = prepared();
  const device = simulation.open("vhd:/a.vhd", { changedBlocks: LOG });
  const write = (block: number): void => {
    device.write(block * BLOCK_SECTORS, stampedSectors(block * BLOCK_SECTORS, 1, 1));
    device.settle();
  };
  write(1);
  write(BLOCKS - 1);
  const file = simulation.disk.open(LOG, "write", { unlocked: true });
  file.truncate(48);
  file.close();
  write(100);
  device.close();
  assert.deepEqual(changedIn(simulation), [1, 100, BLOCKS - 1]);
  simulation.close();
});
