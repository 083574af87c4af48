import assert from "node:assert/strict";
import { DD_BLK_UNUSED, encodeBat } from "../../src/vhd/format/bat.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, createFixed, newFooter } from "../../src/vhd/create.ts";
import { encodeFooter } from "../../src/vhd/format/footer.ts";
import { emptyHeader, encodeHeader } from "../../src/vhd/format/header.ts";
import { placeFooter } from "../../src/vhd/image/allocation.ts";
import { writeBatmap } from "../../src/vhd/image/batmap_writer.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { repairImage } from "../../src/vhd/repair.ts";
import { setKeyhash, snapshot } from "../../src/vhd/snapshot.ts";
import { VhdFormatError } from "../../src/vhd/image/errors.ts";
import { FOOTER_OFFSETS, footerChecksum, HD_FOOTER_SIZE } from "../../src/vhd/format/footer.ts";
import { HEADER_OFFSETS, headerChecksum } from "../../src/vhd/format/header.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { changesOnly, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { getFile, goldenImage, putFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;

/** A storage with one image; any write fails the test. */
function readOnlyStorage(bytes: Uint8Array<ArrayBuffer>): SimulatedDisk {
  const storage = new SimulatedDisk();
  putFile(storage, "/base.vhd", bytes);
  storage.beforeOperation = changesOnly(({ kind }) => assert.fail(`a ${kind} of a damaged image`));
  return storage;
}

/** The base image with both footers changed and valid checksums. */
function withFooters(
  image: Uint8Array<ArrayBuffer>,
  change: (view: DataView) => void,
): Uint8Array<ArrayBuffer> {
  const bytes = image.slice();
  for (const offset of [0, bytes.length - HD_FOOTER_SIZE]) {
    const footer = bytes.subarray(offset, offset + HD_FOOTER_SIZE);
    const view = new DataView(bytes.buffer, offset, HD_FOOTER_SIZE);
    change(view);
    view.setUint32(FOOTER_OFFSETS.checksum, footerChecksum(footer));
  }
  return bytes;
}

/** The base image with a changed header and a valid checksum. */
function withHeader(
  image: Uint8Array<ArrayBuffer>,
  change: (view: DataView) => void,
): Uint8Array<ArrayBuffer> {
  const bytes = image.slice();
  const view = new DataView(bytes.buffer, 512, 1024);
  change(view);
  view.setUint32(HEADER_OFFSETS.checksum, headerChecksum(bytes.subarray(512, 1536)));
  return bytes;
}

/**
 * A dynamic image with 64 KiB blocks in the layout of other programs, with one block full of 'A'.
 */
function foreignImage(
  { creator = "win ", version = 0x000a_0000, firstBlockSector, tableSector = 3 }: {
    creator?: string;
    version?: number;
    firstBlockSector: number;
    tableSector?: number;
  },
): Uint8Array<ArrayBuffer> {
  const blockBytes = 65536;
  const blockEnd = firstBlockSector * 512 + 512 + blockBytes;
  const footerAt = Math.max(blockEnd, (tableSector + 1) * 512);
  const bytes = new Uint8Array(footerAt + 512);
  const footer = newFooter(3, 4 * MIB);
  const header = emptyHeader();
  header.tableOffset = BigInt(tableSector * 512);
  header.maxBatEntries = 64;
  header.blockSize = blockBytes;
  const footerBytes = encodeFooter({
    ...footer,
    creatorApplication: creator,
    creatorVersion: version,
  });
  bytes.set(footerBytes);
  bytes.set(encodeHeader(header), 512);
  const bat = new Uint32Array(64).fill(DD_BLK_UNUSED);
  bat[0] = firstBlockSector;
  bytes.fill(0xff, firstBlockSector * 512, firstBlockSector * 512 + 16);
  bytes.fill(0x41, firstBlockSector * 512 + 512, blockEnd);
  bytes.set(encodeBat({ bat, batPadding: new Uint32Array(64).fill(0xfeed) }), tableSector * 512);
  bytes.set(footerBytes, footerAt);
  return bytes;
}

