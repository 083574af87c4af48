/**
 * Metadata of VHDs at the edge of what is accepted: blocks that touch each other or the footer,
 * batmap bits of blocks that are not there.
 *
 * @module
 */
import assert from "node:assert/strict";
import { DD_BLK_UNUSED } from "../../src/vhd/format/bat.ts";
import { encodeFooter } from "../../src/vhd/format/footer.ts";
import { setBit, testBit } from "../../src/vhd/format/bitmap.ts";
import { isJournalEntry } from "../../src/vhd/format/journal_format.ts";
import { blockEnd, nextBlockSector } from "../../src/vhd/format/layout.ts";
import { VHD_SECTOR_SIZE } from "../../src/vhd/format/units.ts";
import { writeBatmap } from "../../src/vhd/image/batmap_writer.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { locateParent, openParent } from "../../src/vhd/image/parent.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { fillImage } from "../../src/vhd/fill.ts";
import { makeFrontRoom } from "../../src/vhd/front_room.ts";
import { changeParent } from "../../src/vhd/modify.ts";
import { repairImage } from "../../src/vhd/repair.ts";
import { resizeVhd } from "../../src/vhd/resize/resize.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeBat, writeRange } from "../../src/vhd/write.ts";
import type { DiskOperation, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { getFile, putFile } from "../support/vhd.ts";
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

Deno.test("the backup of a footer is made the same, and synced, before the footer is given up", () => {
  const simulation = makeImage();
  const storage = simulation.disk;
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  image.footer.hidden = 1;
  image.file.writeAt(encodeFooter(image.footer), image.file.sizeBytes() - 512);
  image.close();
  for (const open of ["served", "offline"]) {
    const steps: string[] = [];
    storage.beforeOperation = ({ kind, offsetBytes }): void => {
      if (kind === "sync" || kind === "truncate") steps.push(kind);
      if (kind === "write") steps.push(offsetBytes === 0 ? "backup" : "write");
    };
    const bytes = stampedSectors(0, 1, 1);
    if (open === "served") {
      const device = simulation.open("vhd:/a.vhd");
      device.write(3 * BLOCK_BYTES / VHD_SECTOR_SIZE, bytes);
      device.settle();
      assert.deepEqual(steps.slice(0, 2), ["backup", "sync"]);
      device.close();
    } else {
      const again = openVhd("/a.vhd", { storage, readOnly: false });
      again.footer.hidden = 0;
      again.file.writeAt(encodeFooter(again.footer), again.file.sizeBytes() - 512);
      steps.length = 0;
      writeRange(again, Uint8Array.from(bytes), 4 * BLOCK_BYTES);
      assert.deepEqual(steps.slice(0, 2), ["backup", "sync"]);
      finishWriting(again);
      again.close();
    }
    storage.beforeOperation = null;
  }
  assert.deepEqual(checkImage("/a.vhd", { storage }).findings, []);
  simulation.close();
});

Deno.test("a header that was rewritten has no copy left in the file", () => {
  const simulation = makeImage();
  const storage = simulation.disk;
  for (const name of ["/b.vhd", "/c.vhd"]) {
    createDynamic(name, { storage, sizeBytes: 8 * BLOCK_BYTES });
  }
  snapshot("/child.vhd", { storage, parent: "/b.vhd" });
  for (const isFull of [false, true]) {
    changeParent("/child.vhd", { storage, parent: isFull ? "/b.vhd" : "/c.vhd" });
    const text = new TextDecoder("latin1").decode(getFile(storage, "/child.vhd"));
    assert.equal(text.split("cxsparse").length - 1, 1);
    const child = openVhd("/child.vhd", { storage, readOnly: false });
    writeRange(child, new Uint8Array(BLOCK_BYTES).fill(7), 0);
    finishWriting(child);
    child.close();
  }
  assert.deepEqual(checkImage("/child.vhd", { storage, checkData: true }).findings, []);
  simulation.close();
});

Deno.test("a journal: its entries are synced before its header, and that before the image changes", () => {
  const simulation = makeImage();
  const storage = simulation.disk;
  const steps: string[] = [];
  const note = (step: string): void => {
    if (steps.at(-1) !== step) steps.push(step);
  };
  storage.beforeOperation = ({ kind, path, offsetBytes }): void => {
    if (kind !== "sync" && kind !== "write" && kind !== "remove") return;
    const what = path === "/a.vhd" ? "image" : offsetBytes === 0 ? "header" : "entries";
    note(kind === "write" ? what : `${kind} ${path === "/a.vhd" ? "image" : "journal"}`);
  };
  // More blocks than the sector of the BAT has entries for.
  resizeVhd("/a.vhd", { storage, journal: "/journal", sizeBytes: 200 * BLOCK_BYTES });
  storage.beforeOperation = null;
  const begin = ["header", "sync journal", "entries", "sync journal", "header", "sync journal"];
  // The footer and its backup out of use, the change, the backup, the footer.
  const change = Array.from({ length: 5 }, () => ["image", "sync image"]).flat();
  const end = ["header", "sync journal", "remove journal"];
  assert.deepEqual(steps, [...begin, ...change, ...end]);
  assert.deepEqual(checkImage("/a.vhd", { storage, checkData: true }).findings, []);
  simulation.close();
});

Deno.test("a journal's entry has data, and no more than the longest block table", () => {
  const cookie = 0xaaaa_1234_4321_aaaan;
  const entry = { cookie, type: 1, offsetBytes: 0, checksum: 0 };
  const most = 64 << 20;
  const isEntry = (sizeBytes: number): boolean => isJournalEntry({ ...entry, sizeBytes });
  assert.deepEqual([100, 512, most].map(isEntry), [true, true, true]);
  assert.deepEqual([0, most + 512, 2 ** 31, 2 ** 32 - 512].map(isEntry).includes(true), false);
  assert.ok(!isJournalEntry({ ...entry, sizeBytes: 512, cookie: 0n }));
});

Deno.test("a parent that is replaced after it was looked at is not opened", () => {
  const simulation = makeImage();
  const storage = simulation.disk;
  snapshot("/child.vhd", { storage, parent: "/a.vhd" });
  const child = openVhd("/child.vhd", { storage });
  const found = locateParent(child);
  openParent(found, { storage }).close();
  // Another file with the same UUID.
  putFile(storage, "/other", getFile(storage, "/a.vhd"));
  storage.rename("/other", "/a.vhd");
  assert.throws(() => openParent(found, { storage }), { code: "ESTALE" });
  openParent(locateParent(child), { storage }).close();
  child.close();
  simulation.close();
});

Deno.test("fill syncs the copies of the parents' data before their bits hide it", () => {
  const simulation = makeImage();
  const storage = simulation.disk;
  snapshot("/child.vhd", { storage, parent: "/a.vhd" });
  const child = openVhd("/child.vhd", { storage, readOnly: false });
  writeRange(child, new Uint8Array(512).fill(2), 4096);
  finishWriting(child);
  const bitmapAt = child.bat[0] * VHD_SECTOR_SIZE;
  const dataAt = bitmapAt + child.bitmapSectors * VHD_SECTOR_SIZE;
  child.close();
  const steps: string[] = [];
  storage.beforeOperation = ({ kind, path, offsetBytes }): void => {
    if (path !== "/child.vhd" || (kind !== "write" && kind !== "sync")) return;
    const inBlock = offsetBytes >= dataAt && offsetBytes < dataAt + BLOCK_BYTES;
    const step = kind === "sync"
      ? kind
      : offsetBytes === bitmapAt
      ? "bitmap"
      : inBlock
      ? "data"
      : "";
    if (step !== "" && steps.at(-1) !== step) steps.push(step);
  };
  fillImage("/child.vhd", { storage });
  storage.beforeOperation = null;
  const bitmap = steps.indexOf("bitmap");
  assert.deepEqual(steps.slice(bitmap - 2, bitmap + 1), ["data", "sync", "bitmap"]);
  simulation.close();
});

Deno.test("a new image is synced before it is reported", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  const make: readonly [string, () => void][] = [
    ["/a.vhd", () => createDynamic("/a.vhd", { storage, sizeBytes: BLOCK_BYTES })],
    ["/f.vhd", () => createFixed("/f.vhd", { storage, sizeBytes: BLOCK_BYTES })],
    ["/b.vhd", () => snapshot("/b.vhd", { storage, parent: "/a.vhd", keepEmptyParent: true })],
  ];
  for (const [path, work] of make) {
    const steps: string[] = [];
    storage.beforeOperation = (step): void => {
      if (step.path === path && (step.kind === "write" || step.kind === "sync")) {
        steps.push(step.kind);
      }
    };
    work();
    storage.beforeOperation = null;
    assert.ok(steps.includes("write"));
    assert.equal(steps.at(-1), "sync", path);
  }
  simulation.close();
});

