/**
 * Single steps of the VHD driver that other tests see only by luck: bitmaps of a file that is opened
 * again, the end of the file, the order of a close, and errors of one step.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { allocatedBlocks } from "../../src/vhd/format/bat.ts";
import { encodeFooter } from "../../src/vhd/format/footer.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { growWithinMetadata } from "../../src/vhd/resize/resize.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, newFooter } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { assertHolds, SECTOR_BYTES, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;
const BLOCK_SECTORS = 4096;
const HD_TYPE_DYNAMIC = 3;
/** Of images that we make; their BAT has one sector here. */
const BAT_OFFSET = 1536;

/** Sets an empty image of 8 MiB up. */
function simulate(): Simulation {
  const simulation = new Simulation({ seed: 1 });
  createDynamic("/a.vhd", { storage: simulation.disk, sizeBytes: 8 * MIB });
  return simulation;
}

Deno.test("a bitmap that was read keeps its bits when another is added", () => {
  const simulation = simulate();
  for (let round = 0; round < 4; round++) {
    const device = simulation.open("vhd:/a.vhd");
    device.write(100 * round, stampedSectors(100 * round, 8, round + 1));
    device.settle();
    device.close();
  }
  const again = simulation.open("vhd:/a.vhd");
  for (let round = 0; round < 4; round++) assertHolds(again, 100 * round, 8, round + 1);
  again.close();
  simulation.close();
});

Deno.test("more blocks than the bitmap cache has room for are written and read at once", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 4 });
  const storage = simulation.disk;
  // Bitmaps of 16 KiB: the cache has room for 16 of them.
  const blockSizeBytes = 64 * MIB;
  const blocks = 40;
  putForeignImage(storage, "/a.vhd", { sizeBytes: blocks * blockSizeBytes, blockSizeBytes });
  const device = simulation.open("vhd:/a.vhd");
  const place = (block: number): number => block * (blockSizeBytes / SECTOR_BYTES) + 3 * block;
  for (const stamp of [1, 2]) {
    for (let block = 0; block < blocks; block++) {
      device.write(place(block) + 8 * stamp, stampedSectors(place(block) + 8 * stamp, 8, stamp));
    }
  }
  device.settle();
  for (const stamp of [1, 2]) {
    for (let block = 0; block < blocks; block++) {
      assertHolds(device, place(block) + 8 * stamp, 8, stamp);
    }
  }
  device.close();
  assert.deepEqual(checkImage("/a.vhd", { storage }).findings, []);
  const again = simulation.open("vhd:/a.vhd");
  const reads = Array.from({ length: blocks }, (_, block) => again.read(place(block) + 8, 8));
  again.settle();
  for (const [block, { errno, data }] of reads.entries()) {
    assert.equal(errno, 0);
    assert.deepEqual(data, stampedSectors(place(block) + 8, 8, 1));
  }
  again.close();
  simulation.close();
});

Deno.test("a guest's data is never at the end of the file, where a footer is looked for", () => {
  const simulation = simulate();
  const { disk } = simulation;
  const device = simulation.open("vhd:/a.vhd");
  const footer = encodeFooter(newFooter(HD_TYPE_DYNAMIC, MIB));
  let writes = 0;
  disk.beforeOperation = ({ kind, queued, path, offsetBytes, lengthBytes }): void => {
    if (!queued || kind !== "write" || lengthBytes !== SECTOR_BYTES) return;
    const end = disk.status(path).sizeBytes;
    writes++;
    if (writes === 1) assert.ok(offsetBytes + lengthBytes < end, `${offsetBytes} of ${end}`);
  };
  // The last sector of a new block, which the file ends with.
  device.write(BLOCK_SECTORS - 1, footer);
  device.settle();
  disk.beforeOperation = null;
  assert.ok(writes > 0);
  // The process dies.
  const after = new Simulation({ seed: 1 });
  after.close();
  const image = disk.open("/a.vhd", "read");
  const tail = new Uint8Array(SECTOR_BYTES);
  image.readAt(tail, image.sizeBytes() - SECTOR_BYTES);
  image.close();
  assert.notDeepEqual(tail, footer);
  device.close();
  simulation.close();
});

