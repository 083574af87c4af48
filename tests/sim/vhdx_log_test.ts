/**
 * Logs of VHDX images that a program left behind: torn entries, sequences that wrap, old ones beside new
 * ones, and hostile ones, whose replay must end soon and take little memory.
 *
 * @module
 */
import assert from "node:assert/strict";
import { ImageFormatError } from "../../src/files/format_error.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { openVhdx } from "../../src/vhdx/image.ts";
import { putFile } from "../support/vhd.ts";
import { MadeVhdx } from "../support/vhdx.ts";

const MIB = 1 << 20;
const PATH = "/disk.vhdx";
/** Pages in the room behind the items of the metadata, which nothing else uses. */
const [FIRST, SECOND] = [2 * MIB + 0x80000, 2 * MIB + 0x81000];

function made(): MadeVhdx {
  return new MadeVhdx({
    sizeBytes: MIB,
    blockBytes: MIB,
    dataGuid: "aaaaaaaa-0000-4000-8000-000000000001",
    sectors: new Map(),
  });
}

function page(stamp: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(4096).fill(stamp);
}

/** What both pages hold with the log replayed: a stamp each; a message when the image is refused. */
function replayed({ bytes }: MadeVhdx): string {
  const disk = new SimulatedDisk();
  putFile(disk, PATH, bytes);
  try {
    const image = openVhdx(PATH, { storage: disk });
    const stamps = [FIRST, SECOND].map((at) => {
      const found = new Uint8Array(4096);
      image.replayed.readAt(found, at);
      assert.ok(found.every((byte) => byte === found[0]), "a page is a mix");
      return found[0];
    });
    image.close();
    return stamps.join(" ");
  } catch (error) {
    assert.ok(error instanceof ImageFormatError, String(error));
    return error.fault.field;
  } finally {
    disk.close();
  }
}

Deno.test("VHDX: an entry of the log that is torn at any sector is not there", () => {
  const [before, after] = [made(), made()];
  const old = { at: FIRST, page: page(1) };
  before.leaveInLog([old]);
  after.leaveInLog([old, { at: FIRST, page: page(2) }, { at: SECOND, page: page(3) }]);
  assert.equal(replayed(before), "1 0");
  assert.equal(replayed(after), "2 3");
  const [entries, sectors] = [3, 16];
  for (let sector = 0; sector < entries * sectors; sector++) {
    const torn = made();
    torn.bytes = after.bytes.slice();
    const at = torn.logAt + sector * 512;
    torn.bytes.set(before.bytes.subarray(at, at + 512), at);
    const isChanged = after.bytes.subarray(at, at + 512).some((byte, i) =>
      byte !== before.bytes[at + i]
    );
    // The first entry is the same in both; of the others some sectors are.
    const whole = isChanged ? Math.floor(sector / sectors) : entries;
    assert.equal(
      replayed(torn),
      ["header.LogGuid", "1 0", "2 0", "2 3"][whole],
      `sector ${sector}`,
    );
  }
});

Deno.test("VHDX: an entry that an earlier one is missing for is not replayed", () => {
  const image = made();
  image.leaveInLog([{ at: FIRST, page: page(1) }, { at: FIRST, page: page(2) }]);
  image.bytes[image.logAt + 20] ^= 1;
  assert.equal(replayed(image), "header.LogGuid");
});

Deno.test("VHDX: a sequence without one of its entries ends in front of it", () => {
  const image = made();
  image.leaveInLog([{ at: FIRST, page: page(1) }, { at: FIRST, page: page(2) }]);
  const at = image.logAt + 8192;
  for (const field of [16, 88]) image.view.setBigUint64(at + field, 11n, true);
  image.view.setUint32(at + 8188, 11, true);
  image.seal(at, 8192);
  assert.equal(replayed(image), "1 0");
});

Deno.test("VHDX: the newer of two headers counts, wherever it is", () => {
  for (const older of [65536, 131072]) {
    const image = made();
    image.leaveInLog([{ at: FIRST, page: page(1) }]);
    // The older header leads to a log that is not there.
    image.view.setBigUint64(older + 8, 1n, true);
    image.view.setUint32(older + 48, 7, true);
    image.seal(older, 4096);
    assert.equal(replayed(image), "1 0", `${older}`);
  }
});

Deno.test("VHDX: a sequence goes on at the start of the log, wherever it begins", () => {
  const changes = [1, 2, 3].map((stamp) => ({ at: FIRST, page: page(stamp) }));
  for (let start = MIB - 6 * 4096; start < MIB; start += 4096) {
    const image = made();
    image.leaveInLog(changes, { start });
    assert.equal(replayed(image), "3 0", `from ${start}`);
  }
});