function contentOf(storage: SimulatedDisk, path: string): Uint8Array<ArrayBuffer> {
  const chain = openChain(path, { storage });
  const content = new Uint8Array(chain.images[0].sizeBytes);
  readRange(chain, content, 0);
  chain.close();
  return content;
}

Deno.test("metadata may lie anywhere: new blocks go behind all of it, and nothing else is touched", () => {
  for (const tableSector of [3, 200, 2048]) {
    const storage = new SimulatedDisk();
    putFile(storage, "/late.vhd", foreignImage({ firstBlockSector: 4, tableSector }));
    const image = openVhd("/late.vhd", { storage, readOnly: false });
    writeRange(image, new Uint8Array(1024).fill(0x42), MIB);
    finishWriting(image);
    image.close();
    assert.ok(image.bat[16] > tableSector, `${image.bat[16]}`);
    assert.equal(checkImage("/late.vhd", { storage, checkData: true }).valid, true);
    const expected = new Uint8Array(4 * MIB);
    expected.fill(0x41, 0, 65536).fill(0x42, MIB, MIB + 1024);
    assert.deepEqual(contentOf(storage, "/late.vhd"), expected);
    const table = getFile(storage, "/late.vhd").subarray(
      tableSector * 512,
      tableSector * 512 + 512,
    );
    assert.deepEqual([...table.subarray(256, 264)], [0, 0, 0xfe, 0xed, 0, 0, 0xfe, 0xed]);
  }
  const over = foreignImage({ firstBlockSector: 4, tableSector: 40 });
  const storage = new SimulatedDisk();
  putFile(storage, "/over.vhd", over);
  assert.throws(() => openVhd("/over.vhd", { storage }), /bat\[0\].*lies over the header/);
});

Deno.test("names of parents that begin and end within sectors keep their place", () => {
  for (const at of [2048 + 1100, 2048 + 3484, 3072 + 511]) {
    const storage = new SimulatedDisk();
    createDynamic("/base.vhd", { storage, sizeBytes: 4 * MIB });
    snapshot("/child.vhd", { storage, parent: "/base.vhd" });
    const bytes = getFile(storage, "/child.vhd");
    const old = openVhd("/child.vhd", { storage });
    const header = old.header ?? emptyHeader();
    const name = bytes.slice(
      Number(header.locators[0].dataOffset),
      Number(header.locators[0].dataOffset) + header.locators[0].dataLength,
    );
    header.locators.forEach((locator, i) => {
      const used = i === 0;
      Object.assign(locator, {
        code: used ? locator.code : 0,
        dataSpace: used ? 512 : 0,
        dataLength: used ? name.length : 0,
        dataOffset: BigInt(used ? at : 0),
      });
    });
    const end = Math.ceil((at + 512) / 512) * 512;
    const moved = new Uint8Array(end + 512);
    moved.set(bytes.subarray(0, 3072));
    moved.set(encodeHeader(header), 512);
    moved.set(name, at);
    moved.set(bytes.subarray(0, 512), end);
    putFile(storage, "/child.vhd", moved);
    for (const block of [0, 1]) {
      const image = openVhd("/child.vhd", { storage, readOnly: false });
      writeRange(image, new Uint8Array(512).fill(7), block * 2 * MIB);
      finishWriting(image);
      image.close();
      const { valid, findings } = checkImage("/child.vhd", { storage, checkData: true });
      assert.ok(valid, `${at}: ${JSON.stringify(findings)}`);
      assert.deepEqual(getFile(storage, "/child.vhd").slice(at, at + name.length), name);
    }
  }
});

/**
 * Opening must name the field, checking must report the image as invalid, and nothing may be
 * written.
 */