Deno.test("a header is written behind a copy of it that is on stable storage, and synced", () => {
  for (const hasBlock of [false, true]) {
    const simulation = makeImage();
    const storage = simulation.disk;
    createDynamic("/other.vhd", { storage, sizeBytes: 8 * BLOCK_BYTES });
    snapshot("/child.vhd", { storage, parent: "/a.vhd" });
    const child = openVhd("/child.vhd", { storage, readOnly: false });
    if (hasBlock) writeRange(child, new Uint8Array(512), 0);
    finishWriting(child);
    child.close();
    const steps: string[] = [];
    storage.beforeOperation = ({ kind, path, offsetBytes, lengthBytes }): void => {
      if (path !== "/child.vhd" || (kind !== "write" && kind !== "sync")) return;
      if (kind === "sync") steps.push("sync");
      else if (offsetBytes === 512) steps.push("header");
      else steps.push(lengthBytes >= 1024 ? "copy" : "name");
    };
    changeParent("/child.vhd", { storage, parent: "/other.vhd" });
    storage.beforeOperation = null;
    const headers = steps.flatMap((step, i) => step === "header" ? [i] : []);
    assert.equal(headers.length, 3);
    for (const i of headers) {
      const around = steps.slice(i - 3, i + 2);
      assert.deepEqual(around, ["sync", "copy", "sync", "header", "sync"], `${hasBlock}`);
    }
    simulation.close();
  }
});

