import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { coalesce, type CoalesceOptions } from "../../src/bulk/coalesce.ts";
import { copyImage } from "../../src/bulk/copy.ts";
import { chainExtents } from "../../src/vhd/image/extents.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, createFixed, writeFixed } from "../../src/vhd/create.ts";
import { fillImage, preallocate } from "../../src/vhd/fill.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { changesOnly, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { resizeVhd } from "../../src/vhd/resize/resize.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { setKeyhash } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { Random } from "../../src/testing/random.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const SECTOR = 512;
const DISK = 12 * MIB;

/** Overwrites ranges of an image, some of them whole blocks, with data that depends on the seed. */
function scribble(storage: SimulatedDisk, path: string, seed: number): void {
  const random = new Random(seed);
  const image = openVhd(path, { storage, readOnly: false });
  for (let i = 0; i < 6; i++) {
    const sectors = 1 + random.below(i === 0 ? 5000 : 300);
    const at = random.below(DISK / SECTOR - sectors);
    const bytes = new Uint8Array(sectors * SECTOR).fill(seed * 16 + i);
    writeRange(image, bytes, at * SECTOR);
  }
  finishWriting(image);
  image.close();
}

function contentOf(storage: SimulatedDisk, path: string): Uint8Array {
  const chain = openChain(path, { storage });
  const content = new Uint8Array(chain.images[0].sizeBytes);
  readRange(chain, content, 0);
  chain.close();
  return content;
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** A chain of three VHDs, optionally on a raw image. */
function makeChain({ raw }: { raw: boolean }): SimulatedDisk {
  const storage = new SimulatedDisk();
  if (raw) {
    const bytes = new Uint8Array(DISK).fill(0x77, 3 * MIB, 9 * MIB);
    putFile(storage, "/raw", bytes);
    snapshot("/a.vhd", { storage, parent: "/raw", rawParent: true });
  } else createDynamic("/a.vhd", { storage, sizeBytes: DISK });
  scribble(storage, "/a.vhd", 1);
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  scribble(storage, "/b.vhd", 2);
  snapshot("/c.vhd", { storage, parent: "/b.vhd" });
  scribble(storage, "/c.vhd", 3);
  return storage;
}

class Killed extends Error {}

/** Runs work and kills it before its n-th change; true when it ended before that. */
async function killedAt(
  storage: SimulatedDisk,
  operation: number,
  work: () => Promise<unknown>,
): Promise<boolean> {
  let left = operation;
  storage.beforeOperation = changesOnly(() => {
    if (left-- <= 0) throw new Killed();
  });
  try {
    await work();
    return true;
  } catch (error) {
    if (!(error instanceof Killed)) throw error;
    return false;
  } finally {
    storage.beforeOperation = null;
  }
}

interface Scenario {
  readonly name: string;
  readonly raw: boolean;
  readonly top: string;
  readonly options: CoalesceOptions;
  /** The image that must then read like the top of the chain. */
  readonly result: string;
}

const SCENARIOS: readonly Scenario[] = [
  { name: "into the parent", raw: false, top: "/c.vhd", options: {}, result: "/b.vhd" },
  { name: "into a parent without one", raw: false, top: "/b.vhd", options: {}, result: "/a.vhd" },
  {
    name: "into an ancestor, sparsely",
    raw: false,
    top: "/c.vhd",
    options: { ancestor: "/a.vhd", sparse: true },
    result: "/a.vhd",
  },
  { name: "into a raw parent", raw: true, top: "/a.vhd", options: {}, result: "/raw" },
  {
    name: "into a new image on the parent of the oldest",
    raw: true,
    top: "/c.vhd",
    options: { output: "/new.vhd", oldest: "/b.vhd" },
    result: "/new.vhd",
  },
];

for (const { name, raw, top, options, result } of SCENARIOS) {
  Deno.test(`coalesce ${name}: killed anywhere and run again, all reads the same`, async () => {
    const start = makeChain({ raw });
    const wanted = contentOf(start, top);
    const wantedC = contentOf(start, "/c.vhd");
    let kills = 0;
    let ended = false;
    for (let operation = 0; !ended; operation++) {
      using storage = start.copy();
      const work = (): Promise<number> =>
        coalesce(top, { ...options, makeContext: storage.bulkContext() });
      ended = await killedAt(storage, operation, work);
      if (!ended) {
        kills++;
        assert.ok(sameBytes(contentOf(storage, "/c.vhd"), wantedC), `reads the same, ${operation}`);
        // After a kill during the sync of the folder, the output exists and is complete.
        if (options.output === undefined || !storage.exists(options.output)) await work();
      }
      assert.ok(sameBytes(contentOf(storage, "/c.vhd"), wantedC), `chain, killed at ${operation}`);
      const got = result === "/raw" ? getFile(storage, "/raw") : contentOf(storage, result);
      assert.ok(sameBytes(got, wanted), `result, killed at ${operation}`);
      if (result === "/raw") continue;
      const { valid, findings } = checkImage(result, { storage, checkData: true });
      assert.ok(valid, JSON.stringify(findings));
    }
    assert.ok(kills >= 5, `${kills} kills`);
  });
}

Deno.test("copy: killed anywhere, there is no copy or a whole one", async () => {
  const start = makeChain({ raw: true });
  const wanted = contentOf(start, "/c.vhd");
  let ended = false;
  for (let operation = 0; !ended; operation++) {
    using storage = start.copy();
    const work = (): Promise<number> =>
      copyImage("/c.vhd", "/copy.vhd", { makeContext: storage.bulkContext() });
    ended = await killedAt(storage, operation, work);
    if (!ended) {
      // After a kill during the sync of the folder, the output exists.
      if (!storage.exists("/copy.vhd")) await work();
    }
    assert.ok(sameBytes(contentOf(storage, "/copy.vhd"), wanted));
    const image = openVhd("/copy.vhd", { storage });
    assert.equal(image.type, "dynamic");
    assert.equal(checkImage("/copy.vhd", { storage, checkData: true }).valid, true);
  }
});

Deno.test("coalesce counts the sectors of the layers, each once, and moves only those", async () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: DISK });
  snapshot("/b.vhd", { storage, parent: "/a.vhd", keepEmptyParent: true });
  const write = (path: string, sector: number, sectors: number, value: number): void => {
    const image = openVhd(path, { storage, readOnly: false });
    writeRange(image, new Uint8Array(sectors * SECTOR).fill(value), sector * SECTOR);
    finishWriting(image);
    image.close();
  };
  write("/b.vhd", 100, 50, 1);
  snapshot("/c.vhd", { storage, parent: "/b.vhd" });
  write("/c.vhd", 120, 50, 2);
  const makeContext = storage.bulkContext();
  assert.equal(await coalesce("/c.vhd", { ancestor: "/a.vhd", makeContext }), 70);
  const a = openVhd("/a.vhd", { storage });
  assert.equal([...a.bat].filter((entry) => entry !== 0xffff_ffff).length, 1);
  assert.equal(a.footerSource, "primary");
});