function assertRefused(bytes: Uint8Array<ArrayBuffer>, field: string): void {
  const storage = readOnlyStorage(bytes);
  assert.throws(
    () => openVhd("/base.vhd", { storage, readOnly: false }),
    (error) => {
      assert.ok(error instanceof VhdFormatError, `${field}: ${error}`);
      assert.equal(error.fault.field, field);
      assert.equal(error.errno, 22);
      assert.match(
        error.message,
        /^Cannot use \/base\.vhd as a VHD image: .* at byte [0-9]+ holds /,
      );
      return true;
    },
  );
  assert.equal(checkImage("/base.vhd", { storage }).valid, false, field);
}

Deno.test("an image that the reference wrote opens", async () => {
  const image = openVhd("/base.vhd", { storage: readOnlyStorage(await goldenImage("base.vhd")) });
  assert.equal(image.type, "dynamic");
  assert.equal(image.sizeBytes, 64 * MIB);
  assert.equal(image.footerSource, "primary");
  assert.deepEqual([image.blocks, image.sectorsPerBlock, image.bitmapSectors], [32, 4096, 1]);
  assert.equal(image.bat[0], 7);
  assert.equal(image.bat[4], DD_BLK_UNUSED);
  assert.deepEqual([...(image.batmap?.bits.subarray(0, 2) ?? [])], [0x30, 0]);
  assert.equal(image.endOfDataSector * 512 + 512, image.file.sizeBytes());
});

Deno.test("every footer field with a wrong value is refused by name", async () => {
  const image = await goldenImage("base.vhd");
  const at = FOOTER_OFFSETS;
  const cases: [keyof typeof at, (view: DataView) => void][] = [
    ["dataOffset", (view) => view.setBigUint64(at.dataOffset, 1n << 60n)],
    ["dataOffset", (view) => view.setBigUint64(at.dataOffset, 0n)],
    ["dataOffset", (view) => view.setBigUint64(at.dataOffset, 513n)],
    ["dataOffset", (view) => view.setBigUint64(at.dataOffset, 0xffffffffffffffffn)],
    ["currentSize", (view) => view.setBigUint64(at.currentSize, 0n)],
    ["currentSize", (view) => view.setBigUint64(at.currentSize, 513n)],
    ["currentSize", (view) => view.setBigUint64(at.currentSize, 1n << 63n)],
    ["diskType", (view) => view.setUint32(at.diskType, 0)],
    ["diskType", (view) => view.setUint32(at.diskType, 7)],
    ["creatorVersion", (view) => view.setUint32(at.creatorVersion, 1)],
  ];
  for (const [field, change] of cases) assertRefused(withFooters(image, change), `footer.${field}`);
});

Deno.test("footer fields that only check cares about are found by check", async () => {
  const image = await goldenImage("base.vhd");
  const at = FOOTER_OFFSETS;
  const cases: [keyof typeof at, (view: DataView) => void][] = [
    ["features", (view) => view.setUint32(at.features, 0)],
    ["features", (view) => view.setUint32(at.features, 0x12)],
    ["fileFormatVersion", (view) => view.setUint32(at.fileFormatVersion, 0x20000)],
    ["timestamp", (view) => view.setUint32(at.timestamp, 0xffffffff)],
    ["creatorVersion", (view) => view.setUint32(at.creatorVersion, 0x90000)],
    ["savedState", (view) => view.setUint8(at.savedState, 2)],
    ["hidden", (view) => view.setUint8(at.hidden, 9)],
    ["reserved", (view) => view.setUint8(at.reserved, 1)],
    ["uuid", (view) => {
      view.setBigUint64(at.uuid, 0n);
      view.setBigUint64(at.uuid + 8, 0n);
    }],
  ];
  for (const [field, change] of cases) {
    const storage = readOnlyStorage(withFooters(image, change));
    const { valid, findings } = checkImage("/base.vhd", { storage });
    assert.equal(valid, false, field);
    assert.equal(findings[0].field, `footer.${field}`);
    assert.equal(findings[0].offsetBytes, image.length - 512 + at[field]);
  }
});

