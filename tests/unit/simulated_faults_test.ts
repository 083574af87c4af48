/**
 * What a bad disk and a block device of the simulated disk do, and the trace of operations.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Arena } from "../../ffi/memory.ts";
import { copyImage } from "../../src/bulk/copy.ts";
import { DiskQueue } from "../../src/queue/disk_queue.ts";
import {
  describeOperation,
  type DiskOperation,
  SimulatedDisk,
  type Verdict,
} from "../../src/testing/simulated_disk.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { Simulation } from "../support/sim.ts";
import { getFile, putFile, syncFile } from "../support/vhd.ts";

const SECTOR = 512;
const PAGE = 4096;

function filled(sectors: number, value: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(sectors * SECTOR).fill(value);
}

function firstBytes(bytes: Uint8Array): number[] {
  return [...bytes].filter((_, at) => at % SECTOR === 0);
}

/** Writes 4 sectors of 2 at sector 2 of a file of ones, synchronously or queued; the bytes. */
function written(verdict: Verdict, queued: boolean): { bytes: number[]; errno: number } {
  using disk = new SimulatedDisk();
  putFile(disk, "/f", filled(8, 1));
  let asked = 0;
  disk.beforeOperation = ({ kind }) => kind === "write" && asked++ === 0 ? verdict : 0;
  if (!queued) {
    const file = disk.open("/f", "write");
    file.writeAt(filled(4, 2), 2 * SECTOR);
    file.close();
    return { bytes: firstBytes(getFile(disk, "/f")), errno: 0 };
  }
  const scheduler = new SimulatedScheduler();
  const connection = disk.connect(scheduler);
  const queue = new DiskQueue(scheduler, connection, 8);
  const { file } = connection.open("/f", { readOnly: false, direct: true });
  queue.register(file);
  const arena = new Arena(4 * SECTOR);
  arena.bytes.fill(2);
  const errnos: number[] = [];
  const owner = { ioDone: (_token: number, _sectors: number, errno: number) => errnos.push(errno) };
  queue.write(file, 4, 2, arena.sector + 2, owner, 0);
  queue.endOfTurn();
  queue.write(file, 2, 2, arena.sector, owner, 0);
  scheduler.runUntil(() => errnos.length === 2);
  queue.close();
  arena.release();
  return { bytes: firstBytes(getFile(disk, "/f")), errno: errnos[0] };
}

Deno.test("a bad disk loses, misdirects and shortens writes", () => {
  const lost = written({ does: "lose" }, false);
  assert.deepEqual(lost, { bytes: [1, 1, 1, 1, 1, 1, 1, 1], errno: 0 });
  const elsewhere = written({ does: "misdirect", offsetBytes: 0 }, false);
  assert.deepEqual(elsewhere, { bytes: [2, 2, 2, 2, 1, 1, 1, 1], errno: 0 });
  const short = written({ does: "shorten", lengthBytes: SECTOR }, false);
  assert.deepEqual(short, { bytes: [1, 1, 2, 2, 2, 2, 1, 1], errno: 0 });
  // Of the queued writes, of two sectors each, the first is affected.
  const queuedLost = written({ does: "lose" }, true);
  assert.deepEqual(queuedLost, { bytes: [1, 1, 2, 2, 1, 1, 1, 1], errno: 0 });
  const queuedElsewhere = written({ does: "misdirect", offsetBytes: 6 * SECTOR }, true);
  assert.deepEqual(queuedElsewhere, { bytes: [1, 1, 2, 2, 1, 1, 2, 2], errno: 0 });
  const queuedShort = written({ does: "shorten", lengthBytes: SECTOR }, true);
  assert.deepEqual(queuedShort, { bytes: [1, 1, 2, 2, 2, 1, 1, 1], errno: Errno.ENOSPC });
  assert.throws(() => written({ does: "shorten", lengthBytes: 4 * SECTOR }, false), TypeError);
});

