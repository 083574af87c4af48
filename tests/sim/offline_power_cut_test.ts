/**
 * Journals after a power cut: what is written before a revert, and journals that are found again. All
 * cuts of single operations are in `tests/search/enumerate`.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import assert from "node:assert/strict";
import { SystemError } from "../../ffi/errno.ts";
import { changesOnly, DeadProcessError, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { repairImage } from "../../src/vhd/repair.ts";
import { revertJournal } from "../../src/vhd/resize/journal_revert.ts";
import { resizeVhd } from "../../src/vhd/resize/resize.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const BLOCK = 2 * MIB;
const DISK = 4 * BLOCK;
const JOURNAL = "/journal";

function fillBlock(storage: SimulatedDisk, path: string, block: number, value: number): void {
  const image = openVhd(path, { storage, readOnly: false });
  writeRange(image, new Uint8Array(4096).fill(value), block * BLOCK);
  finishWriting(image);
  image.close();
}

function makeDynamic(storage: SimulatedDisk): void {
  createDynamic("/a.vhd", { storage, sizeBytes: DISK });
  fillBlock(storage, "/a.vhd", 0, 10);
  fillBlock(storage, "/a.vhd", 1, 11);
}

function makeFixed(storage: SimulatedDisk): void {
  createFixed("/f.vhd", { storage, sizeBytes: DISK, sparse: true });
  const file = storage.open("/f.vhd", "write");
  file.writeAt(new Uint8Array(4096).fill(7), BLOCK);
  file.sync();
  file.close();
}

/** Reads the first byte of a block, after a repair if necessary. */
function recovered(storage: SimulatedDisk, path: string, block: number): number {
  if (!checkImage(path, { storage, ignoreTimestamps: true }).valid) repairImage(path, { storage });
  const options = { storage, ignoreTimestamps: true, checkData: true };
  const { valid, findings } = checkImage(path, options);
  assert.ok(valid, JSON.stringify(findings));
  const chain = openChain(path, { storage });
  const bytes = new Uint8Array(512);
  readRange(chain, bytes, block * BLOCK);
  chain.close();
  return bytes[0];
}

/** Runs with a power cut before operation `n`; returns whether the command ended before that. */
function cutAt(storage: SimulatedDisk, n: number, run: (storage: SimulatedDisk) => void): boolean {
  let count = 0;
  storage.beforeOperation = changesOnly(() => {
    if (++count > n) storage.cutPower();
  });
  let done = true;
  try {
    run(storage);
  } catch (error) {
    if (!(error instanceof DeadProcessError)) throw error;
    done = false;
  }
  storage.beforeOperation = null;
  if (done) storage.cutPower();
  storage.powerOn();
  return done;
}

/**
 * Opens an image like a tapdisk that starts after a power cut, and writes into a block that is there;
 * no footer is written. False if the image is refused.
 */
function writeIfItOpens(storage: SimulatedDisk, path: string): boolean {
  try {
    const image = openVhd(path, { storage, readOnly: false });
    writeRange(image, new Uint8Array(512).fill(99), 0);
    image.file.sync();
    image.close();
    return true;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return false;
  }
}

Deno.test("what is written to an image after a power cut in a resize is there after a revert", () => {
  for (const make of [makeDynamic, makeFixed]) {
    using origin = new SimulatedDisk({ seed: 3, powerCuts: true });
    make(origin);
    const path = make === makeFixed ? "/f.vhd" : "/a.vhd";
    const run = (storage: SimulatedDisk): void =>
      resizeVhd(path, {
        storage,
        sizeBytes: path === "/f.vhd" ? 2 * DISK : 2000 * DISK,
        journal: JOURNAL,
      });
    const before = path === "/f.vhd" ? 0 : 10;
    let written = 0;
    let done = false;
    for (let n = 0; !done; n++) {
      for (let choice = 0; choice < 4; choice++) {
        using storage = origin.copy();
        done = cutAt(storage, n, run);
        const wrote = writeIfItOpens(storage, path);
        if (storage.exists(JOURNAL)) revertJournal(path, { storage, journal: JOURNAL });
        assert.equal(recovered(storage, path, 0), wrote ? 99 : before, `operation ${n}`);
        if (wrote) written++;
      }
    }
    assert.ok(written > 4, `${written} times`);
  }
});

Deno.test("a journal that is found again after its resize undoes nothing", () => {
  using storage = new SimulatedDisk();
  makeDynamic(storage);
  let journal = new Uint8Array();
  storage.beforeOperation = ({ kind, path }) => {
    if (kind !== "write" || path !== "/a.vhd" || journal.length > 0) return;
    storage.beforeOperation = null;
    journal = getFile(storage, JOURNAL);
  };
  resizeVhd("/a.vhd", { storage, sizeBytes: 2000 * DISK, journal: JOURNAL });
  assert.ok(journal.length > 0);
  fillBlock(storage, "/a.vhd", 1000, 99);
  const wanted = getFile(storage, "/a.vhd");
  putFile(storage, JOURNAL, journal);
  revertJournal("/a.vhd", { storage, journal: JOURNAL });
  assert.ok(!storage.exists(JOURNAL));
  assert.ok(Buffer.compare(getFile(storage, "/a.vhd"), wanted) === 0);
});