Deno.test("offline writes: data, bitmap, sync, BAT for a new block; data before its bits for another", () => {
  const simulation = makeImage();
  const storage = simulation.disk;
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  const steps: string[] = [];
  const note = ({ kind, offsetBytes, lengthBytes }: DiskOperation): void => {
    if (kind === "sync") steps.push("sync");
    if (kind !== "write") return;
    if (offsetBytes === image.batOffsetBytes) steps.push("BAT");
    else if (lengthBytes === 1024) steps.push("data");
    else if (offsetBytes === image.bat[0] * VHD_SECTOR_SIZE) steps.push("bitmap");
    else if (offsetBytes === image.bat[5] * VHD_SECTOR_SIZE) steps.push("bitmap");
  };
  storage.beforeOperation = note;
  writeRange(image, new Uint8Array(1024).fill(3), 8192);
  assert.deepEqual(steps.splice(0), ["data", "sync", "bitmap"]);
  storage.beforeOperation = null;
  // The place of the block is known only behind it.
  const end = nextBlockSector(image, image.endOfDataSector);
  storage.beforeOperation = (operation): void => {
    if (operation.kind === "write" && operation.offsetBytes === end * VHD_SECTOR_SIZE) {
      steps.push("bitmap");
    } else note(operation);
  };
  writeRange(image, new Uint8Array(1024).fill(4), 5 * BLOCK_BYTES);
  finishWriting(image);
  storage.beforeOperation = null;
  assert.deepEqual(steps.slice(0, 4), ["data", "bitmap", "sync", "BAT"]);
  image.close();
  assert.deepEqual(checkImage("/a.vhd", { storage, checkData: true }).findings, []);
  simulation.close();
});