Deno.test("a geometry that is larger than the disk is a warning", async () => {
  const image = withFooters(
    await goldenImage("base.vhd"),
    (view) => view.setUint32(FOOTER_OFFSETS.geometry, 0xffffffff),
  );
  const { valid, findings } = checkImage("/base.vhd", { storage: readOnlyStorage(image) });
  assert.equal(valid, true);
  assert.deepEqual(findings.map(({ severity, field }) => [severity, field]), [
    ["warning", "footer.geometry"],
  ]);
});

Deno.test("every header field with a wrong value is refused by name", async () => {
  const image = await goldenImage("base.vhd");
  const at = HEADER_OFFSETS;
  const cases: [string, (view: DataView) => void][] = [
    ["cookie", (view) => view.setUint8(at.cookie, 0)],
    ["tableOffset", (view) => view.setBigUint64(at.tableOffset, 0n)],
    ["tableOffset", (view) => view.setBigUint64(at.tableOffset, 512n)],
    ["tableOffset", (view) => view.setBigUint64(at.tableOffset, 1537n)],
    ["tableOffset", (view) => view.setBigUint64(at.tableOffset, 1n << 50n)],
    ["headerVersion", (view) => view.setUint32(at.headerVersion, 0x20000)],
    ["maxBatEntries", (view) => view.setUint32(at.maxBatEntries, 31)],
    ["maxBatEntries", (view) => view.setUint32(at.maxBatEntries, 0)],
    ["maxBatEntries", (view) => view.setUint32(at.maxBatEntries, 0xffffffff)],
    ["blockSize", (view) => view.setUint32(at.blockSize, 0)],
    ["blockSize", (view) => view.setUint32(at.blockSize, 256)],
    ["blockSize", (view) => view.setUint32(at.blockSize, 3 * MIB)],
    ["blockSize", (view) => view.setUint32(at.blockSize, 0x80000000)],
  ];
  for (const [field, change] of cases) assertRefused(withHeader(image, change), `header.${field}`);
  const unsummed = image.slice();
  unsummed[512 + at.checksum] ^= 1;
  assertRefused(unsummed, "header.checksum");
});

Deno.test("an image with a batmap that makes no sense is served, and repair makes the map anew", async () => {
  const image = await goldenImage("base.vhd");
  const good = openVhd("/base.vhd", { storage: readOnlyStorage(image) });
  const changed = (change: (view: DataView) => void): Uint8Array<ArrayBuffer> => {
    const bytes = image.slice();
    change(new DataView(bytes.buffer, 2048, 1024));
    return bytes;
  };
  const cases: [string, (view: DataView) => void][] = [
    ["cookie", (view) => view.setUint8(0, 0)],
    ["cookie", (view) => new Uint8Array(view.buffer, view.byteOffset, 512).fill(0)],
    ["batmapOffset", (view) => view.setBigUint64(8, 512n)],
    ["batmapOffset", (view) => view.setBigUint64(8, 2561n)],
    ["batmapSectors", (view) => view.setUint32(16, 0)],
    ["batmapSectors", (view) => view.setUint32(16, 0xffffffff)],
    ["batmapVersion", (view) => view.setUint32(20, 0x10003)],
  ];
  for (const [field, change] of cases) {
    const storage = readOnlyStorage(changed(change));
    const opened = openVhd("/base.vhd", { storage, readOnly: false });
    assert.equal(opened.batmapFault?.fault.field, `batmap.${field}`);
    assert.equal(opened.endOfDataSector, good.endOfDataSector);
    opened.close();
    const { findings } = checkImage("/base.vhd", { storage });
    assert.equal(findings[0].field, `batmap.${field}`);
    storage.beforeOperation = null;
    assert.deepEqual(repairImage("/base.vhd", { storage }), [
      "rebuilt the batmap from the bitmaps of the blocks",
    ]);
    assert.equal(checkImage("/base.vhd", { storage, checkData: true }).valid, true);
    const repaired = openVhd("/base.vhd", { storage });
    assert.equal(repaired.batmapFault, null);
    assert.deepEqual(repaired.batmap?.bits, good.batmap?.bits);
    assert.equal(getFile(storage, "/base.vhd").length, image.length);
  }
});

