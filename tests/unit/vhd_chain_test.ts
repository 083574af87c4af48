import assert from "node:assert/strict";
import fc from "fast-check";
import { allowParentsIn } from "../../src/files/confinement.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { resolveParent } from "../../src/vhd/image/parent.ts";
import { ancestorPaths, checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { VhdChainError } from "../../src/vhd/image/errors.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { changesOnly, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { heldExtents, readRange } from "../../src/vhd/image/read.ts";
import { snapshot, SnapshotDepthError } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const SECTOR = 512;

function write(storage: SimulatedDisk, path: string, offsetBytes: number, text: string): void {
  const image = openVhd(path, { storage, readOnly: false });
  const bytes = new Uint8Array(SECTOR).fill(text.charCodeAt(0));
  writeRange(image, bytes, offsetBytes);
  finishWriting(image);
  image.close();
}

function readLetter(storage: SimulatedDisk, path: string, offsetBytes: number): string {
  const chain = openChain(path, { storage });
  const bytes = new Uint8Array(SECTOR);
  readRange(chain, bytes, offsetBytes);
  assert.ok(bytes.every((byte) => byte === bytes[0]));
  return bytes[0] === 0 ? "." : String.fromCharCode(bytes[0]);
}

function assertChainError(run: () => unknown, errno: number, text: RegExp): void {
  assert.throws(run, (error) => {
    assert.ok(error instanceof VhdChainError, String(error));
    assert.equal(error.errno, errno);
    assert.match(error.message, text);
    return true;
  });
}

Deno.test("each sector comes from the uppermost image that holds it", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 8 * MIB });
  for (const [offset, letter] of [[0, "a"], [512, "a"], [3 * MIB, "a"], [1024, "a"]] as const) {
    write(storage, "/a.vhd", offset, letter);
  }
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  write(storage, "/b.vhd", 512, "b");
  write(storage, "/b.vhd", 5 * MIB, "b");
  snapshot("/c.vhd", { storage, parent: "/b.vhd" });
  write(storage, "/c.vhd", 1024, "c");
  const offsets = [0, 512, 1024, 1536, 3 * MIB, 5 * MIB, 7 * MIB];
  const seen = (path: string): string =>
    offsets.map((at) => readLetter(storage, path, at)).join("");
  assert.equal(seen("/a.vhd"), "aaa.a..");
  assert.equal(seen("/b.vhd"), "aba.ab.");
  assert.equal(seen("/c.vhd"), "abc.ab.");
  assert.equal(checkImage("/c.vhd", { storage, checkData: true }).valid, true);
  assert.deepEqual(ancestorPaths("/c.vhd", { storage }), ["/b.vhd", "/a.vhd"]);
});

Deno.test("a raw parent is read to its end, and zeros behind it", () => {
  const storage = new SimulatedDisk();
  putFile(storage, "/disk.raw", new Uint8Array(3 * MIB).fill(0x72));
  snapshot("/a.vhd", { storage, parent: "/disk.raw", rawParent: true });
  const chain = openChain("/a.vhd", { storage });
  assert.equal(chain.depth, 2);
  assert.equal(chain.images[0].parent?.raw, true);
  assert.equal(chain.raw?.path, "/disk.raw");
  write(storage, "/a.vhd", 512, "x");
  assert.equal(readLetter(storage, "/a.vhd", 0), "r");
  assert.equal(readLetter(storage, "/a.vhd", 512), "x");
  assert.equal(readLetter(storage, "/a.vhd", 3 * MIB - 512), "r");
  const bytes = new Uint8Array(100);
  readRange(openChain("/a.vhd", { storage }), bytes, 500);
  assert.deepEqual([bytes[0], bytes[11], bytes[12], bytes[99]], [0x72, 0x72, 0x78, 0x78]);
});

Deno.test("a child larger than its parent reads as zeros behind the parent's end", () => {
  const storage = new SimulatedDisk();
  createFixed("/a.vhd", { storage, sizeBytes: 2 * MIB });
  write(storage, "/a.vhd", 2 * MIB - 512, "a");
  snapshot("/b.vhd", { storage, parent: "/a.vhd", reserveBytes: 64 * MIB });
  const image = openVhd("/b.vhd", { storage });
  assert.deepEqual([image.blocks, image.header?.maxBatEntries, image.sizeBytes], [1, 32, 2 * MIB]);
  assert.equal(readLetter(storage, "/b.vhd", 2 * MIB - 512), "a");
  assert.throws(() => readLetter(storage, "/b.vhd", 2 * MIB), /ERANGE/);
});

