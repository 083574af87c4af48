/**
 * A disk with a secondary image: what is acknowledged is on both; a full image hands over to the
 * secondary one; a secondary image that fails or hangs costs the guest nothing but a short wait.
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { aioDriver } from "../../src/driver/aio.ts";
import type { DriverType, ImageDriver } from "../../src/driver/driver.ts";
import { vhdDriver } from "../../src/driver/vhd/vhd_driver.ts";
import { Random } from "../../src/testing/random.ts";
import type { DiskOperation } from "../../src/testing/simulated_disk.ts";
import { type OpenOptions, type ResumeOptions, Vbd } from "../../src/vbd/vbd.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { burst, DISK_MIB, DISK_SECTORS, Model, readAll } from "../support/disk_model.ts";
import {
  assertHolds,
  SECTOR_BYTES,
  SimulatedDevice,
  Simulation,
  type SimulationOptions,
  stampedSectors,
} from "../support/sim.ts";

const MIB = 1024 * 1024;
const LEAF = "/leaf.vhd";

/** A leaf with a parent, and two images that can be its secondary one. */
function prepared(seed: number, options: SimulationOptions = {}): Simulation {
  const simulation = new Simulation({ seed, latencyMs: 2, ...options });
  const storage = simulation.disk;
  createDynamic("/base.vhd", { storage, sizeBytes: DISK_MIB * MIB });
  snapshot(LEAF, { storage, parent: "/base.vhd", keepEmptyParent: true });
  makeRaw(simulation, "/raw", DISK_MIB * MIB);
  makeRaw(simulation, "/other", DISK_MIB * MIB);
  makeRaw(simulation, "/small", MIB);
  return simulation;
}

function makeRaw({ disk }: Simulation, path: string, sizeBytes: number): void {
  const file = disk.open(path, "create");
  file.truncate(sizeBytes);
  file.close();
}

/** Makes the image full: it has room for what it has, and for no new block. */
function fill({ disk }: Simulation, path = LEAF): void {
  disk.beforeOperation = (operation) => isGrowth(operation, path) ? Errno.ENOSPC : 0;
}

function isGrowth({ kind, path }: DiskOperation, full: string): boolean {
  return kind === "truncate" && path === full;
}

function resume(device: SimulatedDevice, name: string | null, changes: ResumeOptions): number {
  let errno = -1;
  device.vbd.resume(name, (error) => errno = error?.errno ?? 0, changes);
  device.simulation.runUntil(() => errno >= 0, "A resume");
  return errno;
}

/** Reads an image alone, and compares it. */
function holds(simulation: Simulation, name: string, model: Model): void {
  const device = simulation.open(name, { readOnly: true });
  readAll(device, model);
  device.close();
}

const SEEDS = [1, 2, 3, 4];

