import assert from "node:assert/strict";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { HEADER_OFFSETS, headerChecksum } from "../../src/vhd/format/header.ts";
import { preallocate } from "../../src/vhd/fill.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { killData } from "../../src/vhd/modify.ts";
import { growWithinMetadata, resizeVhd } from "../../src/vhd/resize/resize.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";

const MIB = 1 << 20;
const UNUSED = 0xffff_ffff;
const BAT_OFFSET = 1536;

/**
 * A disk of 32 blocks with a BAT of 2048 entries; the entries beyond the disk have arbitrary
 * values.
 */
function withJunkBehind(junk: number): SimulatedDisk {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 64 * MIB, reserveBytes: 4096 * MIB });
  const file = storage.open("/a.vhd", "write");
  const bytes = new Uint8Array(4 * (2048 - 32));
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < bytes.length; i += 4) view.setUint32(i, junk);
  file.writeAt(bytes, BAT_OFFSET + 32 * 4);
  file.close();
  return storage;
}

function entriesOf(storage: SimulatedDisk, from: number, to: number): number[] {
  const file = storage.open("/a.vhd", "read");
  const bytes = new Uint8Array((to - from) * 4);
  file.readAt(bytes, BAT_OFFSET + from * 4);
  file.close();
  const view = new DataView(bytes.buffer);
  return Array.from({ length: to - from }, (_, i) => view.getUint32(i * 4));
}

function assertValid(storage: SimulatedDisk): void {
  const { findings } = checkImage("/a.vhd", { storage, checkData: true });
  assert.deepEqual(findings, []);
}

Deno.test("entries that no block of the disk has are never looked at", () => {
  for (const junk of [0, 3, 100, 0x7fff_ffff, 0xffff_fffe]) {
    const storage = withJunkBehind(junk);
    const image = openVhd("/a.vhd", { storage, readOnly: false });
    assert.equal(image.bat.length, 32);
    assertValid(storage);
    writeRange(image, new Uint8Array(512).fill(7), 0);
    writeRange(image, new Uint8Array(512).fill(7), 63 * MIB);
    finishWriting(image);
    image.close();
    assertValid(storage);
    preallocate("/a.vhd", { storage });
    assertValid(storage);
    killData("/a.vhd", { storage });
    assertValid(storage);
    assert.ok(entriesOf(storage, 0, 32).every((entry) => entry === UNUSED));
  }
});

Deno.test("an entry that gets a block when the disk grows is unused first", () => {
  for (const junk of [0, 3, 100, 0x7fff_ffff]) {
    const fast = withJunkBehind(junk);
    growWithinMetadata("/a.vhd", { storage: fast, sizeBytes: 1024 * MIB });
    assert.ok(entriesOf(fast, 0, 512).every((entry) => entry === UNUSED));
    assertValid(fast);
    const moved = withJunkBehind(junk);
    resizeVhd("/a.vhd", { storage: moved, sizeBytes: 1024 * MIB, journal: "/j" });
    assert.ok(entriesOf(moved, 0, 2048).every((entry) => entry === UNUSED));
    assertValid(moved);
  }
});

Deno.test("millions of wrong entries are counted, a hundred are listed", () => {
  const storage = new SimulatedDisk();
  const sizeBytes = 4096 * 2 ** 21;
  createDynamic("/a.vhd", { storage, sizeBytes: 64 * MIB, reserveBytes: 2040 * 1024 * MIB });
  putForeignImage(storage, "/a.vhd", {
    sizeBytes,
    blockSizeBytes: 4096,
    blocks: { 0: "a" },
    batEntries: 2 ** 21,
  });
  const file = storage.open("/a.vhd", "write");
  const fill = (sector: number): void => {
    const bytes = new Uint8Array(4 * 2 ** 21);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < bytes.length; i += 4) view.setUint32(i, sector);
    file.writeAt(bytes, BAT_OFFSET);
  };
  const first = entriesOf(storage, 0, 1)[0];
  for (const [sector, faults, listed] of [[0, 2 ** 22 - 1, 101], [first, 2 ** 21 - 1, 101]]) {
    fill(sector);
    const startMs = performance.now();
    assert.throws(() => openVhd("/a.vhd", { storage }), /bat\[/);
    const { findings } = checkImage("/a.vhd", { storage });
    const ofBat = findings.filter(({ field }) => field.startsWith("bat"));
    assert.equal(ofBat.length, listed);
    assert.equal(ofBat[100].message, `${faults - 100} more faults like those in bat`);
    assert.ok(performance.now() - startMs < 60_000);
  }
});

Deno.test("a header whose table has no room for the disk's blocks is refused", () => {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 64 * MIB });
  const file = storage.open("/a.vhd", "write");
  const bytes = new Uint8Array(1024);
  file.readAt(bytes, 512);
  const view = new DataView(bytes.buffer);
  view.setUint32(HEADER_OFFSETS.maxBatEntries, 31);
  view.setUint32(HEADER_OFFSETS.checksum, headerChecksum(bytes));
  file.writeAt(bytes, 512);
  assert.throws(() => openVhd("/a.vhd", { storage }), /less than the 32 blocks/);
});
