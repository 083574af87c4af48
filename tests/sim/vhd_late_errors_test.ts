/**
 * Writes that a disk reports as failed although it has done them: the BAT and the bitmaps in the file have
 * other bits than those in memory. What is written and flushed afterwards is in the file.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import type { Verdict } from "../../src/testing/disk_operation.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { LateErrorsWork } from "../support/late_errors.ts";
import {
  assertHolds,
  type Outcome,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";
import { syncFile } from "../support/vhd.ts";

const MIB = 1 << 20;
const BLOCK = 4096;
const PATH = "/a.vhd";

function newSimulation(seed = 3, sizeBytes = 64 * MIB): Simulation {
  const simulation = new Simulation({ seed, latencyMs: 2, powerCuts: true });
  createDynamic(PATH, { storage: simulation.disk, sizeBytes });
  syncFile(simulation.disk, PATH);
  return simulation;
}

/** A device that tells of errors at once. */
function open(simulation: Simulation): SimulatedDevice {
  return simulation.open(`vhd:${PATH}`, { retry: { timeoutMs: 0 } });
}

/** Does a request to its end. */
function ended(device: SimulatedDevice, outcome: Outcome): number | null {
  device.settle();
  return outcome.errno;
}

/** Fails the next write of one sector between two bytes of the image late. */
function failNext({ disk }: Simulation, fromBytes: number, endBytes: number): void {
  disk.beforeOperation = ({ kind, path, offsetBytes, lengthBytes, queued }): Verdict => {
    if (!queued || kind !== "write" || path !== PATH || lengthBytes !== 512) return 0;
    if (offsetBytes < fromBytes || offsetBytes >= endBytes) return 0;
    disk.beforeOperation = null;
    return { does: "fail late", errno: Errno.EIO };
  };
}

function failNextBat(simulation: Simulation): void {
  const { bat, batOffsetBytes, close } = openVhd(PATH, { storage: simulation.disk });
  close();
  failNext(simulation, batOffsetBytes, batOffsetBytes + 4 * bat.length);
}

function failNextBitmap(simulation: Simulation, block: number): void {
  const { bat, close } = openVhd(PATH, { storage: simulation.disk });
  close();
  failNext(simulation, 512 * bat[block], 512 * bat[block] + 512);
}

function requireValid({ disk }: Simulation): void {
  const found = checkImage(PATH, { storage: disk, ignoreFooter: true });
  assert.ok(found.valid, JSON.stringify(found.findings));
}

/** Cuts the power, and looks at the image. */
function afterCut(
  simulation: Simulation,
  device: SimulatedDevice,
  look: (after: SimulatedDevice) => void,
): void {
  const after = new Simulation({}, simulation);
  device.vbd.requests.memory.release();
  requireValid(after);
  const again = open(after);
  look(again);
  again.close();
  after.close();
}

for (const kind of ["zero", "fill"] as const) {
  Deno.test(`a ${kind} that follows a bitmap that failed late leaves zeros in the file`, () => {
    const simulation = newSimulation();
    const device = open(simulation);
    assert.equal(ended(device, device.write(100, stampedSectors(100, 8, 1))), 0);
    failNextBitmap(simulation, 0);
    assert.equal(ended(device, device.write(0, stampedSectors(0, 16, 2))), Errno.EIO);
    assert.equal(ended(device, device[kind](0, 32)), 0);
    assert.equal(ended(device, device.flush()), 0);
    afterCut(simulation, device, (after) => {
      assertHolds(after, 0, 32, 0);
      assertHolds(after, 100, 8, 1);
    });
  });
}

Deno.test("zeros are holes again when a bitmap has been written that had failed late", () => {
  const simulation = newSimulation();
  const device = open(simulation);
  assert.equal(ended(device, device.write(100, stampedSectors(100, 8, 1))), 0);
  failNextBitmap(simulation, 0);
  assert.equal(ended(device, device.write(0, stampedSectors(0, 16, 2))), Errno.EIO);
  assert.equal(ended(device, device.write(50, stampedSectors(50, 8, 3))), 0);
  assert.equal(ended(device, device.zero(0, 32)), 0);
  const status = device.status(0, 64);
  device.settle();
  assert.deepEqual(status.extents, [-50, 8, -6]);
  assert.equal(ended(device, device.flush()), 0);
  afterCut(simulation, device, (after) => {
    assertHolds(after, 0, 50, 0);
    assertHolds(after, 50, 8, 3);
  });
});

for (const other of [false, true]) {
  const name = other ? ", with a later one" : "";
  Deno.test(`an image whose new block failed late opens after it was closed${name}`, () => {
    const simulation = newSimulation();
    const device = open(simulation);
    failNextBat(simulation);
    assert.equal(ended(device, device.write(0, stampedSectors(0, 16, 1))), Errno.EIO);
    // A block of another sector of the BAT would need a larger disk: this one takes back the first.
    if (other) {
      assert.equal(ended(device, device.write(BLOCK, stampedSectors(BLOCK, 8, 2))), 0);
      failNextBat(simulation);
      const last = 2 * BLOCK;
      assert.equal(ended(device, device.write(last, stampedSectors(last, 8, 3))), Errno.EIO);
    }
    device.close();
    requireValid(simulation);
    const again = open(simulation);
    if (other) assertHolds(again, BLOCK, 8, 2);
    assert.equal(ended(again, again.write(8, stampedSectors(8, 16, 4))), 0);
    assertHolds(again, 8, 16, 4);
    again.close();
    requireValid(simulation);
    simulation.close();
  });
}