Deno.test("the trace of a key outlives the map beside it", async () => {
  const bytes = await goldenImage("base.vhd");
  const keyhash = { cookie: 1, nonce: new Uint8Array(32).fill(3), hash: new Uint8Array(32) };
  const storage = readOnlyStorage(bytes);
  storage.beforeOperation = null;
  setKeyhash(storage, { path: "/base.vhd" }, keyhash);
  const damaged = getFile(storage, "/base.vhd");
  new DataView(damaged.buffer).setBigUint64(2048 + 8, 512n);
  putFile(storage, "/base.vhd", damaged);
  assert.deepEqual(openVhd("/base.vhd", { storage }).batmap?.header.keyhash, keyhash);
  repairImage("/base.vhd", { storage });
  assert.deepEqual(openVhd("/base.vhd", { storage }).batmap?.header.keyhash, keyhash);
});

Deno.test("an image that says tap and never had a batmap is served, and stays without one", () => {
  const storage = new SimulatedDisk();
  const bytes = foreignImage({ creator: "tap\0", version: 0x10003, firstBlockSector: 4 });
  putFile(storage, "/copied.vhd", bytes);
  assert.equal(openVhd("/copied.vhd", { storage }).batmapFault, null);
  assert.equal(checkImage("/copied.vhd", { storage, checkData: true }).valid, true);
  assert.deepEqual(repairImage("/copied.vhd", { storage }), []);
  assert.deepEqual(getFile(storage, "/copied.vhd"), bytes);
});

Deno.test("batmap bits that cannot be true change nothing that is read, and go when it is written", () => {
  const storage = new SimulatedDisk();
  createDynamic("/base.vhd", { storage, sizeBytes: 8 * MIB });
  const write = (path: string, offsetBytes: number, bytes: Uint8Array<ArrayBuffer>): void => {
    const image = openVhd(path, { storage, readOnly: false });
    writeRange(image, bytes, offsetBytes);
    finishWriting(image);
    image.close();
  };
  write("/base.vhd", 0, new Uint8Array(8 * MIB).fill(0x50));
  snapshot("/child.vhd", { storage, parent: "/base.vhd" });
  write("/child.vhd", 4 * MIB, new Uint8Array(512).fill(0x43));
  const lie = openVhd("/child.vhd", { storage, readOnly: false });
  lie.batmap?.bits.fill(0xf0, 0, 1);
  writeBatmap(lie);
  lie.close();
  // Block 0 becomes partial, block 2 is partial already, block 3 is unallocated.
  write("/child.vhd", 0, new Uint8Array(4096).fill(0x43));
  const content = contentOf(storage, "/child.vhd");
  const expected = new Uint8Array(8 * MIB).fill(0x50);
  expected.fill(0x43, 0, 4096).fill(0x43, 4 * MIB, 4 * MIB + 512);
  assert.ok(content.every((byte, i) => byte === expected[i]));
  write("/child.vhd", 4 * MIB, new Uint8Array(512).fill(0x43));
  const bits = openVhd("/child.vhd", { storage }).batmap?.bits[0] ?? 0;
  assert.equal(bits & 0xa0, 0, "blocks that were written are told of as they are");
});

Deno.test("a batmap with a wrong checksum counts as empty, and is found and mended", async () => {
  for (const offset of [2048 + 24, 2048 + 512]) {
    const bytes = await goldenImage("base.vhd");
    bytes[offset] ^= 0x08;
    const storage = readOnlyStorage(bytes);
    const image = openVhd("/base.vhd", { storage, readOnly: false });
    assert.equal(image.batmapFault?.fault.field, "batmap.checksum");
    assert.ok(image.batmap?.bits.every((byte) => byte === 0));
    assert.equal(checkImage("/base.vhd", { storage }).valid, false);
    storage.beforeOperation = null;
    writeRange(image, new Uint8Array(512), 0);
    finishWriting(image);
    image.close();
    assert.equal(checkImage("/base.vhd", { storage, checkData: true }).valid, true);
  }
});