Deno.test("sparse: blocks of zeros are left out where they are zeros anyway, and nowhere else", async () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: DISK });
  scribble(storage, "/a.vhd", 1);
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  snapshot("/c.vhd", { storage, parent: "/b.vhd", keepEmptyParent: true });
  const image = openVhd("/c.vhd", { storage, readOnly: false });
  writeRange(image, new Uint8Array(DISK), 0);
  finishWriting(image);
  image.close();
  const makeContext = storage.bulkContext();
  await coalesce("/c.vhd", { sparse: true, makeContext });
  assert.ok(contentOf(storage, "/b.vhd").every((byte) => byte === 0), "hides what is below");
  await copyImage("/c.vhd", "/copy.vhd", { makeContext });
  assert.ok(openVhd("/copy.vhd", { storage }).bat.every((entry) => entry === 0xffff_ffff));
});

Deno.test("fixed images: copied as such, and coalesced into", async () => {
  const storage = new SimulatedDisk();
  createFixed("/a.vhd", { storage, sizeBytes: DISK, sparse: true });
  scribble(storage, "/a.vhd", 1);
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  scribble(storage, "/b.vhd", 2);
  const wanted = contentOf(storage, "/b.vhd");
  const makeContext = storage.bulkContext();
  await copyImage("/a.vhd", "/copy.vhd", { makeContext });
  assert.equal(openVhd("/copy.vhd", { storage }).type, "fixed");
  assert.ok(sameBytes(contentOf(storage, "/copy.vhd"), contentOf(storage, "/a.vhd")));
  await coalesce("/b.vhd", { makeContext });
  assert.ok(sameBytes(contentOf(storage, "/a.vhd"), wanted));
  assert.equal(checkImage("/a.vhd", { storage }).valid, true);
});

Deno.test("what cannot be coalesced is refused before anything is written", async () => {
  const storage = makeChain({ raw: false });
  const makeContext = storage.bulkContext();
  createDynamic("/other.vhd", { storage, sizeBytes: DISK });
  storage.beforeOperation = changesOnly(({ kind, path }) => assert.fail(`${kind} of ${path}`));
  await assert.rejects(coalesce("/a.vhd", { makeContext }), /no differencing image/);
  await assert.rejects(
    coalesce("/c.vhd", { ancestor: "/other.vhd", makeContext }),
    /other.vhd is no ancestor of it/,
  );
  await assert.rejects(coalesce("/c.vhd", { output: "/other.vhd", makeContext }), /EEXIST/);
  await assert.rejects(copyImage("/c.vhd", "/other.vhd", { makeContext }), /EEXIST/);
  storage.beforeOperation = null;
  const keyhash = { cookie: 1, nonce: new Uint8Array(32), hash: new Uint8Array(32).fill(1) };
  setKeyhash(storage, { path: "/c.vhd" }, keyhash);
  await assert.rejects(coalesce("/c.vhd", { makeContext }), /one is encrypted, the other is not/);
});

