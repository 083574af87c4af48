/**
 * Snapshots by a clone, of a driver whose clones the test makes: what happens while a clone is made, and
 * when that fails.
 *
 * @module
 */
import assert from "node:assert/strict";
import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import { aioDriver } from "../../src/driver/aio.ts";
import type { DriverType } from "../../src/driver/driver.ts";
import { NAMES_OTHER } from "../../src/driver/image_name.ts";
import { registerDriver } from "../../src/driver/registry.ts";
import { type LiveSnapshot, liveSnapshot } from "../../src/vbd/live_snapshot.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";
import { putFile } from "../support/vhd.ts";

const BYTES = 1 << 20;
/** The clones that are being made, and the names of those that were removed. */
let making: Done[] = [];
let removed: string[] = [];
let removeError: SystemError | null = null;

/** `cloned:p/NAME` is the file `/NAME`. */
const clonedDriver: DriverType = {
  type: "cloned",
  where: "P/NAME",
  summary: "For a test",
  named: () => NAMES_OTHER,
  open: (spec, context, sink) =>
    aioDriver.open({ ...spec, path: spec.path.replace(/.*\//, "/") }, context, sink),
  clones: {
    nameOf: (path, name) => path.replace(/[^/]+$/, name),
    make: (_path, _name, _scheduler, done) => void making.push(done),
    remove(_path, name, _scheduler, done): void {
      removed.push(name);
      done(removeError);
    },
  },
};
registerDriver(clonedDriver);

interface Started {
  readonly simulation: Simulation;
  readonly device: SimulatedDevice;
  readonly ended: { errno: number; message: string; made: LiveSnapshot | null }[];
}

/** A disk whose snapshot waits for its clone. */
function start({ name = "second", more = {} } = {}): Started {
  making = [];
  removed = [];
  removeError = null;
  const simulation = new Simulation({ seed: 1, latencyMs: 2 });
  for (const path of ["/first", "/second"]) {
    putFile(simulation.disk, path, new Uint8Array(BYTES));
  }
  const device = simulation.open("cloned:p/first");
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  const ended: Started["ended"] = [];
  liveSnapshot(simulation.context, device.vbd, {
    path: name,
    rename: false,
    timeoutMs: Infinity,
    childType: "rbd-clone",
    ...more,
    done: (error, made) =>
      void ended.push({ errno: error?.errno ?? 0, message: error?.message ?? "", made }),
  });
  if (ended.length === 0) simulation.runUntil(() => making.length > 0, "The pause");
  return { simulation, device, ended };
}

function outcome({ simulation, ended }: Started): Started["ended"][number] {
  simulation.runUntil(() => ended.length > 0, "The snapshot");
  assert.equal(ended.length, 1);
  return ended[0];
}

Deno.test("a disk goes on with the clone, and what came meanwhile is written to that", () => {
  const started = start();
  const { device } = started;
  const late = device.write(8, stampedSectors(8, 8, 2));
  assert.deepEqual([device.vbd.phase, late.errno], ["paused", null]);
  making[0](null);
  const { errno, made } = outcome(started);
  assert.deepEqual([errno, made?.name, made?.parent], [
    0,
    "cloned:p/second",
    "cloned:p/first@second",
  ]);
  device.settle();
  assert.equal(late.errno, 0);
  assertHolds(device, 8, 8, 2);
  assert.equal(device.vbd.name, "cloned:p/second");
  assert.deepEqual(removed, []);
  device.close();
  const before = started.simulation.open("cloned:p/first");
  assertHolds(before, 0, 8, 1);
  before.close();
});

Deno.test("when no clone can be made, the disk goes on with its image", () => {
  const started = start();
  const { device } = started;
  const late = device.write(0, stampedSectors(0, 8, 2));
  making[0](new SystemError(Errno.ETIMEDOUT, "Cannot clone"));
  assert.equal(outcome(started).errno, Errno.ETIMEDOUT);
  device.settle();
  assert.deepEqual([late.errno, device.vbd.name, removed], [0, "cloned:p/first", []]);
  assertHolds(device, 0, 8, 2);
  device.close();
});

Deno.test("a clone that cannot be opened is removed, and the disk goes on with its image", () => {
  const started = start({ name: "missing" });
  const { device } = started;
  removeError = new SystemError(Errno.EBUSY, "Cannot remove the clone");
  making[0](null);
  const { errno, message } = outcome(started);
  assert.equal(errno, Errno.ENOENT);
  assert.match(message, /missing.*; Cannot remove the clone.*EBUSY/);
  assert.deepEqual([device.vbd.name, device.vbd.phase, removed], [
    "cloned:p/first",
    "open",
    ["missing"],
  ]);
  assertHolds(device, 0, 8, 1);
  device.close();
});

Deno.test("an image that cannot be opened again after a clone failed is tried again", () => {
  for (const isMade of [true, false]) {
    const started = start({ name: "missing" });
    const { simulation, device } = started;
    simulation.disk.beforeOperation = ({ kind }) => kind === "open" ? Errno.EIO : 0;
    making[0](isMade ? null : new SystemError(Errno.ETIMEDOUT, "Cannot clone"));
    const { errno, message } = outcome(started);
    assert.equal(errno, isMade ? Errno.EIO : Errno.ETIMEDOUT);
    assert.match(message, /minor 0 does not run: .*its requests wait, .* 'tap-ctl unpause'/);
    assert.deepEqual([device.vbd.phase, removed], ["paused", isMade ? ["missing"] : []]);
    const waits = device.write(8, stampedSectors(8, 8, 2));
    simulation.scheduler.addTimer(20_000, () => simulation.disk.beforeOperation = null);
    device.settle();
    assert.deepEqual([waits.errno, device.vbd.phase], [0, "open"]);
    assert.equal(device.vbd.name, "cloned:p/first");
    assertHolds(device, 0, 8, 1);
    assertHolds(device, 8, 8, 2);
    device.close();
  }
});

Deno.test("a clone is not used when the disk ran on, was closed, or failed meanwhile", () => {
  const uses: Readonly<Record<string, (device: SimulatedDevice) => void>> = {
    unpaused: (device) => device.resume(),
    "unpaused, written and paused": (device) => {
      device.resume();
      device.write(0, stampedSectors(0, 8, 2));
      device.settle();
      device.pause();
    },
    closed: (device) => device.close(),
  };
  for (const [name, use] of Object.entries(uses)) {
    for (const isMade of [true, false]) {
      const started = start();
      const { device } = started;
      use(device);
      const { phase } = device.vbd;
      making[0](isMade ? null : new SystemError(Errno.EIO, "Cannot clone"));
      const { errno } = outcome(started);
      assert.equal(errno, isMade ? Errno.ECANCELED : Errno.EIO, name);
      assert.deepEqual(removed, isMade ? ["second"] : [], name);
      assert.equal(device.vbd.phase, phase, name);
      if (phase === "closed") continue;
      assert.equal(device.vbd.name, "cloned:p/first");
      device.close();
    }
  }
});

Deno.test("what cannot be a clone's name is refused before the disk is paused", () => {
  for (const name of ["a/b", "a@b", "a,b", "", "x".repeat(250), "é".repeat(125)]) {
    const { device, ended } = start({ name });
    assert.ok([Errno.EINVAL, Errno.ENAMETOOLONG].some((errno) => errno === ended[0].errno), name);
    assert.deepEqual([device.vbd.phase, making.length], ["open", 0]);
    device.close();
  }
  const renamed = start({ more: { rename: true } });
  assert.equal(renamed.ended[0].errno, Errno.EINVAL);
  renamed.device.close();
});