Deno.test("blocks in the metadata, past the end, or over another are refused by number", async () => {
  const image = await goldenImage("base.vhd");
  const withEntry = (block: number, sector: number): Uint8Array<ArrayBuffer> => {
    const bytes = image.slice();
    new DataView(bytes.buffer).setUint32(1536 + block * 4, sector);
    return bytes;
  };
  for (const sector of [0, 1, 2, 3]) assertRefused(withEntry(9, sector), "bat[9]");
  for (const sector of [0xfffffffe, image.length / 512, image.length / 512 - 4097]) {
    assertRefused(withEntry(9, sector), "bat[9]");
  }
  assertRefused(withEntry(9, 7), "bat[9]");
  assertRefused(withEntry(9, 8), "bat[9]");
  assertRefused(withEntry(9, 4111 + 4096), "bat[9]");
  for (const sector of [5, 6]) assertRefused(withEntry(9, sector), "bat[0]");
});

Deno.test("an image cut short at any place opens from its backup, or is refused", async () => {
  const image = await goldenImage("base.vhd");
  const lengths = [0, 1, 511, 512, 1023, 1536, 1537, 2047, 2560, 3071, 3584, 4096, 100_000];
  for (const length of [...lengths, image.length - 513, image.length - 512, image.length - 1]) {
    const storage = readOnlyStorage(image.slice(0, length));
    try {
      const opened = openVhd("/base.vhd", { storage });
      const source = length === image.length - 1 ? "short" : "backup";
      assert.equal(opened.footerSource, source, `${length} bytes`);
      assert.ok(length >= image.length - 513, `${length} bytes were enough`);
    } catch (error) {
      assert.ok(error instanceof VhdFormatError, `${length} bytes: ${error}`);
    }
    const { valid } = checkImage("/base.vhd", { storage });
    assert.equal(valid, length === image.length - 1, `${length} bytes`);
  }
});

Deno.test("a broken footer at the end is replaced by the backup, and that is said", async () => {
  const image = await goldenImage("base.vhd");
  image.fill(0x5a, image.length - 512);
  const storage = readOnlyStorage(image);
  assert.equal(openVhd("/base.vhd", { storage }).footerSource, "backup");
  assert.equal(checkImage("/base.vhd", { storage }).valid, false);
  assert.equal(checkImage("/base.vhd", { storage, ignoreFooter: true }).valid, true);
  image.fill(0x5a, 0, 512);
  assertRefused(image, "footer.cookie");
});

Deno.test("footers that differ are found", async () => {
  const image = await goldenImage("base.vhd");
  const view = new DataView(image.buffer, 0, 512);
  view.setUint32(FOOTER_OFFSETS.timestamp, 5);
  view.setUint32(FOOTER_OFFSETS.checksum, footerChecksum(image.subarray(0, 512)));
  const { findings } = checkImage("/base.vhd", { storage: readOnlyStorage(image) });
  assert.equal(findings[0].message, "primary and backup footers do not match");
  assert.equal(findings[0].field, "backup.timestamp");
});

Deno.test("a poisoned image opens only where that is asked for", async () => {
  const image = withFooters(await goldenImage("base.vhd"), (view) => {
    for (const [i, char] of [..."v_poison"].entries()) view.setUint8(i, char.charCodeAt(0));
  });
  const storage = readOnlyStorage(image);
  assert.throws(() => openVhd("/base.vhd", { storage }), /put out of use/);
  assert.equal(openVhd("/base.vhd", { storage, ignoreDisabled: true }).type, "dynamic");
});

Deno.test("a fixed image whose footer claims more than the file holds is refused", () => {
  const storage = new SimulatedDisk();
  createFixed("/f.vhd", { storage, sizeBytes: 4 * MIB });
  const bytes = getFile(storage, "/f.vhd").slice(2 * MIB);
  putFile(storage, "/f.vhd", bytes);
  assert.throws(
    () => openVhd("/f.vhd", { storage }),
    (error) => error instanceof VhdFormatError && error.fault.field === "footer.currentSize",
  );
});

