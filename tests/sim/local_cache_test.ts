/**
 * A local cache keeps in an image what is read from the images below it, and never writes over what a
 * client wrote; with a secondary image that is a layer of the same chain, as sm sets it up.
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Random } from "../../src/testing/random.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { burst, DISK_MIB, DISK_SECTORS, Model, readAll } from "../support/disk_model.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1024 * 1024;
const LEAF = "/leaf.vhdcache";
const SHARED = "/shared.vhd";

interface World {
  readonly simulation: Simulation;
  readonly model: Model;
  readonly random: Random;
}

/** A base with data, a new leaf on it, and a shared leaf on it that has data too. */
function prepared(seed: number, powerCuts = false): World {
  const simulation = new Simulation({ seed, latencyMs: 2, powerCuts });
  const random = new Random(seed);
  const model = new Model();
  const storage = simulation.disk;
  createDynamic("/base.vhd", { storage, sizeBytes: DISK_MIB * MIB });
  const base = simulation.open("vhd:/base.vhd");
  for (let stamp = 1; stamp <= 2; stamp++) burst(base, model, random, stamp);
  base.close();
  const raw = storage.open("/base.raw", "create");
  raw.truncate(DISK_MIB * MIB);
  raw.close();
  const copy = simulation.open("aio:/base.raw");
  const source = simulation.open("vhd:/base.vhd", { readOnly: true });
  for (let sector = 0; sector < DISK_SECTORS; sector += 512) {
    const outcome = source.read(sector, 512);
    source.settle();
    if (outcome.data !== null) copy.write(sector, outcome.data);
    copy.settle();
  }
  source.close();
  copy.close();
  for (const path of [LEAF, SHARED]) snapshot(path, { storage, parent: "/base.vhd" });
  return { simulation, model, random };
}

/** Reads and changes at once, which meet each other; no two changes meet. */
function traffic(device: SimulatedDevice, world: World, stamp: number): void {
  const { model, random } = world;
  const changes: { sector: number; count: number }[] = [];
  const area = random.below(DISK_SECTORS - 4096);
  for (let i = 0; i < 50; i++) {
    const count = 1 + random.below(120);
    const sector = area + random.below(1500);
    if (random.chance(0.6)) device.read(sector, count);
    else if (!changes.some((each) => meets(each, sector, count))) {
      changes.push({ sector, count });
      const isWrite = random.chance(0.8);
      if (isWrite) device.write(sector, stampedSectors(sector, count, stamp));
      else device.zero(sector, count);
      model.put(sector, count, isWrite ? stamp : 0);
    }
    if (random.chance(0.2)) device.simulation.scheduler.turn();
  }
  device.settle();
}

function meets(each: { sector: number; count: number }, sector: number, count: number): boolean {
  return each.sector < sector + count && sector < each.sector + each.count;
}

/** Waits for the stores that are under way. */
function quiet(device: SimulatedDevice): void {
  const { simulation, vbd } = device;
  simulation.runUntil(() => vbd.requests.outstanding === 0, "A store");
}

/** Reads the disk until the image has all of it; a busy disk does not keep all that is read at once. */
function readUntilKept(device: SimulatedDevice, model: Model): number {
  for (let round = 0; round < 20; round++) {
    const before = readBelow(device);
    readAll(device, model);
    quiet(device);
    if (readBelow(device) === before) return before;
  }
  throw new Error("The image lacks sectors that were read twenty times");
}

function readBelow(device: SimulatedDevice): number {
  return device.vbd.statistics().images.find(({ driver }) => driver.name === "lc")?.hits[0] ?? -1;
}

const SEEDS = [1, 2, 3, 4, 5, 6];