for (const seed of SEEDS) {
  Deno.test(`mirror: both images have all writes, through pauses, seed ${seed}`, () => {
    const simulation = prepared(seed);
    const random = new Random(seed);
    const model = new Model();
    const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw" });
    for (let round = 1; round <= 4; round++) {
      burst(device, model, random, round);
      device.pause();
      device.resume();
    }
    readAll(device, model);
    const { nbd_mirror_failed, FIXME_enospc_redirect_count, images } = device.vbd.statistics();
    assert.deepEqual([nbd_mirror_failed, FIXME_enospc_redirect_count], [0, 0]);
    assert.deepEqual(images.map(({ name }) => name), [LEAF, "/raw", "/base.vhd"]);
    device.close();
    holds(simulation, `vhd:${LEAF}`, model);
    holds(simulation, "aio:/raw", model);
    assert.equal(simulation.disk.openFiles, 0);
    simulation.close();
  });

  for (const standby of [false, true]) {
    const what = standby ? "standby" : "mirror";
    Deno.test(`${what}: a full image hands over, seed ${seed}`, () => {
      const simulation = prepared(seed);
      const random = new Random(seed);
      const model = new Model();
      const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw", standby });
      let told = 0;
      device.vbd.whenSecondaryChanged = () => told++;
      device.write(300, stampedSectors(300, 400, 1));
      model.put(300, 400, 1);
      device.settle();
      fill(simulation);
      for (let round = 2; round <= 5; round++) {
        burst(device, model, random, round);
        readAll(device, model);
        device.pause();
        device.resume();
      }
      const { FIXME_enospc_redirect_count, images, retries } = device.vbd.statistics();
      assert.ok(FIXME_enospc_redirect_count > 0);
      assert.equal(retries, 0);
      assert.equal(told, 1);
      assert.deepEqual(images.map(({ name }) => name), ["/raw", LEAF, "/base.vhd"]);
      assertStatusIsSafe(device, model);
      assert.equal(device.flush().errno ?? device.settle(), undefined);
      device.close();
      assert.equal(simulation.disk.openFiles, 0);
      simulation.close();
    });
  }

  Deno.test(`mirror: a secondary image that fails is left, seed ${seed}`, () => {
    const simulation = prepared(seed);
    const random = new Random(seed);
    const model = new Model();
    const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw" });
    burst(device, model, random, 1);
    let left = random.below(30);
    simulation.disk.beforeOperation = ({ kind, path }) =>
      path === "/raw" && (kind === "write" || kind === "sync") && left-- <= 0
        ? [Errno.EIO, Errno.ENOSPC][random.below(2)]
        : 0;
    for (let round = 2; round <= 3; round++) burst(device, model, random, round);
    assert.equal(device.vbd.statistics().nbd_mirror_failed, 1);
    assert.equal(device.vbd.statistics().retries, 0);
    // It lacks writes, so that no later resume takes it up again.
    device.pause();
    device.resume();
    assert.equal(device.vbd.statistics().nbd_mirror_failed, 1);
    readAll(device, model);
    device.pause();
    simulation.disk.beforeOperation = null;
    assert.equal(resume(device, null, { secondary: null }), 0);
    assert.equal(device.vbd.statistics().nbd_mirror_failed, 0);
    device.close();
    holds(simulation, `vhd:${LEAF}`, model);
    simulation.close();
  });

  Deno.test(`mirror: what is flushed survives a power cut on both images, seed ${seed}`, () => {
    const simulation = prepared(seed, { powerCuts: true });
    const random = new Random(seed);
    const model = new Model();
    const isFull = seed % 2 === 0;
    const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw" });
    for (let round = 1; round <= 3; round++) {
      burst(device, model, random, round);
      if (isFull) fill(simulation);
    }
    const flushed = device.flush();
    device.settle();
    assert.equal(flushed.errno, 0);
    simulation.disk.beforeOperation = null;
    const after = new Simulation({ seed, latencyMs: 2 }, simulation);
    // The secondary image has had every write from the start, a full leaf has not.
    holds(after, "aio:/raw", model);
    if (!isFull) holds(after, `vhd:${LEAF}`, model);
    after.close();
  });
}

/** No sector that holds data is told to be a hole. */
function assertStatusIsSafe(device: SimulatedDevice, model: Model): void {
  const { extents } = device.status(0, DISK_SECTORS);
  device.settle();
  let sector = 0;
  for (const extent of extents ?? []) {
    const end = sector + Math.abs(extent);
    const held = model.stamps.subarray(sector, end).some((stamp) => stamp > 0);
    assert.ok(extent > 0 || !held, `sectors ${sector} to ${end} are no hole`);
    sector = end;
  }
  assert.equal(sector, DISK_SECTORS);
}

