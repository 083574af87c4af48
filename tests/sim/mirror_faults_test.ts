/**
 * A disk that fails while its secondary image has requests, or is being closed: it is not told of their
 * end, and the image is not opened again before that.
 */
import assert from "node:assert/strict";
import { type DoneWith, Errno, errnoOf } from "../../ffi/errno.ts";
import { aioDriver } from "../../src/driver/aio.ts";
import type { DriverType, ImageDriver } from "../../src/driver/driver.ts";
import { vhdDriver } from "../../src/driver/vhd/vhd_driver.ts";
import { Redirects } from "../../src/vbd/redirects.ts";
import { type LiveSnapshot, liveSnapshot } from "../../src/vbd/live_snapshot.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const LEAF = "/leaf.vhd";
const SIZE_BYTES = 4 * 1024 * 1024;
const CLOSE_MS = 5_000;

/** Raw images whose close takes long, as that of a connection to a server may. */
const slow: DriverType = {
  ...aioDriver,
  open(spec, context, sink): ImageDriver {
    const image = aioDriver.open(spec, context, sink);
    const close = image.close.bind(image);
    image.close = (done): void => {
      context.scheduler.addTimer(CLOSE_MS, () => close(done));
    };
    return image;
  },
};

function prepared(raws = slow, standby = false): SimulatedDevice {
  const driverOf = (type: string): DriverType => type === "aio" ? raws : vhdDriver;
  const simulation = new Simulation({ seed: 1, latencyMs: 2, driverOf });
  simulation.expectsFaults = true;
  createDynamic(LEAF, { storage: simulation.disk, sizeBytes: SIZE_BYTES });
  const raw = simulation.disk.open("/raw", "create");
  raw.truncate(SIZE_BYTES);
  raw.close();
  const device = simulation.open(`vhd:${LEAF}`, { secondary: "aio:/raw", standby });
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  return device;
}

function pass(simulation: Simulation, ms: number): void {
  const { scheduler } = simulation;
  const endMs = scheduler.nowMs() + ms;
  scheduler.addTimer(ms, () => {});
  simulation.runUntil(() => scheduler.nowMs() >= endMs, `${ms} ms`);
}

Deno.test("mirror: a disk that failed in a pause runs on when the secondary image is closed", () => {
  const device = prepared();
  const { simulation, vbd } = device;
  let paused = 0;
  vbd.pause((error) => paused = error?.errno ?? -1);
  pass(simulation, 500);
  vbd.fault(new Error("planted"));
  pass(simulation, 500);
  assert.equal(paused, Errno.EIO);
  assert.equal(vbd.phase, "failed");
  let resumed = -1;
  vbd.resume(null, (error) => resumed = error?.errno ?? 0, { secondary: null });
  assert.equal(resumed, 0);
  const { openFiles } = simulation.disk;
  pass(simulation, 2 * CLOSE_MS);
  assert.deepEqual([vbd.phase, vbd.failed], ["open", false]);
  assert.equal(simulation.disk.openFiles, openFiles - 1);
  device.write(8, stampedSectors(8, 8, 2));
  device.settle();
  assertHolds(device, 0, 8, 1);
  assertHolds(device, 8, 8, 2);
  device.close();
  assert.equal(simulation.disk.openFiles, 0);
  simulation.close();
});

Deno.test("mirror: a disk that failed in a pause can resume after the secondary image is closed", () => {
  const device = prepared();
  const { simulation, vbd } = device;
  vbd.pause(() => {});
  pass(simulation, CLOSE_MS - 500);
  vbd.fault(new Error("planted"));
  pass(simulation, 2 * CLOSE_MS);
  assert.deepEqual([vbd.phase, vbd.failed], ["failed", true]);
  device.resume();
  assertHolds(device, 0, 8, 1);
  device.close();
  simulation.runUntil(() => simulation.disk.openFiles === 0, "The secondary image");
  simulation.close();
});

Deno.test("mirror: a minor whose disk failed in a close can open another before the secondary image is closed", () => {
  const device = prepared();
  const { simulation, vbd } = device;
  let closed = 0;
  vbd.close((error) => closed = error?.errno ?? -1);
  pass(simulation, 500);
  vbd.fault(new Error("planted"));
  pass(simulation, 500);
  assert.equal(closed, Errno.EIO);
  vbd.open(`vhd:${LEAF}`);
  pass(simulation, 2 * CLOSE_MS);
  assert.deepEqual([vbd.phase, vbd.name], ["open", `vhd:${LEAF}`]);
  assertHolds(device, 0, 8, 1);
  device.close();
  assert.equal(simulation.disk.openFiles, 0);
  simulation.close();
});