Deno.test("VHDX: the newest sequence counts, and numbers may have 64 bits", () => {
  const older = { at: FIRST, page: page(1) };
  const newer = { at: SECOND, page: page(2) };
  for (const [first, second] of [[9n, 100n], [2n ** 32n - 1n, 2n ** 32n], [9n, 2n ** 64n - 1n]]) {
    for (const [olderAt, newerAt] of [[0, 65536], [65536, 0]]) {
      const image = made();
      image.leaveInLog([older], { start: olderAt, sequence: first });
      image.leaveInLog([newer], { start: newerAt, sequence: second });
      assert.equal(replayed(image), "0 2", `${first} and ${second}`);
    }
  }
  const image = made();
  image.leaveInLog([{ at: FIRST, page: page(5) }, older], { sequence: 2n ** 32n - 1n });
  assert.equal(replayed(image), "1 0");
});

Deno.test("VHDX: entries of another log are not replayed", () => {
  const image = made();
  image.leaveInLog([{ at: FIRST, page: page(1) }, { at: FIRST, page: page(2) }]);
  // The second entry is a rest of a log before this one: its GUID is another, its checksum is right.
  image.bytes[image.logAt + 8192 + 40] ^= 1;
  image.seal(image.logAt + 8192, 8192);
  assert.equal(replayed(image), "1 0");
  image.bytes[image.logAt + 40] ^= 1;
  image.seal(image.logAt, 8192);
  assert.equal(replayed(image), "header.LogGuid");
});

Deno.test("VHDX: a log may set pages to zero, and write them again", () => {
  const image = made();
  image.bytes.set(page(7), FIRST);
  image.bytes.set(page(7), SECOND);
  const [before, after] = [made(), made()];
  for (const each of [before, after]) each.bytes = image.bytes.slice();
  before.leaveInLog([{ at: FIRST, page: page(1) }, { at: FIRST, page: null }]);
  assert.equal(replayed(before), "0 7");
  after.leaveInLog([{ at: FIRST, page: null }, { at: FIRST, page: page(1) }]);
  after.view.setBigUint64(after.logAt + 72, 8192n, true);
  after.seal(after.logAt, 4096);
  assert.equal(replayed(after), "1 0");
});

/** An image with a log of some MiB, and what fills it: entries of a page, one behind the other. */
function largeLog(mib: number, change: (view: DataView, page: number) => void): MadeVhdx {
  const image = made();
  image.leaveInLog([{ at: FIRST, page: null }]);
  const entry = image.bytes.slice(image.logAt, image.logAt + 4096);
  const logAt = image.bytes.length;
  const bytes = new Uint8Array(logAt + mib * MIB);
  bytes.set(image.bytes);
  image.bytes = bytes;
  for (let at = 0; at < mib * MIB; at += 4096) {
    bytes.set(entry, logAt + at);
    change(new DataView(bytes.buffer, logAt + at, 4096), at / 4096);
  }
  for (const at of [65536, 131072]) {
    image.view.setUint32(at + 68, mib * MIB, true);
    image.view.setBigUint64(at + 72, BigInt(logAt), true);
    image.seal(at, 4096);
  }
  return image;
}

function secondsOf(work: () => void): number {
  const start = performance.now();
  work();
  return (performance.now() - start) / 1000;
}

Deno.test("VHDX: a hostile log ends soon, and takes little memory", () => {
  const zeros = made();
  zeros.leaveInLog([{ at: FIRST, page: null }]);
  zeros.view.setUint32(zeros.logAt + 8, 65536, true);
  zeros.view.setUint32(zeros.logAt + 24, 2000, true);
  for (let i = 0; i < 2000; i++) {
    const at = zeros.logAt + 64 + 32 * i;
    zeros.bytes.set(new TextEncoder().encode("zero"), at);
    zeros.view.setBigUint64(at + 8, 1n << 30n, true);
    zeros.view.setBigUint64(at + 16, BigInt(i % 20 + 40) << 30n, true);
    zeros.view.setBigUint64(at + 24, 9n, true);
  }
  zeros.seal(zeros.logAt, 65536);
  let field = "";
  const used = Deno.memoryUsage().rss;
  assert.ok(secondsOf(() => field = replayed(zeros)) < 5, "zeros");
  assert.equal(field, "log[0]");
  assert.ok(Deno.memoryUsage().rss - used < 256 * MIB, "memory");

  // Each entry claims all of the log, which would have to be summed up for each.
  const long = largeLog(32, (view) => view.setUint32(8, 32 * MIB, true));
  assert.ok(secondsOf(() => field = replayed(long)) < 10, "long entries");
  assert.equal(field, "header.LogGuid");

  for (const tail of [4096 * 5 + 1, 2 ** 31, 64 * MIB, MIB - 4]) {
    const image = made();
    image.leaveInLog([{ at: FIRST, page: null }]);
    image.view.setUint32(image.logAt + 12, tail, true);
    image.seal(image.logAt, 4096);
    assert.equal(replayed(image), "header.LogGuid", `tail ${tail}`);
  }
});