Deno.test("mirror: a secondary image that hangs holds up a write for eleven seconds at most", () => {
  const simulation = prepared(1);
  const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw" });
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  simulation.hang("/raw", 240_000);
  const startMs = simulation.scheduler.nowMs();
  const outcomes = Array.from(
    { length: 120 },
    (_, i) => device.write(i * 8, stampedSectors(i * 8, 8, 2)),
  );
  device.settle();
  const tookMs = simulation.scheduler.nowMs() - startMs;
  assert.ok(tookMs >= 10_000 && tookMs <= 11_100, `${tookMs} ms`);
  for (const { errno } of outcomes) assert.equal(errno, 0);
  const { nbd_mirror_failed, reqs_outstanding } = device.vbd.statistics();
  assert.deepEqual([nbd_mirror_failed, reqs_outstanding], [1, 0]);
  // The data of the next writes is in the same slots as that which the secondary image still has.
  for (let i = 0; i < 120; i++) device.write(i * 8, stampedSectors(i * 8, 8, 3));
  device.settle();
  device.pause();
  device.resume();
  for (let i = 0; i < 120; i++) assertHolds(device, i * 8, 8, 3);
  device.close();
  assert.ok(simulation.scheduler.nowMs() - startMs < 13_000);
  assert.equal(simulation.disk.openFiles, 1);
  simulation.runUntil(() => simulation.disk.openFiles === 0, "The secondary image");
  const raw = simulation.open("aio:/raw", { readOnly: true });
  assertHolds(raw, 0, 120 * 8, 2);
  raw.close();
  simulation.close();
});

Deno.test("mirror: a pause does not fail because the secondary image cannot be closed in order", () => {
  for (const standby of [false, true]) {
    const simulation = prepared(1);
    const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw", standby });
    device.write(0, stampedSectors(0, 8, 1));
    device.settle();
    simulation.disk.beforeOperation = ({ kind, path }) =>
      kind === "sync" && path === "/raw" ? Errno.EIO : 0;
    device.pause();
    simulation.disk.beforeOperation = null;
    device.resume();
    assert.equal(device.vbd.statistics().nbd_mirror_failed, standby ? 0 : 1);
    assertHolds(device, 0, 8, 1);
    device.close();
    simulation.close();
  }
});

Deno.test("mirror: an unpause that cannot be carried out leaves the disk paused, as it was", () => {
  const simulation = prepared(1);
  const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw" });
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  device.pause();
  const paused = simulation.disk.openFiles;
  for (
    const [secondary, errno] of [
      ["aio:/missing", Errno.ENOENT],
      ["aio:/small", Errno.EINVAL],
      [`vhd:${LEAF}`, Errno.EBUSY],
      ["odd:/x", Errno.ENOENT],
      ["nonsense", Errno.EINVAL],
    ] as const
  ) {
    assert.equal(resume(device, null, { secondary }), errno, secondary);
    assert.equal(device.vbd.phase, "paused");
    simulation.runUntil(() => simulation.disk.openFiles === paused, "Closing what was opened");
  }
  assert.equal(resume(device, "vhd:/missing.vhd", { secondary: "aio:/other" }), Errno.ENOENT);
  simulation.runUntil(() => simulation.disk.openFiles === paused, "Closing what was opened");
  device.resume();
  device.write(8, stampedSectors(8, 8, 2));
  device.settle();
  assert.equal(device.vbd.statistics().nbd_mirror_failed, 0);
  device.close();
  const raw = simulation.open("aio:/raw", { readOnly: true });
  assertHolds(raw, 0, 8, 1);
  assertHolds(raw, 8, 8, 2);
  raw.close();
  simulation.close();
});

Deno.test("mirror: unpause begins, changes and ends it", () => {
  const simulation = prepared(1);
  const device = simulation.open(`vhd:${LEAF}`);
  const write = (sector: number): void => {
    device.write(sector, stampedSectors(sector, 1, 1));
    device.settle();
  };
  const stamps = (name: string): number[] => {
    const image = simulation.open(name, { readOnly: true });
    const outcome = image.read(0, 8);
    image.settle();
    image.close();
    const bytes = outcome.data ?? new Uint8Array(0);
    return Array.from({ length: 4 }, (_, i) => bytes[(2 * i + 1) * SECTOR_BYTES - 4]);
  };
  write(0);
  for (const [i, secondary] of ["aio:/raw", "aio:/other", null].entries()) {
    device.pause();
    assert.equal(resume(device, null, { secondary }), 0);
    write(2 * i + 2);
  }
  device.close();
  assert.deepEqual(stamps("aio:/raw"), [0, 1, 0, 0]);
  assert.deepEqual(stamps("aio:/other"), [0, 0, 1, 0]);
  assert.deepEqual(stamps(`vhd:${LEAF}`), [1, 1, 1, 1]);
  simulation.close();
});

