/**
 * A driver with a completion queue of its own, on a simulated disk: as the image that is served and as
 * the raw parent of one, through errors, hangs, power cuts and faults of its library.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import type { DriverType } from "../../src/driver/driver.ts";
import { checkedDriver } from "../../src/testing/checked_image.ts";
import { Random } from "../../src/testing/random.ts";
import { SimulatedLibrary } from "../../src/testing/simulated_library.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { checkedDrivers } from "../support/checked_drivers.ts";
import { DISK_SECTORS, Model, readAll } from "../support/disk_model.ts";
import { burst } from "../support/disk_model.ts";
import {
  LIBRARY_OPERATIONS,
  type LibraryControl,
  libraryDriver,
} from "../support/library_driver.ts";
import { assertHolds, SECTOR_BYTES, Simulation, stampedSectors } from "../support/sim.ts";
import { syncFile } from "../support/vhd.ts";

interface OwnQueue {
  readonly simulation: Simulation;
  readonly control: LibraryControl;
  /** The library that was opened last. */
  library(): SimulatedLibrary;
}

/** A simulation in which a library serves the raw images. */
function withLibrary(seed: number, before?: Simulation): OwnQueue {
  let last: SimulatedLibrary | null = null;
  const { driver, control } = libraryDriver("aio", {
    // A child splits its requests, so several calls of one request are under way.
    usesPieces: true,
    openLibrary: ({ path, readOnly, asParent }) =>
      last = new SimulatedLibrary(path, {
        storage: simulation.disk,
        scheduler: simulation.scheduler,
        random: new Random(seed),
        latencyMs: 5,
        readOnly,
        same: asParent,
      }),
  });
  const raw = checkedDriver(driver);
  const driverOf = (type: string): DriverType => type === "aio" ? raw : checkedDrivers(type);
  const simulation: Simulation = new Simulation(
    { seed, latencyMs: 3, powerCuts: true, driverOf },
    before,
  );
  return {
    simulation,
    control,
    library(): SimulatedLibrary {
      assert.ok(last);
      return last;
    },
  };
}

function makeRaw({ disk }: Simulation, path: string): void {
  const file = disk.open(path, "create");
  file.truncate(DISK_SECTORS * SECTOR_BYTES);
  file.sync();
  file.close();
}

for (const seed of [1, 2, 3, 4]) {
  Deno.test(`a library's disk, and a child of it, hold what was written through errors, seed ${seed}`, () => {
    const random = new Random(seed);
    const { simulation, control } = withLibrary(seed);
    makeRaw(simulation, "/base.raw");
    const device = simulation.open("aio:/base.raw");
    const model = new Model();
    simulation.disk.beforeOperation = ({ kind }): number => {
      if (kind !== "read" && kind !== "write" && kind !== "sync") return 0;
      return random.chance(0.05) ? Errno.EIO : 0;
    };
    for (let round = 1; round <= 4; round++) burst(device, model, random, round);
    assert.equal(control.mostPending, LIBRARY_OPERATIONS);
    device.pause();
    simulation.disk.beforeOperation = null;
    const storage = simulation.disk;
    snapshot("/child.vhd", { storage, parent: "/base.raw", rawParent: true });
    device.resume("vhd:/child.vhd");
    for (let round = 5; round <= 8; round++) burst(device, model, random, round);
    readAll(device, model);
    device.close();
    assert.deepEqual(checkImage("/child.vhd", { storage }).findings, []);
    assert.equal(control.abandoned, 0);
    simulation.close();
  });

  Deno.test(`a power cut leaves what was flushed to a library's disk, seed ${seed}`, () => {
    const random = new Random(seed);
    const { simulation } = withLibrary(seed);
    makeRaw(simulation, "/base.raw");
    const device = simulation.open("aio:/base.raw");
    device.write(0, stampedSectors(0, 300, 1));
    device.settle();
    const flush = device.flush();
    device.settle();
    assert.equal(flush.errno, 0);
    device.write(1000, stampedSectors(1000, 8, 2), true);
    device.settle();
    device.write(100, stampedSectors(100, 300, 3));
    for (let turns = random.below(20); turns > 0; turns--) simulation.scheduler.turn();
    const after = withLibrary(seed, simulation);
    const next = after.simulation.open("aio:/base.raw");
    assertHolds(next, 0, 100, 1);
    assertHolds(next, 1000, 8, 2);
    const later = next.read(100, 200);
    next.settle();
    const words = new Uint32Array((later.data ?? new Uint8Array()).slice().buffer);
    for (let i = 0; i < 200; i++) assert.ok([1, 3].includes(words[i * 128 + 127]), `sector ${i}`);
    next.close();
    device.vbd.requests.memory.release();
    after.simulation.close();
  });
}

Deno.test("a library that hangs delays its own requests, and a close waits for them", () => {
  const { simulation, library } = withLibrary(7);
  makeRaw(simulation, "/a.raw");
  const device = simulation.open("aio:/a.raw");
  library().hangsUntilMs = 60_000;
  const read = device.read(0, 8);
  let closed = false;
  device.vbd.close((error) => closed = error === null);
  simulation.runUntil(() => closed, "Closing");
  assert.ok(simulation.scheduler.nowMs() >= 60_000);
  assert.equal(read.errno, 0);
  simulation.close();
});

Deno.test("after a fault a library is let go of when it has ended all", () => {
  const { simulation, control } = withLibrary(8);
  simulation.expectsFaults = true;
  makeRaw(simulation, "/a.raw");
  syncFile(simulation.disk, "/a.raw");
  const device = simulation.open("aio:/a.raw");
  control.throwNext = true;
  const reads = [device.read(0, 8), device.read(8, 8), device.read(16, 8)];
  device.settle();
  assert.deepEqual(reads.map(({ errno }) => errno), [Errno.EIO, Errno.EIO, Errno.EIO]);
  simulation.runUntil(() => control.abandoned === 1, "Letting go");
  assert.equal(control.image?.pending, 0);
  device.resume("aio:/a.raw");
  assertHolds(device, 0, 8, 0);
  device.close();
  simulation.close();
});