Deno.test("a snapshot of an empty image builds on the one below, unless told", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  snapshot("/c.vhd", { storage, parent: "/b.vhd" });
  snapshot("/d.vhd", { storage, parent: "/b.vhd", keepEmptyParent: true });
  assert.equal(resolveParent(openVhd("/c.vhd", { storage })), "/a.vhd");
  assert.equal(resolveParent(openVhd("/d.vhd", { storage })), "/b.vhd");
  write(storage, "/b.vhd", 0, "b");
  snapshot("/e.vhd", { storage, parent: "/b.vhd" });
  assert.equal(resolveParent(openVhd("/e.vhd", { storage })), "/b.vhd");
});

Deno.test("the depth limit counts the new image", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  snapshot("/b.vhd", { storage, parent: "/a.vhd", depthLimit: 2 });
  const options = { storage, parent: "/b.vhd", keepEmptyParent: true };
  assert.throws(() => snapshot("/c.vhd", { ...options, depthLimit: 2 }), SnapshotDepthError);
  assert.equal(storage.exists("/c.vhd"), false);
  snapshot("/c.vhd", { ...options, depthLimit: 3 });
});

Deno.test("an image cannot become its own parent", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  const before = getFile(storage, "/a.vhd");
  assert.throws(() => snapshot("/a.vhd", { storage, parent: "/a.vhd" }), /its own parent/);
  assert.deepEqual(getFile(storage, "/a.vhd"), before);
});

Deno.test("parents are found by relative path after the folder moved", () => {
  const storage = new SimulatedDisk();
  createDynamic("/x/base/a.vhd", { storage, sizeBytes: 4 * MIB });
  snapshot("/x/top/b.vhd", { storage, parent: "/x/base/a.vhd" });
  storage.rename("/x/base/a.vhd", "/y/base/a.vhd");
  storage.rename("/x/top/b.vhd", "/y/top/b.vhd");
  assertChainError(() => openChain("/y/top/b.vhd", { storage }), 1, /EPERM/);
  allowParentsIn(["/y"]);
  assert.equal(openChain("/y/top/b.vhd", { storage }).images[1].path, "/y/base/a.vhd");
  allowParentsIn([]);
});

Deno.test("a missing parent is ENOENT and named", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  storage.remove("/a.vhd");
  assertChainError(
    () => openChain("/b.vhd", { storage }),
    2,
    /missing \(ENOENT\); looked for \.\/a\.vhd/,
  );
  assertChainError(() => ancestorPaths("/b.vhd", { storage }), 2, /missing/);
  const { valid, findings } = checkImage("/b.vhd", { storage });
  assert.equal(valid, false);
  assert.equal(findings[0].message, "error resolving ./a.vhd: no such file");
});

Deno.test("another image in the parent's place is refused", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  assertChainError(
    () => openChain("/b.vhd", { storage }),
    22,
    /has UUID .*, but the child was made from/,
  );
  assert.equal(openChain("/b.vhd", { storage, ignoreParentUuid: true }).depth, 2);
  const { findings } = checkImage("/b.vhd", { storage });
  assert.equal(findings[0].message, "invalid parent /a.vhd: invalid parent uuid");
  assert.equal(checkImage("/b.vhd", { storage, ignoreParentUuid: true }).valid, true);
});

Deno.test("a chain that leads back to itself is ELOOP", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  snapshot("/c.vhd", { storage, parent: "/b.vhd", keepEmptyParent: true });
  const child = getFile(storage, "/c.vhd");
  putFile(storage, "/b.vhd", child);
  const options = { storage, ignoreParentUuid: true };
  assertChainError(() => openChain("/c.vhd", options), 40, /leads back to \/b\.vhd/);
  assertChainError(() => ancestorPaths("/c.vhd", { storage }), 40, /leads back/);
  assert.throws(() => snapshot("/d.vhd", { ...options, parent: "/c.vhd" }), VhdChainError);
});

Deno.test("a chain may be as deep as it is told, and no deeper", () => {
  const storage = new SimulatedDisk();
  createDynamic("/0.vhd", { storage, sizeBytes: 2 * MIB });
  write(storage, "/0.vhd", 512, "z");
  for (let i = 1; i < 30; i++) {
    snapshot(`/${i}.vhd`, { storage, parent: `/${i - 1}.vhd`, keepEmptyParent: true });
  }
  assert.equal(openChain("/29.vhd", { storage, maxDepth: 30 }).depth, 30);
  assert.equal(readLetter(storage, "/29.vhd", 512), "z");
  assertChainError(
    () => openChain("/29.vhd", { storage, maxDepth: 29 }),
    40,
    /more than 29 layers, the most that a chain may have \(ELOOP\)/,
  );
});

const SIZE_SECTORS = 3 * 4096;