for (const seed of SEEDS) {
  Deno.test(`local cache: a client's data is never written over, seed ${seed}`, () => {
    const world = prepared(seed);
    const { simulation, model } = world;
    const device = simulation.open(`vhd:${LEAF}`, { localCache: true });
    for (let stamp = 3; stamp < 15; stamp++) {
      traffic(device, world, stamp);
      if (stamp % 4 !== 0) continue;
      device.pause();
      device.resume();
    }
    assert.ok(readUntilKept(device, model) > 0);
    device.close();
    const { disk: storage } = simulation;
    assert.deepEqual(checkImage(LEAF, { storage }).findings, []);
    const reader = simulation.open(`vhd:${LEAF}`, { readOnly: true });
    readAll(reader, model);
    reader.close();
    assert.equal(simulation.disk.openFiles, 0);
    simulation.close();
  });

  Deno.test(`local cache: a full image keeps nothing, and the disk goes on, seed ${seed}`, () => {
    const world = prepared(seed);
    const { simulation, model } = world;
    const device = simulation.open(`vhd:${LEAF}`, { localCache: true });
    simulation.disk.beforeOperation = ({ kind, path }) =>
      kind === "truncate" && path === LEAF ? Errno.ENOSPC : 0;
    readAll(device, model);
    quiet(device);
    readAll(device, model);
    const { fail } = device.vbd.statistics().images[0];
    assert.deepEqual(fail, [0, 0]);
    const told = simulation.log.filter((line) => line.includes("it has no room"));
    assert.equal(told.length, 1, simulation.log.join("\n"));
    simulation.disk.beforeOperation = null;
    // A minute later there is room.
    const untilMs = simulation.scheduler.nowMs() + 61_000;
    simulation.scheduler.addTimer(61_000, () => {});
    simulation.runUntil(() => simulation.scheduler.nowMs() >= untilMs, "A minute");
    readUntilKept(device, model);
    device.close();
    simulation.close();
  });

  Deno.test(`IntelliCache: a new leaf over a shared one, which has all writes, seed ${seed}`, () => {
    const world = prepared(seed);
    const { simulation, model, random } = world;
    const shared = simulation.open(`vhd:${SHARED}`);
    burst(shared, model, random, 3);
    shared.close();
    const device = simulation.open(`vhd:${LEAF}`, {
      localCache: true,
      secondary: `vhd:${SHARED}`,
      findParent: () => "aio:/base.raw",
    });
    assert.deepEqual(
      device.vbd.statistics().images.map(({ name, driver }) => [driver.name, name]),
      [["vhd", LEAF], ["lc", LEAF], ["vhd", SHARED], ["aio", "/base.raw"]],
    );
    for (let stamp = 4; stamp < 10; stamp++) traffic(device, world, stamp);
    burst(device, model, random, 10);
    readAll(device, model);
    if (seed % 2 === 0) {
      simulation.disk.beforeOperation = ({ kind, path }) =>
        kind === "truncate" && path === LEAF ? Errno.ENOSPC : 0;
    }
    for (let stamp = 11; stamp < 16; stamp++) {
      burst(device, model, random, stamp);
      traffic(device, world, stamp);
      device.pause();
      device.resume();
    }
    readAll(device, model);
    assert.equal(device.vbd.statistics().nbd_mirror_failed, 0);
    device.close();
    simulation.disk.beforeOperation = null;
    // sm deletes the leaf: the shared one has all.
    const alone = simulation.open(`vhd:${SHARED}`, { readOnly: true });
    readAll(alone, model);
    alone.close();
    assert.equal(simulation.disk.openFiles, 0);
    simulation.close();
  });

  Deno.test(`IntelliCache: what is flushed is on the shared leaf after a cut, seed ${seed}`, () => {
    const world = prepared(seed, true);
    const { simulation, model, random } = world;
    const device = simulation.open(`vhd:${LEAF}`, { localCache: true, secondary: `vhd:${SHARED}` });
    for (let stamp = 3; stamp < 6; stamp++) {
      burst(device, model, random, stamp);
      traffic(device, world, stamp);
    }
    const flushed = device.flush();
    device.settle();
    assert.equal(flushed.errno, 0);
    const after = new Simulation({ seed, latencyMs: 2 }, simulation);
    for (const path of [SHARED, LEAF]) {
      const alone = after.open(`vhd:${path}`, { readOnly: true });
      readAll(alone, model);
      alone.close();
    }
    after.close();
  });
}

Deno.test("local cache: a snapshot of a leaf that reads another disk reads the old leaf", () => {
  const { simulation, model } = prepared(1);
  const { disk: storage } = simulation;
  const device = simulation.open(`vhd:${LEAF}`, { findParent: () => "aio:/base.raw" });
  device.write(0, stampedSectors(0, 300, 9));
  model.put(0, 300, 9);
  device.settle();
  device.pause();
  snapshot("/new.vhd", { storage, parent: LEAF });
  device.resume("vhd:/new.vhd");
  readAll(device, model);
  device.pause();
  device.resume();
  readAll(device, model);
  device.close();
  simulation.close();
});

Deno.test("IntelliCache: a shared leaf with data is not left behind, an empty one may be", () => {
  for (const hasData of [true, false]) {
    const { simulation } = prepared(1);
    if (hasData) {
      const shared = simulation.open(`vhd:${SHARED}`);
      shared.write(8, stampedSectors(8, 8, 7));
      shared.settle();
      shared.close();
    }
    const device = simulation.open(`vhd:${LEAF}`, { secondary: `vhd:${SHARED}` });
    device.write(0, stampedSectors(0, 8, 8));
    device.settle();
    const without = (name: string | null): number => {
      let errno = -1;
      device.vbd.resume(name, (error) => errno = error?.errno ?? 0, { secondary: null });
      simulation.runUntil(() => errno >= 0, "A resume");
      return errno;
    };
    device.pause();
    device.resume();
    device.pause();
    assert.equal(without(null), hasData ? Errno.EBUSY : 0);
    if (hasData) assert.equal(without(`vhd:${SHARED}`), 0);
    assertHolds(device, 0, 8, 8);
    if (hasData) assertHolds(device, 8, 8, 7);
    device.close();
    simulation.close();
  }
});

Deno.test("local cache: an error of the shared leaf is the disk's, and is tried again", () => {
  const { simulation } = prepared(1);
  const device = simulation.open(`vhd:${LEAF}`, { secondary: `vhd:${SHARED}` });
  let left = 3;
  simulation.disk.beforeOperation = ({ kind, path }) =>
    kind === "write" && path === SHARED && left-- > 0 ? Errno.EIO : 0;
  const outcome = device.write(0, stampedSectors(0, 300, 9));
  device.settle();
  assert.equal(outcome.errno, 0);
  const { nbd_mirror_failed, retries } = device.vbd.statistics();
  assert.equal(nbd_mirror_failed, 0);
  assert.ok(retries > 0);
  device.close();
  const alone = simulation.open(`vhd:${SHARED}`, { readOnly: true });
  assertHolds(alone, 0, 300, 9);
  alone.close();
  simulation.close();
});

Deno.test("local cache: another disk cannot stand for the parent of an image without one", () => {
  const { simulation } = prepared(1);
  const findParent = (): string => "aio:/base.raw";
  const wanted = { code: "EINVAL", message: /has no parent/ };
  for (const name of ["vhd:/base.vhd", "aio:/base.raw"]) {
    assert.throws(() => simulation.open(name, { findParent }), wanted);
  }
  simulation.runUntil(() => simulation.disk.openFiles === 0, "Closing what was opened");
  const device = simulation.open("vhd:/base.vhd", { localCache: true });
  device.close();
  simulation.close();
});