Deno.test("two blocks never share a place after sectors of the BAT that failed late", () => {
  const simulation = newSimulation();
  let stamp = 0;
  for (let round = 0; round < 8; round++) {
    const device = open(simulation);
    const failing = 2 * round * BLOCK;
    const next = failing + BLOCK;
    stamp += 2;
    if (round % 2 === 0) {
      assert.equal(ended(device, device.write(next, stampedSectors(next, 8, stamp))), 0);
    }
    failNextBat(simulation);
    const failed = device.write(failing, stampedSectors(failing, 8, stamp - 1));
    assert.equal(ended(device, failed), Errno.EIO);
    device.close();
    const again = open(simulation);
    assert.equal(ended(again, again.write(next, stampedSectors(next, 8, stamp))), 0);
    again.close();
    requireValid(simulation);
  }
  const device = open(simulation);
  for (let round = 0; round < 8; round++) {
    assertHolds(device, 2 * round * BLOCK, 8, 2 * round + 1);
    assertHolds(device, (2 * round + 1) * BLOCK, 8, 2 * round + 2);
  }
  device.close();
  simulation.close();
});

Deno.test("data of a block whose BAT sector failed late is durable before its bits are", () => {
  for (let seed = 1; seed <= 8; seed++) {
    for (let operations = 1; operations <= 6; operations++) {
      const simulation = new Simulation({ seed, latencyMs: 2, powerCuts: true });
      const { disk: storage } = simulation;
      createDynamic("/base.vhd", { storage, sizeBytes: 8 * MIB });
      const base = simulation.open("vhd:/base.vhd");
      assert.equal(ended(base, base.write(0, stampedSectors(0, 64, 1))), 0);
      base.close();
      snapshot(PATH, { storage, parent: "/base.vhd" });
      for (const path of ["/base.vhd", PATH]) syncFile(storage, path);
      const device = open(simulation);
      failNextBat(simulation);
      assert.equal(ended(device, device.write(0, stampedSectors(0, 8, 2))), Errno.EIO);
      assert.equal(ended(device, device.flush()), 0);
      device.write(16, stampedSectors(16, 16, 3));
      let started = 0;
      storage.beforeOperation = ({ queued }): Verdict => {
        if (queued) started++;
        return 0;
      };
      simulation.scheduler.runUntil(() => started >= operations);
      afterCut(simulation, device, (after) => {
        const { data } = readAll(after, 64);
        for (let sector = 0; sector < 64; sector++) {
          const stamp = stampOf(data, sector, sector);
          const isWritten = sector >= 16 && sector < 32;
          const allowed = sector < 8 ? [2] : isWritten ? [1, 3] : [1];
          assert.ok(allowed.includes(stamp), `sector ${sector} holds ${stamp}`);
        }
      });
    }
  }
});

function readAll(device: SimulatedDevice, count: number): { readonly data: Uint8Array } {
  const outcome = device.read(0, count);
  device.settle();
  assert.ok(outcome.data);
  return { data: outcome.data };
}

Deno.test("zeros of a block that was given up after its BAT sector failed late are in the file", () => {
  const simulation = new Simulation({ seed: 3, latencyMs: 2, powerCuts: true });
  // Blocks so large that the cache has few bitmaps.
  const blockSizeBytes = 64 * MIB;
  const blockSectors = blockSizeBytes / 512;
  const image = { sizeBytes: 24 * blockSizeBytes, blockSizeBytes };
  putForeignImage(simulation.disk, PATH, image);
  syncFile(simulation.disk, PATH);
  const device = open(simulation);
  failNextBat(simulation);
  assert.equal(ended(device, device.write(0, stampedSectors(0, 8, 1))), Errno.EIO);
  simulation.fault = (kind) => kind === "write" ? Errno.EIO : 0;
  for (let block = 1; block < 20; block++) {
    const sector = block * blockSectors;
    assert.equal(ended(device, device.write(sector, stampedSectors(sector, 8, 1))), Errno.EIO);
  }
  simulation.fault = null;
  assert.equal(ended(device, device.zero(0, 8)), 0);
  assert.equal(ended(device, device.flush()), 0);
  afterCut(simulation, device, (after) => assertHolds(after, 0, 8, 0));
});

for (const kind of ["an image", "a child", "an image on a block device"] as const) {
  Deno.test(`random work on ${kind} whose writes fail late`, () => {
    const isChild = kind === "a child";
    for (let seed = 1; seed <= 12; seed++) {
      const simulation = new Simulation({ seed, latencyMs: 3, powerCuts: true });
      const { disk: storage } = simulation;
      const base = isChild ? "/base.vhd" : PATH;
      if (kind === "an image on a block device") {
        storage.addBlockDevice(PATH, { sizeBytes: 80 * MIB, garbage: seed });
      }
      createDynamic(base, { storage, sizeBytes: 64 * MIB });
      const regions = Array.from({ length: 20 }, (_, i) => i * BLOCK + 100);
      if (isChild) makeChild(simulation, base, regions);
      for (const path of new Set([base, PATH])) syncFile(storage, path);
      new LateErrorsWork(simulation, seed, {
        name: `vhd:${PATH}`,
        regions,
        regionSectors: 24,
        initial: () => isChild ? 7 : 0,
        check: requireValid,
      }).run(30);
    }
  });
}

/** Puts data into a base, and a child on it. */
function makeChild(simulation: Simulation, base: string, regions: readonly number[]): void {
  const device = simulation.open(`vhd:${base}`);
  for (const first of regions) device.write(first, stampedSectors(first, 24, 7));
  device.settle();
  device.close();
  snapshot(PATH, { storage: simulation.disk, parent: base });
}