interface Operation {
  readonly kind: "write" | "snapshot" | "reopen";
  readonly sector: number;
  readonly lengthSectors: number;
  readonly fill: number;
}

const operation: fc.Arbitrary<Operation> = fc.record({
  kind: fc.constantFrom("write", "write", "write", "snapshot", "reopen"),
  sector: fc.oneof(fc.nat(SIZE_SECTORS - 1), fc.constantFrom(0, 4095, 4096, 8191)),
  lengthSectors: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(4096, 5000)),
  fill: fc.integer({ min: 1, max: 255 }),
});

Deno.test("any writes and snapshots read back as from a plain array", () => {
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 25 }), (operations) => {
      const storage = new SimulatedDisk();
      createDynamic("/0.vhd", { storage, sizeBytes: SIZE_SECTORS * SECTOR });
      const model = new Uint8Array(SIZE_SECTORS);
      let held = new Set<number>();
      let layer = 0;
      let image = openVhd("/0.vhd", { storage, readOnly: false });
      for (const { kind, sector, lengthSectors, fill } of operations) {
        if (kind === "write") {
          const count = Math.min(lengthSectors, SIZE_SECTORS - sector);
          writeRange(image, new Uint8Array(count * SECTOR).fill(fill), sector * SECTOR);
          model.fill(fill, sector, sector + count);
          for (let i = sector; i < sector + count; i++) held.add(i);
          continue;
        }
        finishWriting(image);
        image.close();
        if (kind === "snapshot") {
          layer++;
          snapshot(`/${layer}.vhd`, {
            storage,
            parent: `/${layer - 1}.vhd`,
            keepEmptyParent: true,
          });
          held = new Set();
        }
        image = openVhd(`/${layer}.vhd`, { storage, readOnly: false });
      }
      finishWriting(image);
      image.close();
      const chain = openChain(`/${layer}.vhd`, { storage });
      const disk = new Uint8Array(SIZE_SECTORS * SECTOR);
      readRange(chain, disk, 0);
      for (let i = 0; i < SIZE_SECTORS; i++) {
        if (disk[i * SECTOR] !== model[i] || disk[i * SECTOR + 511] !== model[i]) {
          assert.fail(`sector ${i} holds ${disk[i * SECTOR]} instead of ${model[i]}`);
        }
      }
      let heldSectors = 0;
      for (const extent of heldExtents(chain.images[0])) {
        heldSectors += extent.lengthSectors;
        assert.ok(held.has(extent.sector));
        assert.ok(held.has(extent.sector + extent.lengthSectors - 1));
        assert.ok(!held.has(extent.sector + extent.lengthSectors));
      }
      assert.equal(heldSectors, held.size);
      for (let i = 0; i <= layer; i++) {
        const { findings } = checkImage(`/${i}.vhd`, { storage, checkData: true });
        assert.deepEqual(findings, []);
        assert.ok(
          chain.images[i].bat.every((entry) => entry === 0xffffffff || (entry + 1) % 8 === 0),
        );
      }
    }),
    { numRuns: 40 },
  );
});

Deno.test("whatever moment a crash picks, the image opens and holds what was finished", () => {
  const fresh = new SimulatedDisk();
  createDynamic("/a.vhd", { storage: fresh, sizeBytes: 8 * MIB });
  write(fresh, "/a.vhd", 0, "a");
  write(fresh, "/a.vhd", 5 * MIB, "a");
  let crashes = 0;
  for (let at = 0;; at++) {
    const storage = fresh.copy();
    let left = at;
    storage.beforeOperation = changesOnly(() => {
      if (left-- === 0) throw new Error("crash");
    });
    let crashed = false;
    try {
      const image = openVhd("/a.vhd", { storage, readOnly: false });
      writeRange(image, new Uint8Array(3 * MIB).fill(0x62), 512);
      finishWriting(image);
      image.close();
    } catch (error) {
      crashed = true;
      assert.equal(String(error), "Error: crash");
    }
    storage.beforeOperation = null;
    // A footer exists at every moment; at most there is unused room.
    const { valid, findings } = checkImage("/a.vhd", { storage });
    assert.ok(valid, `after ${at} operations: ${JSON.stringify(findings)}`);
    if (!crashed) assert.deepEqual(findings, []);
    assert.equal(readLetter(storage, "/a.vhd", 0), "a");
    assert.equal(readLetter(storage, "/a.vhd", 5 * MIB), "a");
    assert.match(readLetter(storage, "/a.vhd", MIB), /[b.]/);
    if (!crashed) break;
    crashes++;
  }
  assert.ok(crashes > 8, `only ${crashes} moments to crash at`);
});
