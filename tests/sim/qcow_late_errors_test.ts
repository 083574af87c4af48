/**
 * Writes of tables that a disk reports as failed although it has done them: the tables of a QCOW file have
 * other entries than those in memory. What is written and flushed afterwards is in the file.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { checkQcow } from "../../src/qcow/check.ts";
import { createQcow } from "../../src/qcow/create.ts";
import { encodeHeader, l1Entries, type QcowHeader } from "../../src/qcow/format.ts";
import { openQcow } from "../../src/qcow/image.ts";
import type { Verdict } from "../../src/testing/disk_operation.ts";
import { LateErrorsWork } from "../support/late_errors.ts";
import {
  assertHolds,
  type Outcome,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
} from "../support/sim.ts";
import { putFile, syncFile } from "../support/vhd.ts";

const PATH = "/a.qcow";
const SIZE_BYTES = 32 << 20;

/** Clusters of 512 bytes to 64 KiB; a table of 64 entries has one sector. */
function makeImage(
  { disk }: Simulation,
  { clusterBits, l2Bits, backing = "" }: {
    clusterBits: number;
    l2Bits: number;
    backing?: string;
  },
): void {
  const name = new TextEncoder().encode(backing);
  const header: QcowHeader = {
    backingOffsetBytes: name.length === 0 ? 0 : 48,
    backingLengthBytes: name.length,
    mtime: 0,
    sizeBytes: SIZE_BYTES,
    clusterBits,
    l2Bits,
    cryptMethod: 0,
    l1OffsetBytes: Math.ceil((48 + name.length) / 8) * 8,
  };
  const bytes = new Uint8Array(header.l1OffsetBytes + 8 * l1Entries(header));
  bytes.set(encodeHeader(header));
  bytes.set(name, 48);
  putFile(disk, PATH, bytes);
  syncFile(disk, PATH);
}

function newSimulation(seed = 3): Simulation {
  return new Simulation({ seed, latencyMs: 2, powerCuts: true });
}

/** A device that tells of errors at once. */
function open(simulation: Simulation): SimulatedDevice {
  return simulation.open(`qcow:${PATH}`, { retry: { timeoutMs: 0 } });
}

function ended(device: SimulatedDevice, outcome: Outcome): number | null {
  device.settle();
  return outcome.errno;
}

/** What becomes of the next write of the sector that begins at a byte of the image. */
function failNext({ disk }: Simulation, atBytes: number, verdict: Verdict): void {
  disk.beforeOperation = ({ kind, path, offsetBytes, lengthBytes, queued }): Verdict => {
    if (!queued || kind !== "write" || path !== PATH) return 0;
    if (offsetBytes !== atBytes || lengthBytes > 1024) return 0;
    disk.beforeOperation = null;
    return verdict;
  };
}

const LATE: Verdict = { does: "fail late", errno: Errno.EIO };

/** The byte at which a table begins. */
function tableAt({ disk }: Simulation, table: number): number {
  const { l1, close } = openQcow(PATH, { storage: disk });
  close();
  return 512 * l1[table];
}

function requireValid({ disk }: Simulation): void {
  const { valid, findings } = checkQcow(PATH, { storage: disk });
  assert.ok(valid, JSON.stringify(findings));
}

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
  requireValid(after);
  after.close();
}