Deno.test("a copy of an encrypted image carries the trace of its key, zeros and all", async () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: DISK });
  const keyhash = { cookie: 1, nonce: new Uint8Array(32), hash: new Uint8Array(32).fill(1) };
  setKeyhash(storage, { path: "/a.vhd" }, keyhash);
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  writeRange(image, new Uint8Array(SECTOR), 0);
  finishWriting(image);
  image.close();
  await copyImage("/a.vhd", "/copy.vhd", { makeContext: storage.bulkContext() });
  const copy = openVhd("/copy.vhd", { storage });
  assert.deepEqual(copy.batmap?.header.keyhash, keyhash);
  assert.notEqual(copy.bat[0], 0xffff_ffff, "zeros of an encrypted image are data");
});

Deno.test("a raw image that ends within a sector is copied to its last byte", async () => {
  const storage = new SimulatedDisk();
  putFile(storage, "/raw", new Uint8Array(3 * MIB + 100).fill(5));
  snapshot("/a.vhd", { storage, parent: "/raw", rawParent: true });
  const makeContext = storage.bulkContext();
  await copyImage("/a.vhd", "/copy.vhd", { makeContext });
  const content = contentOf(storage, "/copy.vhd");
  assert.equal(content.indexOf(0), 3 * MIB + 100);
  assert.ok(sameBytes(content, contentOf(storage, "/a.vhd")));
});

Deno.test("a copy has a disk of the same size, also where that is no whole number of blocks", async () => {
  const sizeBytes = 3 * MIB + 512;
  const content = new Uint8Array(sizeBytes).map((_, i) => i >> 9);
  for (const type of ["fixed", "dynamic"] as const) {
    const storage = new SimulatedDisk();
    if (type === "fixed") {
      writeFixed("/a.vhd", { storage, sparse: true, sizeBytes });
      const image = openVhd("/a.vhd", { storage, readOnly: false });
      writeRange(image, content, 0);
      image.close();
    } else {
      putForeignImage(storage, "/a.vhd", {
        sizeBytes,
        batEntries: 49,
        blocks: { 0: "a", 48: "z" },
      });
    }
    await copyImage("/a.vhd", "/copy.vhd", { makeContext: storage.bulkContext() });
    const copy = openVhd("/copy.vhd", { storage });
    assert.deepEqual([copy.type, copy.sizeBytes], [type, sizeBytes]);
    assert.ok(sameBytes(contentOf(storage, "/copy.vhd"), contentOf(storage, "/a.vhd")));
    assert.deepEqual(checkImage("/copy.vhd", { storage, checkData: true }).findings, []);
  }
});

const PAGE = 4096;

/**
 * Runs work on copies of a disk with increasing room, from none until it succeeds; `look` checks
 * the disk after each run. Returns the number of failed runs.
 */
async function withEverMoreRoom(
  origin: SimulatedDisk,
  work: (storage: SimulatedDisk) => unknown,
  look: (storage: SimulatedDisk, where: string, succeeded: boolean) => void,
): Promise<number> {
  let failed = 0;
  for (let pages = 0;; pages += 1 + (pages >> 3)) {
    using storage = origin.copy();
    storage.capacityBytes = storage.usedBytes + pages * PAGE;
    let succeeded = true;
    try {
      await work(storage);
    } catch (error) {
      assert.match(String(error), /ENOSPC/);
      succeeded = false;
    }
    storage.capacityBytes = Infinity;
    look(storage, `${pages} pages`, succeeded);
    if (succeeded) return failed;
    failed++;
  }
}

/** Checks that the image is valid and has the expected contents. */
function assertHolds(
  storage: SimulatedDisk,
  { path, content, where }: { path: string; content: Uint8Array; where: string },
): void {
  const { valid, findings } = checkImage(path, { storage });
  assert.ok(valid, `${where}: ${JSON.stringify(findings)}`);
  assert.ok(sameBytes(contentOf(storage, path), content), `${path}, ${where}`);
}

