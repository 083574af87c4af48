/**
 * Properties of the VHD writer besides the order of writes: a failed write leaves no trace, a block
 * counts as full when all of its sectors are written, and no two writes in flight share a sector of
 * the file.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { IoKind } from "../../src/queue/backend.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { assertHolds, SECTOR_BYTES, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;
const BLOCK_SECTORS = 4096;
const PARENTS_STAMP = 99;

/** A child of an image whose first block is full. */
function simulateChild(): Simulation {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createDynamic("/base.vhd", { storage, sizeBytes: 8 * MIB });
  const base = simulation.open("vhd:/base.vhd");
  for (let sector = 0; sector < BLOCK_SECTORS; sector += 512) {
    base.write(sector, stampedSectors(sector, 512, PARENTS_STAMP));
  }
  base.settle();
  base.close();
  snapshot("/child.vhd", { storage, parent: "/base.vhd" });
  return simulation;
}

Deno.test("a write whose bitmap could not be written is not there after the next write to its block", () => {
  const simulation = simulateChild();
  const device = simulation.open("vhd:/child.vhd");
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  // In an allocated block: data, then the bitmap.
  let writes = 0;
  simulation.fault = (kind) => kind === "write" && ++writes === 2 ? Errno.EINVAL : 0;
  const failed = device.write(100, stampedSectors(100, 8, 2));
  device.settle();
  simulation.fault = null;
  assert.deepEqual([failed.errno, writes], [Errno.EINVAL, 2]);
  assertHolds(device, 100, 8, PARENTS_STAMP);
  const next = device.write(200, stampedSectors(200, 8, 3));
  device.settle();
  assert.equal(next.errno, 0);
  device.close();
  const again = simulation.open("vhd:/child.vhd");
  for (const [sector, stamp] of [[0, 1], [100, PARENTS_STAMP], [200, 3]]) {
    assertHolds(again, sector, 8, stamp);
  }
  again.close();
  simulation.close();
});

Deno.test("a write that joins a block's bitmap while that fails keeps its bits", () => {
  const simulation = simulateChild();
  const device = simulation.open("vhd:/child.vhd");
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  let joined: ReturnType<typeof device.write> | null = null;
  let writes = 0;
  simulation.fault = (kind) => {
    if (kind !== "write" || ++writes !== 2) return 0;
    joined = device.write(200, stampedSectors(200, 8, 3));
    return Errno.EINVAL;
  };
  const failed = device.write(100, stampedSectors(100, 8, 2));
  device.settle();
  simulation.fault = null;
  assert.equal(failed.errno, Errno.EINVAL);
  assert.ok(joined !== null);
  device.close();
  const again = simulation.open("vhd:/child.vhd");
  for (const [sector, stamp] of [[0, 1], [100, PARENTS_STAMP], [200, 3]]) {
    assertHolds(again, sector, 8, stamp);
  }
  again.close();
  simulation.close();
});

/** Writes all sectors of the first block but one, forwards or backwards. */
function writeAllBut(missing: number, order: "forwards" | "backwards"): void {
  const simulation = simulateChild();
  const device = simulation.open("vhd:/child.vhd");
  const parts: [number, number][] = [];
  for (let sector = 0; sector < BLOCK_SECTORS; sector += 512) {
    const hole = missing - sector;
    if (hole < 0 || hole >= 512) parts.push([sector, 512]);
    else parts.push([sector, hole], [missing + 1, 511 - hole]);
  }
  if (order === "backwards") parts.reverse();
  for (const [sector, count] of parts) {
    if (count === 0) continue;
    device.write(sector, stampedSectors(sector, count, 1));
    device.settle();
  }
  assertHolds(device, missing, 1, PARENTS_STAMP);
  assert.equal(device.write(missing, stampedSectors(missing, 1, 2)).errno, null);
  device.settle();
  device.close();
  const again = simulation.open("vhd:/child.vhd");
  assertHolds(again, missing, 1, 2);
  assertHolds(again, missing === 0 ? 1 : missing - 1, 1, 1);
  again.close();
  assert.deepEqual(checkImage("/child.vhd", { storage: simulation.disk }).findings, []);
  simulation.close();
}

for (const missing of [0, 1, 7, 8, 2048, BLOCK_SECTORS - 2, BLOCK_SECTORS - 1]) {
  Deno.test(`a block that lacks sector ${missing} alone is not full: the parent shows there`, () => {
    writeAllBut(missing, "forwards");
    writeAllBut(missing, "backwards");
  });
}

/** Fails when two writes in flight have a sector of the file in common. */
function refuseMeetings({ connection, disk }: Simulation): void {
  const underWay = new Map<number, number>();
  const prepare = connection.prepare.bind(connection);
  connection.prepare = (kind, file, sectors, count, memorySector, iovecCount, io): void => {
    const sector = sectors[io];
    if (kind === IoKind.Write) {
      for (const [other, otherCount] of underWay) {
        const apart = other >= sector + count || sector >= other + otherCount;
        assert.ok(apart, `writes at ${sector} and ${other} meet`);
      }
      underWay.set(sector, count);
    }
    prepare(kind, file, sectors, count, memorySector, iovecCount, io);
  };
  disk.beforeOperation = ({ kind, queued, offsetBytes }): void => {
    if (queued && kind === "write") underWay.delete(offsetBytes / SECTOR_BYTES);
  };
}

/** Fills a disk, several blocks at a time, and reads it. */
function fillDisk(seed: number, { blockSectors, slackSectors }: {
  blockSectors: number;
  slackSectors: number;
}): void {
  const blocks = blockSectors > 4096 ? 7 : 12;
  const simulation = new Simulation({ seed, latencyMs: 4 });
  const storage = simulation.disk;
  putForeignImage(storage, "/a.vhd", {
    sizeBytes: blocks * blockSectors * SECTOR_BYTES,
    blockSizeBytes: blockSectors * SECTOR_BYTES,
    slackSectors,
  });
  const device = simulation.open("vhd:/a.vhd");
  refuseMeetings(simulation);
  const third = Math.floor(blockSectors / 3);
  const count = Math.min(40, third);
  for (let block = 0; block < blocks; block++) {
    for (let part = 0; part < 3; part++) {
      const sector = block * blockSectors + part * third;
      device.write(sector, stampedSectors(sector, count, block + 1));
    }
    for (let turn = 0; turn < seed % 5; turn++) simulation.scheduler.turn();
  }
  device.settle();
  for (let block = 0; block < blocks; block++) {
    assertHolds(device, block * blockSectors, count, block + 1);
  }
  device.close();
  assert.deepEqual(checkImage("/a.vhd", { storage }).findings, []);
  const again = simulation.open("vhd:/a.vhd");
  for (let block = 0; block < blocks; block++) {
    assertHolds(again, block * blockSectors, count, block + 1);
  }
  again.close();
  simulation.close();
}

const SHAPES = [
  { what: "of 2 MiB", blockSectors: 4096, slackSectors: 0 },
  { what: "whose bitmap begins where the footer was", blockSectors: 32768, slackSectors: 0 },
  {
    what: "whose bitmap begins at a footer behind unused room",
    blockSectors: 128,
    slackSectors: 7,
  },
  { what: "whose data covers a footer behind unused room", blockSectors: 128, slackSectors: 200 },
];
for (const { what, blockSectors, slackSectors } of SHAPES) {
  Deno.test(`the footer and a new block ${what} are never written to one place at once`, () => {
    for (let seed = 1; seed <= 12; seed++) fillDisk(seed, { blockSectors, slackSectors });
  });
}
