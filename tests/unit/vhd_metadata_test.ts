/**
 * Metadata of VHDs at the edge of what is accepted: blocks that touch each other or the footer,
 * batmap bits of blocks that are not there.
 *
 * @module
 */
import assert from "node:assert/strict";
import { DD_BLK_UNUSED } from "../../src/vhd/format/bat.ts";
import { setBit, testBit } from "../../src/vhd/format/bitmap.ts";
import { blockEnd } from "../../src/vhd/format/layout.ts";
import { VHD_SECTOR_SIZE } from "../../src/vhd/format/units.ts";
import { writeBatmap } from "../../src/vhd/image/batmap_writer.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { makeFrontRoom } from "../../src/vhd/front_room.ts";
import { repairImage } from "../../src/vhd/repair.ts";
import { finishWriting, writeBat, writeRange } from "../../src/vhd/write.ts";
import type { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { Simulation, stampedSectors } from "../support/sim.ts";

const BLOCK_BYTES = 2 << 20;

/** An image whose first two blocks hold data, one behind the other. */
function makeImage(): Simulation {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createDynamic("/a.vhd", { storage, sizeBytes: 8 * BLOCK_BYTES });
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  for (const block of [0, 1]) writeRange(image, new Uint8Array(512).fill(1), block * BLOCK_BYTES);
  finishWriting(image);
  image.close();
  return simulation;
}

/** Moves a block in the BAT, and nothing else. */
function moveEntry(storage: SimulatedDisk, block: number, sectors: number): void {
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  image.bat[block] += sectors;
  writeBat(image);
  image.close();
}

Deno.test("a block may touch the footer and the next block, and overlap neither by a sector", () => {
  // The data of the blocks begins on 4 KiB, so there are seven sectors between them.
  const cases: readonly [block: number, sectors: number, isValid: boolean, what: string][] = [
    [1, 0, true, ""],
    [1, 1, false, "past the end of the file"],
    [1, -7, true, ""],
    [1, -8, false, "overlaps block"],
    [0, 7, true, ""],
    [0, 8, false, "overlaps block"],
  ];
  for (const [block, sectors, isValid, what] of cases) {
    const simulation = makeImage();
    const storage = simulation.disk;
    const image = openVhd("/a.vhd", { storage });
    assert.equal(image.bat[1] - blockEnd(image, image.bat[0]), 7);
    assert.equal(blockEnd(image, image.bat[1]) * VHD_SECTOR_SIZE, image.file.sizeBytes() - 512);
    image.close();
    moveEntry(storage, block, sectors);
    const name = `block ${block} moved by ${sectors}`;
    const { findings } = checkImage("/a.vhd", { storage });
    assert.equal(findings.some(({ severity }) => severity === "error"), !isValid, name);
    if (isValid) openVhd("/a.vhd", { storage }).close();
    else assert.throws(() => openVhd("/a.vhd", { storage }), new RegExp(what), name);
    simulation.close();
  }
});

/** Sets the batmap's bit of a block that is not allocated, with the right checksum. */
function claimBlock(storage: SimulatedDisk, block: number): void {
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  assert.ok(image.batmap !== null && image.bat[block] === DD_BLK_UNUSED);
  setBit(image.batmap.bits, block);
  writeBatmap(image);
  image.close();
}

Deno.test("batmap bits of blocks that are not there go when a tapdisk opens or repair looks", () => {
  const menders: ((simulation: Simulation) => void)[] = [
    (simulation) => simulation.open("vhd:/a.vhd").close(),
    ({ disk: storage }) => void repairImage("/a.vhd", { storage }),
  ];
  for (const mend of menders) {
    const simulation = makeImage();
    const storage = simulation.disk;
    claimBlock(storage, 5);
    assert.equal(checkImage("/a.vhd", { storage }).valid, false);
    mend(simulation);
    assert.deepEqual(checkImage("/a.vhd", { storage }).findings, []);
    const image = openVhd("/a.vhd", { storage });
    assert.ok(image.batmap !== null && !testBit(image.batmap.bits, 5));
    image.close();
    simulation.close();
  }
});

Deno.test("a block that gets its place where the batmap has a bit is not full", () => {
  const simulation = makeImage();
  const storage = simulation.disk;
  claimBlock(storage, 5);
  const device = simulation.open("vhd:/a.vhd");
  const sector = 5 * BLOCK_BYTES / VHD_SECTOR_SIZE;
  device.write(sector, stampedSectors(sector, 8, 1));
  device.settle();
  device.close();
  assert.deepEqual(checkImage("/a.vhd", { storage, checkData: true }).findings, []);
  simulation.close();
});

Deno.test("a block that makes room for names is synced in its new place before the BAT names it", () => {
  const simulation = makeImage();
  const storage = simulation.disk;
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  const oldBytes = image.file.sizeBytes();
  const steps: string[] = [];
  storage.beforeOperation = ({ kind, offsetBytes }): void => {
    if (kind === "sync") steps.push("sync");
    if (kind !== "write") return;
    if (offsetBytes === image.batOffsetBytes) steps.push("BAT");
    else steps.push(offsetBytes >= oldBytes ? "block or footer" : "something else");
  };
  makeFrontRoom(image, 16 * VHD_SECTOR_SIZE);
  storage.beforeOperation = null;
  image.close();
  assert.deepEqual(steps, ["block or footer", "block or footer", "sync", "BAT", "sync"]);
  assert.ok(checkImage("/a.vhd", { storage, checkData: true }).valid);
  simulation.close();
});