Deno.test("a sync that is lost makes nothing durable; a rotten sector stays rotten", () => {
  using disk = new SimulatedDisk({ powerCuts: true });
  putFile(disk, "/f", filled(4, 1));
  syncFile(disk, "/f");
  disk.beforeOperation = ({ kind }) => kind === "sync" ? { does: "lose" } : 0;
  const file = disk.open("/f", "write");
  file.writeAt(filled(4, 2), 0);
  file.sync();
  file.close();
  assert.equal(disk.undecided().length, 1);
  disk.beforeOperation = null;
  disk.rot("/f", { sector: 1, bit: 11 });
  using kept = disk.photographWith(() => true);
  using lost = disk.photographWith(() => false);
  // The change is a cache's: it overwrites the sector that has rotted.
  assert.deepEqual([getFile(kept, "/f"), getFile(lost, "/f")].map((bytes) => bytes[SECTOR + 1]), [
    2,
    1 ^ 8,
  ]);
  assert.equal(getFile(disk, "/f")[SECTOR + 1], 2 ^ 8);
  disk.beforeOperation = ({ kind }) => kind === "read" ? { does: "rot", bit: 0 } : 0;
  const reader = disk.open("/f", "read");
  const bytes = new Uint8Array(1);
  reader.readAt(bytes, 0);
  assert.equal(bytes[0], 3);
});

Deno.test("a block device keeps its size, holds old data, and takes no room", () => {
  using disk = new SimulatedDisk({ powerCuts: true, capacityBytes: 0 });
  disk.addBlockDevice("/dev/d", { sizeBytes: 4 * PAGE });
  assert.equal(disk.locate("/dev/d").kind, "block");
  assert.deepEqual(disk.status("/dev/d").sizeBytes, 0);
  const file = disk.open("/dev/d", "create");
  assert.ok(file.isBlockDevice);
  const old = getFile(disk, "/dev/d");
  assert.equal(old.length, 4 * PAGE);
  assert.ok(old.every((byte) => byte !== 0) && new Set(old).size > 4);
  assert.throws(() => file.truncate(PAGE), { errno: Errno.EINVAL });
  assert.throws(() => file.writeAt(filled(2, 7), 4 * PAGE - SECTOR), { errno: Errno.ENOSPC });
  file.writeAt(filled(1, 6), PAGE + SECTOR);
  const now = getFile(disk, "/dev/d");
  assert.deepEqual(now.subarray(4 * PAGE - SECTOR), filled(1, 7));
  assert.deepEqual(now.subarray(PAGE + SECTOR, PAGE + 2 * SECTOR), filled(1, 6));
  assert.deepEqual(now.subarray(PAGE, PAGE + SECTOR), old.subarray(PAGE, PAGE + SECTOR));
  file.close();
  using photo = disk.photographWith(() => false);
  assert.deepEqual(getFile(photo, "/dev/d"), old);
  const connection = disk.connect(new SimulatedScheduler());
  const opened = connection.open("/dev/d", { readOnly: false, direct: true });
  assert.ok(opened.isBlockDevice);
  assert.equal(opened.allocatedRun(0, PAGE), PAGE);
  assert.throws(() => opened.truncate(0), { errno: Errno.EINVAL });
  opened.punchHole(PAGE, PAGE + SECTOR);
  const punched = getFile(disk, "/dev/d");
  assert.ok(punched.subarray(PAGE, 2 * PAGE + SECTOR).every((byte) => byte === 0));
  assert.deepEqual(
    punched.subarray(2 * PAGE + SECTOR, 3 * PAGE),
    old.subarray(2 * PAGE + SECTOR, 3 * PAGE),
  );
});

Deno.test("a trace names the code that asks for each operation", async () => {
  const lines: string[] = [];
  const trace = (operation: DiskOperation, verdict: Verdict): void => {
    lines.push(describeOperation(operation, verdict));
  };
  const simulation = new Simulation({ seed: 1, trace });
  const { disk } = simulation;
  createDynamic("/a.vhd", { storage: disk, sizeBytes: 4 << 20 });
  const device = simulation.open("vhd:/a.vhd");
  device.write(0, filled(8, 1));
  device.flush();
  device.settle();
  device.close();
  await copyImage("/a.vhd", "/b.vhd", { makeContext: disk.bulkContext() });
  simulation.close();
  for (const line of lines) assert.match(line, / {2}src\/[a-z_/]+\.ts:\d+ /, line);
  const seen = (operation: RegExp, from: RegExp): void =>
    assert.ok(lines.some((line) => operation.test(line) && from.test(line)), lines.join("\n"));
  seen(/^write \/a.vhd 0\+512/, /src\/vhd\/create.ts:\d+ writeSparseImage < /);
  seen(/^write \/a.vhd \d+\+4096/, /src\/driver\/vhd\/vhd_writer.ts:\d+ \S+/);
  seen(/^sync \/a.vhd/, /src\/driver\/vhd\/publisher.ts:\d+ \S+/);
  seen(/^truncate \/a.vhd to \d+/, /src\/driver\/vhd\/vhd_file.ts:\d+ growByBlock/);
  seen(/^write \/b.vhd.\S+.part/, /src\/bulk\//);
});