Deno.test("mirror: a disk that is taken over goes on without a mirror that is gone", () => {
  const simulation = prepared(1);
  const device = new SimulatedDevice(simulation, new Vbd(simulation.context, 0));
  const open = (options: OpenOptions): number => {
    let errno = -1;
    device.vbd.openLater(`vhd:${LEAF}`, options, (error) => errno = error?.errno ?? 0);
    simulation.runUntil(() => errno >= 0, "An open");
    return errno;
  };
  const secondary = "aio:/gone";
  assert.equal(open({ secondary }), Errno.ENOENT);
  assert.equal(open({ secondary, mayLackSecondary: true }), 0);
  assert.equal(device.vbd.statistics().nbd_mirror_failed, 1);
  const model = new Model();
  burst(device, model, new Random(1), 1);
  readAll(device, model);
  assert.equal(resume(device, null, { secondary: null }), 0);
  device.close();
  simulation.close();
});

Deno.test("mirror: a layer with data that cannot be opened any more is not left out", () => {
  const simulation = prepared(1);
  const storage = simulation.disk;
  const layer = "/layer.vhd";
  snapshot(layer, { storage, parent: "/base.vhd", keepEmptyParent: true });
  const before = simulation.open(`vhd:${layer}`);
  before.write(0, stampedSectors(0, 8, 1));
  before.settle();
  before.close();
  const device = simulation.open(`vhd:${LEAF}`, { secondary: `vhd:${layer}` });
  assertHolds(device, 0, 8, 1);
  device.pause();
  storage.rename(layer, "/away.vhd");
  assert.equal(resume(device, null, {}), Errno.ENOENT);
  assert.equal(device.vbd.phase, "paused");
  makeRaw(simulation, layer, DISK_MIB * MIB);
  assert.notEqual(resume(device, null, {}), 0);
  createDynamic("/other.vhd", { storage, sizeBytes: DISK_MIB * MIB });
  storage.rename("/other.vhd", layer);
  assert.equal(resume(device, null, {}), Errno.ESTALE);
  storage.rename("/away.vhd", layer);
  device.resume();
  assertHolds(device, 0, 8, 1);
  device.close();
  simulation.close();
});

Deno.test("mirror: data that the secondary image alone has is not left behind", () => {
  const simulation = prepared(1);
  const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw" });
  fill(simulation);
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  device.pause();
  for (const secondary of [null, "aio:/other"]) {
    assert.equal(resume(device, null, { secondary }), Errno.EBUSY);
  }
  assert.equal(resume(device, null, { secondary: "aio:/raw" }), 0);
  assertHolds(device, 0, 8, 1);
  device.pause();
  assert.equal(resume(device, "aio:/raw", { secondary: null }), 0);
  assertHolds(device, 0, 8, 1);
  assert.equal(device.vbd.statistics().FIXME_enospc_redirect_count, 0);
  device.close();
  simulation.close();
});

/** Raw images that answer no write until they are given up. */
const stuck: DriverType = {
  ...aioDriver,
  open(spec, context, sink): ImageDriver {
    const image = aioDriver.open(spec, context, sink);
    const held: { slot: number; count: number }[] = [];
    image.write = (slot, _sector, count): void => void held.push({ slot, count });
    image.giveUp = (): void => {
      for (const { slot, count } of held.splice(0)) sink.pieceDone(slot, count, Errno.ENOTCONN);
    };
    return image;
  },
};