Deno.test("closing syncs the bitmaps before the batmap that repeats them", () => {
  const simulation = simulate();
  const device = simulation.open("vhd:/a.vhd");
  for (let sector = 0; sector < BLOCK_SECTORS; sector += 512) {
    device.write(sector, stampedSectors(sector, 512, 1));
    device.settle();
  }
  const steps: string[] = [];
  simulation.disk.beforeOperation = ({ kind, path, queued, offsetBytes }): void => {
    if (queued || path !== "/a.vhd") return;
    if (kind === "sync") steps.push("sync");
    if (kind === "write") steps.push(offsetBytes < 4096 ? "metadata" : "footer");
  };
  device.close();
  simulation.disk.beforeOperation = null;
  assert.deepEqual(steps[0], "sync");
  assert.ok(steps.includes("metadata"), "the batmap is written");
  assert.deepEqual(steps.at(-1), "sync");
  assert.deepEqual(checkImage("/a.vhd", { storage: simulation.disk }).findings, []);
  simulation.close();
});

Deno.test("a new block whose sync failed is not named by the BAT", () => {
  const simulation = simulate();
  const storage = simulation.disk;
  const device = simulation.open("vhd:/a.vhd");
  const steps: string[] = [];
  simulation.fault = (kind) => {
    steps.push(kind);
    return kind === "sync" ? Errno.EINVAL : 0;
  };
  const failed = device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  simulation.fault = null;
  assert.equal(failed.errno, Errno.EINVAL);
  assert.deepEqual(steps, ["write", "write", "sync"]);
  assertHolds(device, 0, 8, 0);
  const image = openVhd("/a.vhd", { storage });
  assert.equal(allocatedBlocks(image.bat), 0);
  image.close();
  device.close();
  simulation.close();
});

Deno.test("data of an allocated block whose sync failed gets no bits, and is written again", () => {
  const simulation = simulate();
  const device = simulation.open("vhd:/a.vhd");
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  const steps: string[] = [];
  simulation.fault = (kind) => {
    steps.push(kind);
    return kind === "sync" && steps.length === 2 ? Errno.EIO : 0;
  };
  const outcome = device.write(100, stampedSectors(100, 8, 2));
  device.settle();
  simulation.fault = null;
  assert.equal(outcome.errno, 0);
  assert.deepEqual(steps, ["write", "sync", "write", "sync", "write"]);
  assertHolds(device, 100, 8, 2);
  device.close();
  simulation.close();
});

Deno.test("a footer that could not be written is written with the next block", () => {
  const simulation = simulate();
  const storage = simulation.disk;
  const device = simulation.open("vhd:/a.vhd");
  const bitmaps = new Set<number>();
  let footers = 0;
  let bitmapErrors = 0;
  // Both blocks find their place at once. The first is published alone, as the bitmap of the second
  // fails, and the footer behind both fails too.
  storage.beforeOperation = ({ kind, queued, path, offsetBytes, lengthBytes }): number => {
    if (!queued || kind !== "write" || lengthBytes !== SECTOR_BYTES) return 0;
    if (offsetBytes === storage.status(path).sizeBytes - SECTOR_BYTES) {
      return ++footers === 1 ? Errno.EIO : 0;
    }
    if (offsetBytes > BAT_OFFSET) bitmaps.add(offsetBytes);
    return bitmaps.size === 2 && bitmapErrors++ === 0 ? Errno.EIO : 0;
  };
  const outcomes = [0, BLOCK_SECTORS].map((sector) =>
    device.write(sector, stampedSectors(sector, 8, 1))
  );
  device.settle();
  storage.beforeOperation = null;
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0]);
  assert.equal(footers, 2);
  device.close();
  assert.deepEqual(checkImage("/a.vhd", { storage }).findings, []);
  simulation.close();
});

Deno.test("a child that is larger than its parent reads zeros behind the parent's end", () => {
  const simulation = simulate();
  const storage = simulation.disk;
  const base = simulation.open("vhd:/a.vhd");
  const last = 8 * MIB / SECTOR_BYTES - 8;
  base.write(last, stampedSectors(last, 8, 1));
  base.settle();
  base.close();
  snapshot("/child.vhd", { storage, parent: "/a.vhd", reserveBytes: 16 * MIB });
  growWithinMetadata("/child.vhd", { storage, sizeBytes: 12 * MIB });
  const child = simulation.open("vhd:/child.vhd");
  for (const [from, count] of [[last - 4, 24], [last + 7, 2], [last + 8, 8]]) {
    const read = child.read(from, count);
    child.settle();
    assert.equal(read.errno, 0);
    assert.ok(read.data);
    for (let i = 0; i < count; i++) {
      const held = from + i >= last && from + i < last + 8;
      const found: Uint8Array = read.data.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
      const expected = held ? stampedSectors(from + i, 1, 1) : new Uint8Array(SECTOR_BYTES);
      assert.deepEqual(found, expected);
    }
  }
  child.close();
  simulation.close();
});
