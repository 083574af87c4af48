/**
 * Single steps of copy and coalesce on a simulated disk: the order of writes, what they refuse, and
 * what errors of a part of the work do.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { coalesce } from "../../src/bulk/coalesce.ts";
import { copyImage } from "../../src/bulk/copy.ts";
import { Errno } from "../../ffi/errno.ts";
import { type DiskOperation, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { isAllocated } from "../../src/vhd/image/block.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { growWithinMetadata } from "../../src/vhd/resize/resize.ts";
import { setKeyhash, snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { putFile } from "../support/vhd.ts";

const BLOCK_BYTES = 2 << 20;
const DISK_BYTES = 4 * BLOCK_BYTES;
/** Of images that we make: their BAT has one sector here. */
const BAT_OFFSET = 1536;

function write(storage: SimulatedDisk, path: string, offset: number, bytes: Uint8Array): void {
  const image = openVhd(path, { storage, readOnly: false });
  writeRange(image, Uint8Array.from(bytes), offset);
  finishWriting(image);
  image.close();
}

function filled(length: number, value: number): Uint8Array {
  return new Uint8Array(length).fill(value);
}

function contentOf(storage: SimulatedDisk, path: string): Uint8Array {
  const chain = openChain(path, { storage });
  const content = new Uint8Array(chain.images[0].sizeBytes);
  readRange(chain, content, 0);
  chain.close();
  return content;
}

/** A base whose first two blocks hold data, the first in part, and a child with some of each. */
function makePair(): SimulatedDisk {
  const storage = new SimulatedDisk({ seed: 1 });
  createDynamic("/a.vhd", { storage, sizeBytes: DISK_BYTES });
  write(storage, "/a.vhd", 0, filled(65536, 1));
  write(storage, "/a.vhd", BLOCK_BYTES, filled(BLOCK_BYTES, 2));
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  write(storage, "/b.vhd", 32768, filled(8192, 3));
  write(storage, "/b.vhd", BLOCK_BYTES + 512, filled(1024, 4));
  write(storage, "/b.vhd", 2 * BLOCK_BYTES, filled(BLOCK_BYTES, 5));
  return storage;
}

/** The operations on a file that ends in a suffix, during some work. */
async function stepsOf(
  storage: SimulatedDisk,
  suffix: string,
  work: () => Promise<unknown>,
): Promise<DiskOperation[]> {
  const steps: DiskOperation[] = [];
  storage.beforeOperation = (operation): void => {
    if (operation.path.endsWith(suffix) && operation.kind !== "read") steps.push(operation);
  };
  await work();
  storage.beforeOperation = null;
  return steps;
}

Deno.test("a copy syncs new blocks before its BAT names them", async () => {
  const storage = makePair();
  const makeContext = storage.bulkContext();
  const steps = await stepsOf(
    storage,
    ".part",
    () => copyImage("/b.vhd", "/c.vhd", { makeContext }),
  );
  const queued = steps.filter((step) => step.queued);
  const bat = queued.findIndex(({ kind, offsetBytes }) =>
    kind === "write" && offsetBytes === BAT_OFFSET
  );
  assert.ok(bat > 0);
  const before = queued.slice(0, bat);
  const sync = before.findLastIndex(({ kind }) => kind === "sync");
  assert.ok(sync > 0, "there is a sync before the BAT is written");
  assert.ok(before.slice(sync).every(({ kind }) => kind === "sync"), "and no write behind it");
  const content = contentOf(storage, "/b.vhd");
  assert.equal(Buffer.compare(contentOf(storage, "/c.vhd"), content), 0);
});

Deno.test("coalesce keeps the bits and the data that an allocated block had", async () => {
  const storage = makePair();
  const wanted = contentOf(storage, "/b.vhd");
  await coalesce("/b.vhd", { makeContext: storage.bulkContext() });
  assert.equal(Buffer.compare(contentOf(storage, "/a.vhd"), wanted), 0);
  assert.deepEqual(checkImage("/a.vhd", { storage, checkData: true }).findings, []);
});

Deno.test("data that could not be written is not in the bitmap, and the error is reported", async () => {
  const storage = makePair();
  const before = contentOf(storage, "/a.vhd");
  storage.beforeOperation = ({ kind, queued, lengthBytes }): number =>
    queued && kind === "write" && lengthBytes > 512 ? Errno.EIO : 0;
  await assert.rejects(coalesce("/b.vhd", { makeContext: storage.bulkContext() }), /EIO/);
  storage.beforeOperation = null;
  assert.equal(Buffer.compare(contentOf(storage, "/a.vhd"), before), 0);
  assert.ok(checkImage("/a.vhd", { storage }).valid);
});

Deno.test("data of an allocated block that could not be written gets no bits", async () => {
  const storage = makePair();
  // The parent has the block, and no bits for these sectors.
  const offset = BLOCK_BYTES / 2;
  write(storage, "/b.vhd", offset, filled(8192, 6));
  const before = contentOf(storage, "/a.vhd");
  const image = openVhd("/a.vhd", { storage });
  const place = (image.bat[0] + image.bitmapSectors) * 512 + offset;
  image.close();
  storage.beforeOperation = ({ kind, queued, offsetBytes, lengthBytes }): number => {
    const hits = offsetBytes <= place && place < offsetBytes + lengthBytes;
    return queued && kind === "write" && hits ? Errno.EIO : 0;
  };
  await assert.rejects(coalesce("/b.vhd", { makeContext: storage.bulkContext() }), /EIO/);
  storage.beforeOperation = null;
  const after = contentOf(storage, "/a.vhd").subarray(offset, offset + 8192);
  assert.equal(Buffer.compare(after, before.subarray(offset, offset + 8192)), 0);
});