Deno.test("mirror: a forced close does not wait for the image that took over", () => {
  const simulation = prepared(1, { driverOf: (type) => type === "aio" ? stuck : vhdDriver });
  const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw", standby: true });
  fill(simulation);
  const outcome = device.write(0, stampedSectors(0, 8, 1));
  const { scheduler } = simulation;
  scheduler.addTimer(20_000, () => {});
  simulation.runUntil(() => scheduler.nowMs() >= 20_000, "Twenty seconds");
  assert.equal(outcome.errno, null);
  let isClosed = false;
  device.vbd.close(() => isClosed = true);
  device.vbd.hurry();
  simulation.runUntil(() => isClosed, "The close");
  assert.ok(scheduler.nowMs() < 21_000);
  assert.ok(outcome.errno !== null && outcome.errno !== 0);
  simulation.close();
});

/** Raw images whose writes throw. */
const throwing: DriverType = {
  ...aioDriver,
  open(spec, context, sink): ImageDriver {
    const image = aioDriver.open(spec, context, sink);
    image.write = (): void => {
      throw new Error("planted");
    };
    return image;
  },
};

Deno.test("mirror: a fault of the secondary image's driver ends the mirror, and not the disk", () => {
  const simulation = prepared(1, { driverOf: (type) => type === "aio" ? throwing : vhdDriver });
  simulation.expectsFaults = true;
  const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw" });
  const outcome = device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  assert.equal(outcome.errno, 0);
  assert.equal(device.vbd.statistics().nbd_mirror_failed, 1);
  assertHolds(device, 0, 8, 1);
  device.close();
  simulation.close();
});

Deno.test("mirror: a disk that failed goes on while its secondary image still hangs", () => {
  const simulation = prepared(1);
  simulation.expectsFaults = true;
  const { scheduler } = simulation;
  const after = (ms: number): void => {
    const endMs = scheduler.nowMs() + ms;
    scheduler.addTimer(ms, () => {});
    simulation.runUntil(() => scheduler.nowMs() >= endMs, `${ms} ms`);
  };
  const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw" });
  simulation.hang("/raw", 5_000);
  const failed = Array.from(
    { length: 100 },
    (_, i) => device.write(i * 8, stampedSectors(i * 8, 8, 1)),
  );
  after(500);
  device.vbd.fault(new Error("planted"));
  after(500);
  for (const { errno } of failed) assert.equal(errno, Errno.EIO);
  assert.equal(resume(device, null, { secondary: null }), 0);
  // The next requests have the slots of those that the secondary image has not ended.
  simulation.hang(LEAF, 20_000);
  const outcomes = Array.from(
    { length: 100 },
    (_, i) => device.write(i * 8, stampedSectors(i * 8, 8, 2)),
  );
  after(10_000);
  for (const { errno } of outcomes) assert.equal(errno, null);
  device.settle();
  for (const { errno } of outcomes) assert.equal(errno, 0);
  assertHolds(device, 0, 800, 2);
  device.close();
  simulation.runUntil(() => simulation.disk.openFiles === 0, "The secondary image");
  simulation.close();
});

/** VHDs whose reads throw, once told. */
function throwingReads(): { driver: DriverType; begin: () => void } {
  let throws = false;
  const driver: DriverType = {
    ...vhdDriver,
    open(spec, context, sink): ImageDriver {
      const image = vhdDriver.open(spec, context, sink);
      const read = image.read.bind(image);
      image.read = (slot, sector, count, memorySector): void => {
        if (throws) throw new Error("planted");
        read(slot, sector, count, memorySector);
      };
      return image;
    },
  };
  return { driver, begin: () => throws = true };
}

Deno.test("mirror: a fault of the image below a request to the secondary one ends the disk", () => {
  const { driver, begin } = throwingReads();
  const simulation = prepared(1, { driverOf: (type) => type === "aio" ? aioDriver : driver });
  simulation.expectsFaults = true;
  const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw", standby: true });
  fill(simulation);
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  assert.equal(device.vbd.secondary.isFull, true);
  begin();
  // The secondary image has the first half; the image itself is asked for the rest after that.
  const outcome = device.read(0, 16);
  simulation.runUntil(() => outcome.errno !== null, "The read");
  assert.equal(outcome.errno, Errno.EIO);
  assert.equal(device.vbd.failed, true);
  device.close();
  simulation.runUntil(() => simulation.disk.openFiles === 0, "The secondary image");
  simulation.close();
});