for (const isNew of [true, false]) {
  const what = isNew ? "a first table" : "a sector of a table";
  Deno.test(`QCOW: zeros that follow ${what} that failed late are in the file`, () => {
    const simulation = newSimulation();
    createQcow(simulation.disk, { path: PATH }, { sizeBytes: SIZE_BYTES });
    const device = open(simulation);
    if (!isNew) {
      assert.equal(ended(device, device.write(64, stampedSectors(64, 8, 1))), 0);
    }
    failNext(simulation, isNew ? 0 : tableAt(simulation, 0), LATE);
    assert.equal(ended(device, device.write(0, stampedSectors(0, 8, 2))), Errno.EIO);
    assert.equal(ended(device, device.zero(0, 16)), 0);
    assert.equal(ended(device, device.flush()), 0);
    afterCut(simulation, device, (after) => {
      assertHolds(after, 0, 16, 0);
      assertHolds(after, 64, 8, isNew ? 0 : 1);
    });
  });

  Deno.test(`QCOW: zeros take no room when ${what} that failed late has been written`, () => {
    const simulation = newSimulation();
    createQcow(simulation.disk, { path: PATH }, { sizeBytes: SIZE_BYTES });
    const device = open(simulation);
    if (!isNew) {
      assert.equal(ended(device, device.write(64, stampedSectors(64, 8, 1))), 0);
    }
    failNext(simulation, isNew ? 0 : tableAt(simulation, 0), LATE);
    assert.equal(ended(device, device.write(0, stampedSectors(0, 8, 2))), Errno.EIO);
    assert.equal(ended(device, device.write(16, stampedSectors(16, 8, 3))), 0);
    assert.equal(ended(device, device.zero(0, 16)), 0);
    const status = device.status(0, 32);
    device.settle();
    assert.deepEqual(status.extents, [-16, 8, -8]);
    assert.equal(ended(device, device.flush()), 0);
    afterCut(simulation, device, (after) => {
      assertHolds(after, 0, 16, 0);
      assertHolds(after, 16, 8, 3);
    });
  });
}

Deno.test("QCOW: zeros follow a write of which one sector of the table failed", () => {
  const simulation = newSimulation();
  makeImage(simulation, { clusterBits: 9, l2Bits: 8 });
  const device = open(simulation);
  assert.equal(ended(device, device.write(200, stampedSectors(200, 1, 1))), 0);
  // Clusters 60 to 67: the entries of the first four are in the first sector, which is written.
  failNext(simulation, tableAt(simulation, 0), { does: "shorten", lengthBytes: 512 });
  assert.equal(ended(device, device.write(60, stampedSectors(60, 8, 2))), Errno.ENOSPC);
  assert.equal(ended(device, device.zero(60, 8)), 0);
  assert.equal(ended(device, device.flush()), 0);
  afterCut(simulation, device, (after) => {
    assertHolds(after, 60, 8, 0);
    assertHolds(after, 200, 1, 1);
  });
});

const SHAPES = [
  { clusterBits: 12, l2Bits: 9, isBacked: false },
  { clusterBits: 9, l2Bits: 8, isBacked: false },
  { clusterBits: 12, l2Bits: 6, isBacked: true },
] as const;

for (const { clusterBits, l2Bits, isBacked } of SHAPES) {
  const shape = `2^${clusterBits} bytes, 2^${l2Bits} entries${isBacked ? ", on a raw file" : ""}`;
  Deno.test(`QCOW: random work with writes that fail late, ${shape}`, () => {
    for (let seed = 1; seed <= 12; seed++) {
      const simulation = new Simulation({ seed, latencyMs: 3, powerCuts: true });
      if (isBacked) {
        putFile(
          simulation.disk,
          "/base.raw",
          stampedSectors(0, 2048, 7) as Uint8Array<ArrayBuffer>,
        );
        syncFile(simulation.disk, "/base.raw");
      }
      makeImage(simulation, { clusterBits, l2Bits, backing: isBacked ? "/base.raw" : undefined });
      const starts = [0, 50, 120, 500, 1990];
      new LateErrorsWork(simulation, seed, {
        name: isBacked ? `qcow:raw:${PATH}` : `qcow:${PATH}`,
        regions: [0, 4096, 40_000].flatMap((first) => starts.map((start) => first + start)),
        regionSectors: 48,
        initial: (sector) => isBacked && sector < 2048 ? 7 : 0,
        check: requireValid,
      }).run(30);
    }
  });
}
