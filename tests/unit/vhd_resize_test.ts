import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { DD_BLK_UNUSED } from "../../src/vhd/format/bat.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { updateFooters } from "../../src/vhd/image/footer_writer.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { revertJournal } from "../../src/vhd/resize/journal_revert.ts";
import { changesOnly, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { growWithinMetadata, resizeVhd } from "../../src/vhd/resize/resize.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { getFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const IMAGE = "/disk.vhd";
const JOURNAL = "/journal";

interface Case {
  readonly name: string;
  readonly make: (storage: SimulatedDisk) => void;
  readonly toMib: number;
  /** The last block gets zeros before the journal is written. */
  readonly clearsFirst?: boolean;
}

function write(storage: SimulatedDisk, path: string, offsets: readonly number[]): void {
  const image = openVhd(path, { storage, readOnly: false });
  for (const [index, offsetBytes] of offsets.entries()) {
    writeRange(image, new Uint8Array(4096).fill(index + 1), offsetBytes);
  }
  finishWriting(image);
  image.close();
}

/** A dynamic image with blocks in another order than on the disk, one of them full. */
function makeDynamic(storage: SimulatedDisk, sizeMib: number, reserveMib = 0): void {
  createDynamic(IMAGE, { storage, sizeBytes: sizeMib * MIB, reserveBytes: reserveMib * MIB });
  write(storage, IMAGE, [6 * MIB, 0, 2 * MIB + 4096]);
  const image = openVhd(IMAGE, { storage, readOnly: false });
  writeRange(image, new Uint8Array(2 * MIB).fill(0x77), 4 * MIB);
  finishWriting(image);
  image.close();
}

/**
 * A child that is shorter than its parent, which holds something in many places behind its end.
 *
 * @param options.cutBytes What the last block of the child lacks, as other programs make them.
 */
function makeShortChild(
  storage: SimulatedDisk,
  { childMib, cutBytes = 0, writes = [0] }: {
    childMib: number;
    cutBytes?: number;
    writes?: readonly number[];
  },
): void {
  createDynamic("/base.vhd", { storage, sizeBytes: 24 * MIB });
  write(storage, "/base.vhd", [0, 7 * MIB - 4096, 7 * MIB, 9 * MIB, 16 * MIB + 8192, 23 * MIB]);
  snapshot(IMAGE, { storage, parent: "/base.vhd", reserveBytes: 32 * MIB });
  write(storage, IMAGE, writes);
  resizeVhd(IMAGE, { storage, sizeBytes: childMib * MIB, journal: JOURNAL });
  if (cutBytes === 0) return;
  const image = openVhd(IMAGE, { storage, readOnly: false });
  image.footer.currentSize -= BigInt(cutBytes);
  updateFooters(image);
  image.close();
}

const CASES: readonly Case[] = [
  { name: "room in the last sector", make: (s) => makeDynamic(s, 16), toMib: 200 },
  { name: "a block is in the way", make: (s) => makeDynamic(s, 16), toMib: 100 * 1024 },
  { name: "all blocks are in the way", make: (s) => makeDynamic(s, 16), toMib: 2088960 },
  { name: "within the reserve", make: (s) => makeDynamic(s, 128, 400), toMib: 200 },
  { name: "beyond the reserve", make: (s) => makeDynamic(s, 128, 20480), toMib: 40960 },
  {
    name: "nothing is allocated",
    make: (s) => createDynamic(IMAGE, { storage: s, sizeBytes: MIB }),
    toMib: 8192,
  },
  { name: "dynamic shrinks", make: (s) => makeDynamic(s, 40960), toMib: 8 },
  {
    name: "a child with locators",
    make: (s) => {
      createDynamic("/base.vhd", { storage: s, sizeBytes: 64 * MIB });
      write(s, "/base.vhd", [0, 10 * MIB]);
      snapshot(IMAGE, { storage: s, parent: "/base.vhd" });
      write(s, IMAGE, [10 * MIB, 4 * MIB]);
    },
    toMib: 30000,
  },
  {
    name: "a child grows over what its parent holds",
    make: (s) => makeShortChild(s, { childMib: 8 }),
    toMib: 30,
  },
  {
    name: "a child grows over what its parent holds, and a block is in the way",
    make: (s) => makeShortChild(s, { childMib: 8 }),
    toMib: 100 * 1024,
  },
  {
    name: "a child that ends within a block grows over what its parent holds",
    make: (s) => makeShortChild(s, { childMib: 8, cutBytes: 1536 * 1024 }),
    toMib: 30,
    clearsFirst: true,
  },
  {
    name: "a child that ends within a block of its own grows over what its parent holds",
    make: (s) => makeShortChild(s, { childMib: 8, cutBytes: 1536 * 1024, writes: [6 * MIB] }),
    toMib: 30,
    clearsFirst: true,
  },
  {
    name: "a child grows over what a raw image holds",
    make: (s) => {
      const raw = s.open("/base.raw", "create");
      raw.writeAt(new Uint8Array(4096).fill(0x55), 9 * MIB);
      raw.writeAt(new Uint8Array(4096).fill(0x56), 20 * MIB - 4096);
      snapshot(IMAGE, { storage: s, parent: "/base.raw", rawParent: true });
      resizeVhd(IMAGE, { storage: s, sizeBytes: 8 * MIB, journal: JOURNAL });
    },
    toMib: 40,
  },
  {
    name: "space that belongs to nothing lies in front of the footer",
    make: (s) => {
      makeDynamic(s, 16);
      const file = s.open(IMAGE, "write");
      const footer = new Uint8Array(512);
      file.readAt(footer, 0);
      file.writeAt(new Uint8Array(512).fill(0x99), file.sizeBytes());
      file.writeAt(footer, file.sizeBytes() + 3 * MIB);
    },
    toMib: 100 * 1024,
  },
  {
    name: "fixed grows",
    make: (s) => {
      createFixed(IMAGE, { storage: s, sizeBytes: 2 * MIB });
      write(s, IMAGE, [0, MIB]);
    },
    toMib: 5,
  },
  {
    name: "fixed shrinks",
    make: (s) => {
      createFixed(IMAGE, { storage: s, sizeBytes: 6 * MIB });
      write(s, IMAGE, [0, MIB]);
    },
    toMib: 3,
  },
];

function contentOf(storage: SimulatedDisk, lengthBytes: number): Uint8Array<ArrayBuffer> {
  const chain = openChain(IMAGE, { storage });
  const bytes = new Uint8Array(Math.min(lengthBytes, chain.images[0].sizeBytes));
  readRange(chain, bytes, 0);
  chain.close();
  return bytes;
}

function assertResized(storage: SimulatedDisk, toMib: number, before: Uint8Array): void {
  const image = openVhd(IMAGE, { storage });
  assert.equal(image.sizeBytes, toMib * MIB);
  assert.equal(image.footerSource, "primary");
  image.close();
  const check = checkImage(IMAGE, { storage, checkData: true });
  assert.deepEqual(check.findings.filter(({ severity }) => severity === "error"), []);
  const after = contentOf(storage, before.length);
  assert.deepEqual(after, before.subarray(0, after.length));
}

/** What a disk has behind an old end, up to 24 MiB of it, is zeros. */
function assertZerosFrom(storage: SimulatedDisk, fromBytes: number): void {
  const added = contentOf(storage, 24 * MIB).subarray(fromBytes);
  assert.equal(Buffer.compare(added, new Uint8Array(added.length)), 0);
}

/** Every change from the n-th on fails, as if the process had died. */
function dieAt(storage: SimulatedDisk, n: number): void {
  let count = 0;
  storage.beforeOperation = changesOnly(() => ++count > n ? Errno.EIO : 0);
}

function attempt(body: () => void): boolean {
  try {
    body();
    return true;
  } catch (error) {
    if (error instanceof SystemError) return false;
    throw error;
  }
}

for (const { name, make, toMib, clearsFirst = false } of CASES) {
  Deno.test(`resize, killed at any point: ${name}`, () => {
    const origin = new SimulatedDisk();
    make(origin);
    const original = getFile(origin, IMAGE);
    const content = contentOf(origin, 16 * MIB);
    const { sizeBytes } = openVhd(IMAGE, { storage: origin });
    let reverted = 0;
    for (let n = 0;; n++) {
      using storage = origin.copy();
      dieAt(storage, n);
      const done = attempt(() =>
        resizeVhd(IMAGE, { storage, sizeBytes: toMib * MIB, journal: JOURNAL })
      );
      storage.beforeOperation = null;
      if (done) {
        assert.ok(n > 5);
        // The backup is written and synced, then the footer at the end; the journal is marked, synced
        // and removed. From the backup on the change is complete.
        assert.ok(reverted >= n - 7, `${reverted} of ${n} give back what was`);
        assert.equal(storage.exists(JOURNAL), false);
        assertResized(storage, toMib, content);
        assertZerosFrom(storage, sizeBytes);
        break;
      }
      // The revert is killed too, once at each of several points.
      for (let m = n % 3; storage.exists(JOURNAL); m += 3) {
        dieAt(storage, m);
        attempt(() => revertJournal(IMAGE, { storage, journal: JOURNAL }));
        storage.beforeOperation = null;
      }
      // Killed while the journal is removed: the resize is complete, and a revert does not undo it.
      if (Buffer.compare(getFile(storage, IMAGE), original) === 0) reverted++;
      else if (clearsFirst && openVhd(IMAGE, { storage }).sizeBytes === sizeBytes) {
        assert.deepEqual(contentOf(storage, 16 * MIB), content);
        reverted++;
      } else assertResized(storage, toMib, content);
    }
  });
}

Deno.test("a resize that fails by itself leaves the image as it was, and no journal", () => {
  const storage = new SimulatedDisk();
  makeDynamic(storage, 16);
  const original = getFile(storage, IMAGE);
  const resize = (sizeBytes: number): void =>
    resizeVhd(IMAGE, { storage, sizeBytes, journal: JOURNAL });
  for (const size of [0, -1, NaN, 2088961 * MIB, 6 * MIB, 2 * MIB]) {
    assert.throws(() => resize(size), { errno: Errno.EINVAL }, String(size));
  }
  let failures = 0;
  storage.beforeOperation = changesOnly(({ path }) =>
    path === IMAGE && ++failures === 4 ? Errno.ENOSPC : 0
  );
  assert.throws(() => resize(100 * 1024 * MIB), { errno: Errno.ENOSPC });
  storage.beforeOperation = null;
  assert.equal(storage.exists(JOURNAL), false);
  assert.ok(Buffer.compare(getFile(storage, IMAGE), original) === 0);
  storage.open(JOURNAL, "create").writeAt(new Uint8Array(1), 0);
  assert.throws(() => resize(32 * MIB), { errno: Errno.EEXIST });
  assert.equal(getFile(storage, JOURNAL).length, 1);
  assert.ok(Buffer.compare(getFile(storage, IMAGE), original) === 0);
});

Deno.test("a journal is reverted only onto its own image, and only when it is sound", () => {
  const storage = new SimulatedDisk();
  makeDynamic(storage, 16);
  createDynamic("/other.vhd", { storage, sizeBytes: 16 * MIB });
  const other = getFile(storage, "/other.vhd");
  dieAt(storage, 20);
  attempt(() => resizeVhd(IMAGE, { storage, sizeBytes: 100 * 1024 * MIB, journal: JOURNAL }));
  storage.beforeOperation = null;
  const broken = getFile(storage, IMAGE);
  const revert = (path: string): void => revertJournal(path, { storage, journal: JOURNAL });
  assert.throws(() => revert("/other.vhd"), /is the journal of another image/);
  assert.deepEqual(getFile(storage, "/other.vhd"), other);
  const journal = storage.open(JOURNAL, "write");
  const byte = new Uint8Array(1);
  for (let at = 512; at < journal.sizeBytes(); at += 977) {
    journal.readAt(byte, at);
    byte[0] ^= 1;
    journal.writeAt(byte, at);
    assert.throws(() => revert(IMAGE), { errno: Errno.EINVAL }, `byte ${at}`);
    byte[0] ^= 1;
    journal.writeAt(byte, at);
  }
  assert.ok(Buffer.compare(getFile(storage, IMAGE), broken) === 0);
  revert(IMAGE);
  assert.ok(checkImage(IMAGE, { storage }).valid);
});

Deno.test("a disk grows within its metadata without a journal", () => {
  const storage = new SimulatedDisk();
  makeDynamic(storage, 128, 400);
  const grow = (mib: number): void => growWithinMetadata(IMAGE, { storage, sizeBytes: mib * MIB });
  const content = contentOf(storage, 16 * MIB);
  grow(201);
  assertResized(storage, 202, content);
  const before = getFile(storage, IMAGE);
  for (const mib of [0, 100, 401, 2088961]) {
    assert.throws(() => grow(mib), { errno: Errno.EINVAL }, String(mib));
  }
  assert.deepEqual(getFile(storage, IMAGE), before);
  grow(400);
  assertResized(storage, 400, content);
  // Without a footer at the end, a tapdisk is writing: its appended data must not be overwritten.
  const file = storage.open(IMAGE, "write");
  file.writeAt(new Uint8Array(512).fill(0x66), file.sizeBytes() - 512);
  createFixed("/fixed.vhd", { storage, sizeBytes: 2 * MIB });
  assert.throws(() => growWithinMetadata("/fixed.vhd", { storage, sizeBytes: 4 * MIB }), /fixed/);
  const end = new Uint8Array(512);
  file.readAt(end, file.sizeBytes() - 512);
  assert.ok(end.every((value) => value === 0x66));
});

for (const cutBytes of [0, 1536 * 1024]) {
  const end = 8 * MIB - cutBytes;
  Deno.test(`a child grows without a journal, killed at any point, from ${end} bytes`, () => {
    const origin = new SimulatedDisk();
    makeShortChild(origin, { childMib: 8, cutBytes });
    const content = contentOf(origin, 8 * MIB);
    for (let n = 0;; n++) {
      using storage = origin.copy();
      dieAt(storage, n);
      const grow = (): void => growWithinMetadata(IMAGE, { storage, sizeBytes: 32 * MIB });
      const done = attempt(grow);
      storage.beforeOperation = null;
      const died = openVhd(IMAGE, { storage }).sizeBytes;
      assert.deepEqual(contentOf(storage, end), content, `${n}`);
      if (died === end) grow();
      assertZerosFrom(storage, end);
      if (done || died === end) assertResized(storage, 32, content);
      if (done) break;
    }
  });
}

Deno.test("a child without a footer at its end is left as it is", () => {
  for (const writes of [[0], [6 * MIB]]) {
    const storage = new SimulatedDisk();
    makeShortChild(storage, { childMib: 8, cutBytes: 1536 * 1024, writes });
    const file = storage.open(IMAGE, "write");
    file.writeAt(new Uint8Array(512), file.sizeBytes() - 512);
    file.close();
    const before = getFile(storage, IMAGE);
    const sizeBytes = 30 * MIB;
    const [errno, message] = [Errno.EINVAL, /no good footer at its end/];
    const journaled = (): void => resizeVhd(IMAGE, { storage, sizeBytes, journal: JOURNAL });
    assert.throws(journaled, { errno, message });
    assert.throws(() => growWithinMetadata(IMAGE, { storage, sizeBytes }), { errno, message });
    assert.deepEqual(getFile(storage, IMAGE), before);
  }
});

Deno.test("a snapshot of an empty image shows no more than that", () => {
  const storage = new SimulatedDisk();
  const raw = storage.open("/base.raw", "create");
  raw.writeAt(new Uint8Array(4096).fill(0x55), 9 * MIB);
  raw.truncate(20 * MIB);
  makeShortChild(storage, { childMib: 8, writes: [] });
  snapshot("/on_raw.vhd", { storage, parent: "/base.raw", rawParent: true });
  const shrink = { storage, sizeBytes: 8 * MIB, journal: JOURNAL };
  resizeVhd("/on_raw.vhd", shrink);
  for (const parent of [IMAGE, "/on_raw.vhd"]) {
    const child = `${parent}.child`;
    snapshot(child, { storage, parent });
    const chain = openChain(child, { storage });
    assert.deepEqual([chain.images[0].sizeBytes, chain.images[1].path], [8 * MIB, parent]);
    chain.close();
    // An image that is as large as what is below it is left out as before.
    const same = `${parent}.same`;
    snapshot(same, { storage, parent: child });
    const below = openChain(same, { storage });
    assert.equal(below.images[1].path, parent);
    below.close();
  }
});

Deno.test("a child without its parents grows unless it was larger", () => {
  const storage = new SimulatedDisk();
  makeShortChild(storage, { childMib: 24 });
  storage.rename("/base.vhd", "/away.vhd");
  resizeVhd(IMAGE, { storage, sizeBytes: 40 * MIB, journal: JOURNAL });
  resizeVhd(IMAGE, { storage, sizeBytes: 8 * MIB, journal: JOURNAL });
  const grow = (): void => resizeVhd(IMAGE, { storage, sizeBytes: 24 * MIB, journal: JOURNAL });
  const before = getFile(storage, IMAGE);
  assert.throws(grow, {
    errno: Errno.ENOENT,
    message: /what its parent holds there must be hidden/,
  });
  assert.deepEqual(getFile(storage, IMAGE), before);
  storage.rename("/away.vhd", "/base.vhd");
  grow();
  assertZerosFrom(storage, 8 * MIB);
});

Deno.test("new entries of a grown table are unused", () => {
  const storage = new SimulatedDisk();
  makeDynamic(storage, 16);
  resizeVhd(IMAGE, { storage, sizeBytes: 100 * 1024 * MIB, journal: JOURNAL });
  const { bat, blocks } = openVhd(IMAGE, { storage });
  assert.deepEqual([blocks, bat.length], [51200, 51200]);
  assert.equal(bat.findLastIndex((entry) => entry !== DD_BLK_UNUSED), 3);
  resizeVhd(IMAGE, { storage, sizeBytes: 8 * MIB, journal: JOURNAL });
  const shrunk = openVhd(IMAGE, { storage });
  assert.deepEqual([shrunk.blocks, shrunk.header?.maxBatEntries], [4, 51200]);
});

Deno.test("a journal fits into the 6 MiB that XenServer gives it", () => {
  for (const [fromMib, toMib] of [[16, 2088960], [1_900_000, 2088960], [1_000_000, 2_000_000]]) {
    const storage = new SimulatedDisk();
    makeDynamic(storage, fromMib);
    let journalBytes = 0;
    storage.beforeOperation = changesOnly(({ path }) => {
      if (path === IMAGE) journalBytes = getFile(storage, JOURNAL).length;
    });
    resizeVhd(IMAGE, { storage, sizeBytes: toMib * MIB, journal: JOURNAL });
    assert.ok(journalBytes > 0 && journalBytes <= 6 * MIB, `${fromMib}: ${journalBytes}`);
  }
});