Deno.test("mirror: what is under way at the image that took over never writes over later data", () => {
  const device = prepared(aioDriver, true);
  const { simulation, vbd } = device;
  simulation.disk.beforeOperation = ({ kind, path }) =>
    kind === "truncate" && path === LEAF ? Errno.ENOSPC : 0;
  // The first write made the first block.
  const sector = SIZE_BYTES / 1024;
  device.write(sector, stampedSectors(sector, 8, 1));
  device.settle();
  assert.equal(vbd.secondary.isFull, true);
  simulation.hang("/raw", 5_000);
  const failed = device.write(sector, stampedSectors(sector, 8, 2));
  pass(simulation, 500);
  vbd.fault(new Error("planted"));
  pass(simulation, 500);
  assert.equal(failed.errno, Errno.EIO);
  let resumed = -1;
  const resume = (): void => vbd.resume(null, (error) => resumed = error?.errno ?? 0);
  resume();
  assert.equal(resumed, Errno.EBUSY);
  assert.equal(vbd.phase, "failed");
  pass(simulation, 5_000);
  resume();
  assert.equal(resumed, 0);
  device.write(sector, stampedSectors(sector, 8, 3));
  device.settle();
  assertHolds(device, sector, 8, 3);
  device.close();
  assert.equal(simulation.disk.openFiles, 0);
  simulation.close();
});

Deno.test("mirror: a disk that failed leaves a mirror that still has requests of before", () => {
  const device = prepared(aioDriver);
  const { simulation, vbd } = device;
  simulation.hang("/raw", 5_000);
  device.write(0, stampedSectors(0, 8, 2));
  pass(simulation, 500);
  vbd.fault(new Error("planted"));
  pass(simulation, 500);
  device.resume();
  assert.equal(vbd.statistics().nbd_mirror_failed, 1);
  device.write(0, stampedSectors(0, 8, 3));
  device.settle();
  assertHolds(device, 0, 8, 3);
  device.close();
  simulation.runUntil(() => simulation.disk.openFiles === 0, "The secondary image");
  simulation.close();
});

Deno.test("mirror: no snapshot is made of an image that lacks what its secondary image has", () => {
  const device = prepared(aioDriver, true);
  const { simulation, vbd } = device;
  const makeSnapshot = (path: string): number => {
    let errno = -1;
    const done: DoneWith<LiveSnapshot> = (error, _made) => {
      errno = error?.errno ?? 0;
    };
    liveSnapshot(simulation.context, vbd, { path, rename: false, timeoutMs: Infinity, done });
    simulation.runUntil(() => errno >= 0, "A snapshot");
    return errno;
  };
  const sector = SIZE_BYTES / 1024;
  // The image becomes full while the disk drains for the snapshot.
  let left = 1;
  simulation.disk.beforeOperation = ({ kind, path }) =>
    kind === "write" && path === LEAF && left-- > 0 ? Errno.ENOSPC : 0;
  const outcome = device.write(0, stampedSectors(0, 8, 2));
  assert.equal(vbd.secondary.isFull, false);
  assert.equal(makeSnapshot("/new.vhd"), Errno.EBUSY);
  assert.deepEqual([outcome.errno, vbd.secondary.isFull, vbd.phase], [0, true, "open"]);
  assert.equal(makeSnapshot("/new.vhd"), Errno.EBUSY);
  assert.equal(simulation.disk.exists("/new.vhd"), false);
  device.write(sector, stampedSectors(sector, 8, 3));
  device.settle();
  assertHolds(device, 0, 8, 2);
  assertHolds(device, sector, 8, 3);
  device.close();
  assert.equal(simulation.disk.openFiles, 0);
  simulation.close();
});

Deno.test("mirror: the map of the largest disk does not end the process, and a larger disk has none", () => {
  const most = 2 ** 37;
  const map = new Redirects(most);
  map.mark(2 ** 36 + 3, 7);
  map.mark(most - 20, 20);
  assert.deepEqual([map.runFrom(2 ** 36, 100), map.runFrom(2 ** 36 + 3, 100)], [-3, 7]);
  assert.deepEqual([map.runFrom(most - 30, 30), map.runFrom(most - 20, 20)], [-10, 20]);
  map.release();
  assert.throws(() => new Redirects(most + 1), (error) => errnoOf(error) === Errno.EFBIG);
});