Deno.test("sizes that no VHD can have are refused before anything is written", () => {
  const storage = new SimulatedDisk();
  for (const sizeBytes of [0, -1, NaN, 2040 * 1024 * MIB + 1]) {
    assert.throws(() => createDynamic("/a.vhd", { storage, sizeBytes }), /EINVAL/);
    assert.throws(() => createFixed("/a.vhd", { storage, sizeBytes }), /EINVAL/);
  }
  const reserveBytes = 2 * MIB;
  assert.throws(() => createDynamic("/a.vhd", { storage, sizeBytes: 9 * MIB, reserveBytes }));
  assert.equal(storage.exists("/a.vhd"), false);
});

Deno.test("the largest image opens, and so does one of small blocks", () => {
  const storage = new SimulatedDisk();
  createDynamic("/big.vhd", { storage, sizeBytes: 2040 * 1024 * MIB });
  assert.equal(openVhd("/big.vhd", { storage }).blocks, 1_044_480);
  createDynamic("/small.vhd", { storage, sizeBytes: 64 * MIB, reserveBytes: 2048 * MIB });
  const bytes = getFile(storage, "/small.vhd");
  putFile(
    storage,
    "/small.vhd",
    withHeader(bytes, (view) => view.setUint32(HEADER_OFFSETS.blockSize, 65536)),
  );
  const image = openVhd("/small.vhd", { storage, readOnly: false });
  assert.deepEqual([image.blocks, image.sectorsPerBlock, image.bitmapSectors], [1024, 128, 1]);
  writeRange(image, new Uint8Array(512).fill(7), 65536 * 3 + 512);
  finishWriting(image);
  image.close();
  assert.equal((openVhd("/small.vhd", { storage }).bat[3] + 1) % 8, 0);
  assert.equal(checkImage("/small.vhd", { storage, checkData: true }).valid, true);
});

Deno.test("data where a bitmap has none, and a batmap that claims too much, are found", async () => {
  const image = await goldenImage("base.vhd");
  image[3584 + 512 + 300 * 512] = 1;
  const storage = readOnlyStorage(image);
  assert.equal(checkImage("/base.vhd", { storage }).valid, true);
  const { valid, findings: [finding] } = checkImage("/base.vhd", { storage, checkData: true });
  assert.deepEqual([valid, finding.severity], [true, "warning"]);
  assert.equal(finding.message, "sector 0x12c of block 0x0 has data where bitmap is clear");
  assert.equal(finding.offsetBytes, 3584 + 512 + 300 * 512);
  const bitmap = await goldenImage("base.vhd");
  bitmap[7 * 512 + 512 * 4104 * 2] &= 0;
  const block = openVhd("/base.vhd", { storage: readOnlyStorage(bitmap) }).bat.indexOf(
    7 + 4104 * 2,
  );
  const second = checkImage("/base.vhd", { storage: readOnlyStorage(bitmap), checkData: true });
  assert.ok(
    second.findings.some(({ message }) =>
      message === `batmap shows block ${block} full, its bitmap does not`
    ),
  );
});

Deno.test("on a full disk, the room of blocks that no table names becomes the footer's", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 8 * MIB });
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  writeRange(image, new Uint8Array(2 * MIB).fill(1), 0);
  finishWriting(image);
  const endBytes = image.endOfDataSector * 512;
  image.file.truncate(endBytes);
  image.file.writeAt(new Uint8Array(4096).fill(2), endBytes + 8192);
  storage.capacityBytes = storage.usedBytes;
  placeFooter(image);
  const { footerSource } = openVhd("/a.vhd", { storage });
  assert.equal(footerSource, "primary");
  assert.deepEqual(checkImage("/a.vhd", { storage, checkData: true }).findings, []);
});