for (const ancestor of ["/a.vhd", "/b.vhd"]) {
  Deno.test(`a full disk ends a coalesce into ${ancestor}; the image is valid all the same`, async () => {
    using origin = makeChain({ raw: false });
    const content = contentOf(origin, "/c.vhd");
    const failed = await withEverMoreRoom(
      origin,
      (storage) => coalesce("/c.vhd", { ancestor, makeContext: storage.bulkContext() }),
      (storage, where, succeeded) => {
        assertHolds(storage, { path: "/c.vhd", content, where });
        const { valid, findings } = checkImage(ancestor, { storage });
        assert.ok(valid, `${where}: ${JSON.stringify(findings)}`);
        if (!succeeded) return;
        assertHolds(storage, { path: ancestor, content, where });
        assert.deepEqual(checkImage(ancestor, { storage, checkData: true }).findings, []);
      },
    );
    assert.ok(failed > 10, `${failed} tries failed`);
  });
}

Deno.test("a full disk ends a copy, which leaves nothing", async () => {
  using origin = makeChain({ raw: false });
  await withEverMoreRoom(
    origin,
    (storage) => copyImage("/c.vhd", "/copy.vhd", { makeContext: storage.bulkContext() }),
    (storage, where, succeeded) => {
      if (succeeded) return;
      assert.deepEqual(storage.paths, origin.paths, where);
      assert.equal(storage.usedBytes, origin.usedBytes, where);
    },
  );
});

Deno.test("a full disk ends a fill; the image is valid, reads the same, and is filled later", async () => {
  for (const fill of [fillImage, preallocate]) {
    for (const path of ["/a.vhd", "/c.vhd"]) {
      using origin = makeChain({ raw: false });
      const content = contentOf(origin, path);
      const failed = await withEverMoreRoom(
        origin,
        (storage) => fill(path, { storage }),
        (storage, where, succeeded) => {
          assertHolds(storage, { path, content, where });
          if (succeeded) {
            assert.deepEqual(checkImage(path, { storage, checkData: true }).findings, []);
          }
        },
      );
      assert.ok(failed > 0, path);
    }
  }
});

/** An image whose middle layer is smaller than its parent and its child. */
function makeNarrowChain(): SimulatedDisk {
  const storage = new SimulatedDisk();
  createDynamic("/base.vhd", { storage, sizeBytes: 8 * MIB });
  const base = openVhd("/base.vhd", { storage, readOnly: false });
  writeRange(base, new Uint8Array(8 * MIB).fill(0x53), 0);
  finishWriting(base);
  base.close();
  snapshot("/mid.vhd", { storage, parent: "/base.vhd" });
  const mid = openVhd("/mid.vhd", { storage, readOnly: false });
  writeRange(mid, new Uint8Array(4096).fill(0x11), 0);
  finishWriting(mid);
  mid.close();
  snapshot("/top.vhd", { storage, parent: "/mid.vhd" });
  // A child that is made larger has zeros there itself; so the image below it is made smaller.
  resizeVhd("/mid.vhd", { storage, sizeBytes: 4 * MIB, journal: "/journal" });
  const top = openVhd("/top.vhd", { storage, readOnly: false });
  writeRange(top, new Uint8Array(512).fill(0x22), 7 * MIB);
  finishWriting(top);
  top.close();
  return storage;
}

Deno.test("behind the end of a smaller middle image all is zeros: read, mapped, copied and coalesced", async () => {
  const wanted = new Uint8Array(8 * MIB).fill(0x53, 0, 4 * MIB).fill(0x11, 0, 4096);
  wanted.fill(0x22, 7 * MIB, 7 * MIB + 512);
  const storage = makeNarrowChain();
  const makeContext = storage.bulkContext();
  assert.ok(sameBytes(contentOf(storage, "/top.vhd"), wanted));
  const chain = openChain("/top.vhd", { storage });
  const extents = [...chainExtents(chain)].filter(({ sector }) => sector >= 4 * MIB / SECTOR);
  assert.deepEqual(extents.map(({ layer }) => layer), [-1, 0, -1]);
  await copyImage("/top.vhd", "/copy.vhd", { makeContext });
  assert.ok(sameBytes(contentOf(storage, "/copy.vhd"), wanted));
  await coalesce("/top.vhd", { output: "/all.vhd", makeContext });
  assert.ok(sameBytes(contentOf(storage, "/all.vhd"), wanted));
  await coalesce("/top.vhd", { output: "/two.vhd", oldest: "/mid.vhd", makeContext });
  assert.equal(openVhd("/two.vhd", { storage }).parent?.name, "base.vhd");
  assert.ok(sameBytes(contentOf(storage, "/two.vhd"), wanted));
  await coalesce("/top.vhd", { ancestor: "/base.vhd", makeContext });
  assert.ok(sameBytes(contentOf(storage, "/base.vhd"), wanted));
  assert.ok(sameBytes(contentOf(storage, "/top.vhd"), wanted));
});
