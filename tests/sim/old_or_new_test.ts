/**
 * After a power cut at any moment, a sector with a write that was not flushed holds what it held
 * before or what was written: not what its room in the file held, although a block of the image is
 * there and lacks the sector's bit.
 */
import assert from "node:assert/strict";
import { coalesce } from "../../src/bulk/coalesce.ts";
import { Random } from "../../src/testing/random.ts";
import { changesOnly, type SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { SECTOR_BYTES, Simulation, stampedSectors, stampOf } from "../support/sim.ts";

const MIB = 1024 * 1024;
const SECTORS = 256;
const CHOICES = 4;

function write(storage: SimulatedDisk, path: string, stamp: number, count = SECTORS): void {
  const image = openVhd(path, { storage, readOnly: false });
  writeRange(image, new Uint8Array(stampedSectors(0, count, stamp)), 0);
  finishWriting(image);
  image.close();
}

/** A base with stamp 1, and a child that has the block and, of its sectors, only the last. */
function makeChild(storage: SimulatedDisk): void {
  createDynamic("/base.vhd", { storage, sizeBytes: 4 * MIB });
  write(storage, "/base.vhd", 1);
  snapshot("/child.vhd", { storage, parent: "/base.vhd" });
  const image = openVhd("/child.vhd", { storage, readOnly: false });
  writeRange(image, new Uint8Array(stampedSectors(4000, 1, 9)), 4000 * SECTOR_BYTES);
  finishWriting(image);
  image.close();
}

function stampsOf(storage: SimulatedDisk, path: string): Set<number> {
  const chain = openChain(path, { storage });
  try {
    const bytes = new Uint8Array(SECTORS * SECTOR_BYTES);
    readRange(chain, bytes, 0);
    return new Set(Array.from({ length: SECTORS }, (_, i) => stampOf(bytes, i, i)));
  } finally {
    chain.close();
  }
}

/** Cuts the power of copies of the disk before each operation; returns how often. */
function cutting(disk: SimulatedDisk, seed: number, check: (photo: SimulatedDisk) => void): void {
  const random = new Random(seed);
  disk.beforeOperation = changesOnly(() => {
    for (let choice = 0; choice < CHOICES; choice++) {
      using photo = disk.photograph(random);
      check(photo);
    }
  });
}

function mustBe(path: string, ...allowed: number[]): (photo: SimulatedDisk) => void {
  return (photo) => {
    for (const stamp of stampsOf(photo, path)) {
      assert.ok(allowed.includes(stamp), `a sector of ${path} has ${stamp}, not one of ${allowed}`);
    }
  };
}

for (const seed of [1, 2, 3, 4, 5, 6]) {
  Deno.test(`old or new: writes of a running disk to a block that is there, seed ${seed}`, () => {
    const simulation = new Simulation({ seed, latencyMs: 3, powerCuts: true });
    makeChild(simulation.disk);
    const device = simulation.open("vhd:/child.vhd");
    cutting(simulation.disk, seed, mustBe("/child.vhd", 1, 2));
    for (let sector = 0; sector < SECTORS; sector += 32) {
      device.write(sector, stampedSectors(sector, 32, 2));
    }
    device.settle();
    simulation.disk.beforeOperation = null;
    device.close();
    simulation.close();
  });

  Deno.test(`old or new: writes to a block while the BAT gets it, seed ${seed}`, () => {
    const simulation = new Simulation({ seed, latencyMs: 3, powerCuts: true });
    createDynamic("/base.vhd", { storage: simulation.disk, sizeBytes: 4 * MIB });
    write(simulation.disk, "/base.vhd", 1);
    snapshot("/child.vhd", { storage: simulation.disk, parent: "/base.vhd" });
    const device = simulation.open("vhd:/child.vhd");
    cutting(simulation.disk, seed, mustBe("/child.vhd", 1, 2));
    const random = new Random(seed);
    for (let sector = 0; sector < SECTORS; sector += 16) {
      device.write(sector, stampedSectors(sector, 16, 2));
      for (let turns = random.below(4); turns > 0; turns--) simulation.scheduler.turn();
    }
    device.settle();
    simulation.disk.beforeOperation = null;
    device.close();
    simulation.close();
  });
}

Deno.test("old or new: offline writes to a block that is there", () => {
  const simulation = new Simulation({ seed: 3, powerCuts: true });
  makeChild(simulation.disk);
  cutting(simulation.disk, 3, mustBe("/child.vhd", 1, 2));
  write(simulation.disk, "/child.vhd", 2);
  simulation.close();
});

Deno.test("old or new: the parent that a child is coalesced into", async () => {
  const simulation = new Simulation({ seed: 5, powerCuts: true });
  makeChild(simulation.disk);
  snapshot("/leaf.vhd", { storage: simulation.disk, parent: "/child.vhd" });
  write(simulation.disk, "/leaf.vhd", 2);
  const isChild = mustBe("/child.vhd", 1, 2);
  const isLeaf = mustBe("/leaf.vhd", 2);
  cutting(simulation.disk, 5, (photo) => {
    isChild(photo);
    isLeaf(photo);
  });
  await coalesce("/leaf.vhd", { makeContext: simulation.disk.bulkContext() });
  simulation.disk.beforeOperation = null;
  assert.deepEqual([...stampsOf(simulation.disk, "/child.vhd")], [2]);
  simulation.close();
});