Deno.test("a write or sync that fails leaves a batmap that repeats bitmaps of blocks in the BAT", async () => {
  let failed = true;
  for (let nth = 1; failed; nth++) {
    const storage = new SimulatedDisk({ seed: 1 });
    createDynamic("/a.vhd", { storage, sizeBytes: DISK_BYTES });
    write(storage, "/a.vhd", 0, filled(65536, 1));
    snapshot("/b.vhd", { storage, parent: "/a.vhd" });
    // A block that becomes full, and a new one that is full.
    write(storage, "/b.vhd", 0, filled(BLOCK_BYTES, 3));
    write(storage, "/b.vhd", 2 * BLOCK_BYTES, filled(BLOCK_BYTES, 5));
    let left = nth;
    storage.beforeOperation = ({ kind, queued }): number => {
      const counts = queued && (kind === "write" || kind === "sync");
      return counts && --left === 0 ? Errno.EIO : 0;
    };
    const merging = coalesce("/b.vhd", { makeContext: storage.bulkContext() });
    await merging.catch((error) => assert.match(String(error), /EIO/));
    storage.beforeOperation = null;
    failed = left <= 0;
    assert.ok(checkImage("/a.vhd", { storage, checkData: true }).valid, `step ${nth}`);
    if (!failed) assert.ok(nth > 5);
  }
});

Deno.test("a copy of which a part cannot be read or written fails, and leaves nothing", async () => {
  for (const failing of ["read", "write", "sync"]) {
    const storage = makePair();
    let left = failing === "sync" ? 1 : 2;
    storage.beforeOperation = ({ kind, queued }): number =>
      queued && kind === failing && --left <= 0 ? Errno.EIO : 0;
    const copy = copyImage("/b.vhd", "/c.vhd", { makeContext: storage.bulkContext() });
    await assert.rejects(copy, /EIO/, failing);
    storage.beforeOperation = null;
    assert.deepEqual(storage.paths.toSorted(), ["/a.vhd", "/b.vhd"], failing);
  }
});

Deno.test("a copy does not replace a file that appeared under its name meanwhile", async () => {
  const storage = makePair();
  let isThere = false;
  storage.beforeOperation = ({ kind, queued }): void => {
    if (!queued || kind !== "write" || isThere) return;
    isThere = true;
    storage.beforeOperation = null;
    putFile(storage, "/c.vhd", Uint8Array.of(7));
  };
  const copy = copyImage("/b.vhd", "/c.vhd", { makeContext: storage.bulkContext() });
  await assert.rejects(copy, /EEXIST/);
  assert.equal(storage.status("/c.vhd").sizeBytes, 1);
  assert.deepEqual(storage.paths.toSorted(), ["/a.vhd", "/b.vhd", "/c.vhd"]);
});

Deno.test("coalesce refuses a parent that is too small for the data, and changes nothing", async () => {
  const storage = new SimulatedDisk({ seed: 1 });
  createDynamic("/a.vhd", { storage, sizeBytes: DISK_BYTES });
  write(storage, "/a.vhd", 0, filled(512, 1));
  snapshot("/b.vhd", { storage, parent: "/a.vhd", reserveBytes: 2 * DISK_BYTES });
  growWithinMetadata("/b.vhd", { storage, sizeBytes: 2 * DISK_BYTES });
  write(storage, "/b.vhd", 512, filled(512, 2));
  const makeContext = storage.bulkContext();
  await coalesce("/b.vhd", { makeContext });
  write(storage, "/b.vhd", DISK_BYTES, filled(512, 3));
  await assert.rejects(coalesce("/b.vhd", { makeContext }), /ERANGE/);
  assert.equal(contentOf(storage, "/b.vhd")[DISK_BYTES], 3);
});

Deno.test("a copy leaves out blocks of zeros, and no block with a byte that is none", async () => {
  for (const at of [0, 63, 64, 128, 511, 512, BLOCK_BYTES - 1]) {
    const storage = new SimulatedDisk({ seed: 1 });
    createDynamic("/a.vhd", { storage, sizeBytes: DISK_BYTES });
    const block = filled(BLOCK_BYTES, 0);
    block[at] = 1;
    write(storage, "/a.vhd", BLOCK_BYTES, block);
    write(storage, "/a.vhd", 0, filled(BLOCK_BYTES, 0));
    await copyImage("/a.vhd", "/c.vhd", { makeContext: storage.bulkContext() });
    const copy = openVhd("/c.vhd", { storage });
    assert.deepEqual([0, 1].map((index) => isAllocated(copy, index)), [false, true], `byte ${at}`);
    copy.close();
    assert.equal(contentOf(storage, "/c.vhd")[BLOCK_BYTES + at], 1);
  }
});

Deno.test("an encrypted image is merged with encrypted ones only", async () => {
  const storage = makePair();
  const keyhash = { cookie: 1, nonce: filled(32, 0), hash: filled(32, 1) };
  setKeyhash(storage, { path: "/b.vhd" }, keyhash);
  const makeContext = storage.bulkContext();
  await assert.rejects(coalesce("/b.vhd", { makeContext }), /one is encrypted, the other is not/);
  await assert.rejects(copyImage("/b.vhd", "/c.vhd", { makeContext }), /one is encrypted/);
});
