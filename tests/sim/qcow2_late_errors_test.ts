/**
 * Writes of metadata that a disk reports as failed although it has done them: the file has other
 * entries than the memory. What is written and flushed afterwards is in the file.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import type { Storage } from "../../src/files/storage.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { LateErrorsWork } from "../support/late_errors.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";
import { syncFile } from "../support/vhd.ts";

const MIB = 1 << 20;

/** Fails the next write of a single sector behind the first clusters late: that of an L2 table. */
function failNextEntries({ disk }: Simulation): void {
  const l1End = openL1End(disk);
  disk.beforeOperation = ({ kind, offsetBytes, lengthBytes, queued }) => {
    if (!queued || kind !== "write" || lengthBytes !== 512 || offsetBytes < l1End) return 0;
    disk.beforeOperation = null;
    return { does: "fail late", errno: Errno.EIO };
  };
}

function openL1End(storage: Storage): number {
  const { header, geometry, close } = openQcow2("/a", { storage });
  close();
  return Number(header.l1TableOffset) + geometry.clusterBytes;
}

function requireValid({ disk: storage }: Simulation): void {
  const image = openQcow2("/a", { storage });
  assert.deepEqual(checkQcow2(image).errors, []);
  image.close();
}

function assertDurable(
  simulation: Simulation,
  device: SimulatedDevice,
  check: (after: SimulatedDevice) => void,
): void {
  const after = new Simulation({ seed: 1 }, simulation);
  requireValid(after);
  const again = after.open("qcow2:/a");
  check(again);
  again.close();
  device.vbd.requests.memory.release();
  after.close();
}

for (const kind of ["discard", "zero"] as const) {
  for (const extendedL2 of [false, true]) {
    const name = extendedL2 ? " with subclusters" : "";
    Deno.test(`a ${kind} that failed late does not take away what is written next${name}`, () => {
      const simulation = new Simulation({ seed: 3, latencyMs: 2, powerCuts: true });
      const { disk: storage } = simulation;
      createQcow2("/a", { storage, sizeBytes: 64 * MIB, extendedL2 });
      const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
      device.write(0, stampedSectors(0, 128, 1));
      device.write(256, stampedSectors(256, 128, 2));
      device.settle();
      failNextEntries(simulation);
      const failed = device[kind](0, 128);
      device.settle();
      assert.equal(failed.errno, Errno.EIO);
      const written = device.write(8, stampedSectors(8, 8, 3));
      device.settle();
      const flushed = device.flush();
      device.settle();
      assert.deepEqual([written.errno, flushed.errno], [0, 0]);
      assertHolds(device, 8, 8, 3);
      assertDurable(simulation, device, (after) => {
        assertHolds(after, 8, 8, 3);
        assertHolds(after, 256, 128, 2);
      });
    });
  }
}

Deno.test("zeros that follow a write that failed late are zeros in the file", () => {
  const simulation = new Simulation({ seed: 3, latencyMs: 2, powerCuts: true });
  createQcow2("/a", { storage: simulation.disk, sizeBytes: 64 * MIB });
  const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
  device.write(256, stampedSectors(256, 128, 2));
  device.settle();
  failNextEntries(simulation);
  const failed = device.write(0, stampedSectors(0, 128, 1));
  device.settle();
  assert.equal(failed.errno, Errno.EIO);
  const cleared = device.zero(0, 128);
  device.settle();
  const flushed = device.flush();
  device.settle();
  assert.deepEqual([cleared.errno, flushed.errno], [0, 0]);
  assertDurable(simulation, device, (after) => assertHolds(after, 0, 128, 0));
});

for (const kind of ["zero", "discard"] as const) {
  Deno.test(`a ${kind} that follows a first table whose L1 entry failed late`, () => {
    const simulation = new Simulation({ seed: 3, latencyMs: 2, powerCuts: true });
    const { disk: storage } = simulation;
    createQcow2("/a", { storage, sizeBytes: 64 * MIB });
    const { header, close } = openQcow2("/a", { storage });
    close();
    const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
    let failures = 0;
    storage.beforeOperation = ({ kind, offsetBytes, queued }) => {
      const isL1 = queued && kind === "write" && offsetBytes === Number(header.l1TableOffset);
      return isL1 && ++failures === 1 ? { does: "fail late", errno: Errno.EIO } : 0;
    };
    const failed = device.write(0, stampedSectors(0, 128, 1));
    device.settle();
    const changed = device[kind](0, 128);
    device.settle();
    const flushed = device.flush();
    device.settle();
    assert.ok(failures > 0);
    assert.deepEqual([failed.errno, changed.errno, flushed.errno], [Errno.EIO, 0, 0]);
    assertDurable(simulation, device, (after) => assertHolds(after, 0, 128, 0));
  });
}

Deno.test("a first write that failed late is followed by others to the same clusters", () => {
  const simulation = new Simulation({ seed: 3, latencyMs: 2, powerCuts: true });
  const { disk: storage } = simulation;
  createQcow2("/a", { storage, sizeBytes: 64 * MIB, clusterBytes: 4096 });
  const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
  for (let round = 0; round < 40; round++) {
    const sector = 8 * (round % 7);
    if (round % 3 === 0) failNextEntries(simulation);
    if (round % 5 === 4) device.discard(sector, 8);
    else device.write(sector, stampedSectors(sector, 8, round + 1));
    device.settle();
  }
  for (let i = 0; i < 7; i++) device.write(8 * i, stampedSectors(8 * i, 8, 100 + i));
  device.settle();
  device.flush();
  device.settle();
  assertDurable(simulation, device, (after) => {
    for (let i = 0; i < 7; i++) assertHolds(after, 8 * i, 8, 100 + i);
  });
});

Deno.test("the place of a first write that failed late is given to nothing else", () => {
  const simulation = new Simulation({ seed: 3, latencyMs: 2, powerCuts: true });
  createQcow2("/a", { storage: simulation.disk, sizeBytes: 64 * MIB, clusterBytes: 4096 });
  const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
  device.write(800, stampedSectors(800, 8, 1));
  device.settle();
  failNextEntries(simulation);
  const failed = device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  assert.equal(failed.errno, Errno.EIO);
  // In another sector of the table: the one of the first write keeps what it may have.
  for (let at = 1600; at < 1760; at += 8) {
    device.write(at, stampedSectors(at, 8, 2));
    device.settle();
  }
  device.flush();
  device.settle();
  assertDurable(simulation, device, (after) => {
    for (let at = 1600; at < 1760; at += 8) assertHolds(after, at, 8, 2);
  });
});

const SHAPES = [
  { clusterBytes: 512 },
  { clusterBytes: 4096 },
  { clusterBytes: 16384, extendedL2: true },
  { clusterBytes: 65536 },
] as const;

for (const shape of SHAPES) {
  const { clusterBytes } = shape;
  Deno.test(`random work with writes that fail late, clusters of ${clusterBytes} bytes`, () => {
    for (let seed = 1; seed <= 8; seed++) {
      const simulation = new Simulation({ seed, latencyMs: 3, powerCuts: true });
      createQcow2("/a", { storage: simulation.disk, sizeBytes: 64 * MIB, ...shape });
      syncFile(simulation.disk, "/a");
      const starts = [0, 50, 120, 500, 1990];
      new LateErrorsWork(simulation, seed, {
        name: "qcow2:/a",
        regions: [0, 4096, 40_000].flatMap((first) => starts.map((start) => first + start)),
        regionSectors: 48,
        initial: () => 0,
        check: requireValid,
      }).run(30);
    }
  });
}
