import assert from "node:assert/strict";
import fc from "fast-check";
import { decodeBat, encodeBat } from "../../src/vhd/format/bat.ts";
import {
  batmapBytes,
  batmapChecksum,
  decodeBatmapHeader,
  encodeBatmapHeader,
} from "../../src/vhd/format/batmap.ts";
import { allSet, countSet, runEnd, setBit, setBits, testBit } from "../../src/vhd/format/bitmap.ts";
import { onesComplementChecksum } from "../../src/vhd/format/checksum.ts";
import { newFooter } from "../../src/vhd/create.ts";
import {
  decodeFooter,
  encodeFooter,
  footerFault,
  HD_TYPE_DYNAMIC,
} from "../../src/vhd/format/footer.ts";
import { geometryOfSize, packGeometry, unpackGeometry } from "../../src/vhd/format/geometry.ts";
import { decodeHeader, emptyHeader, encodeHeader } from "../../src/vhd/format/header.ts";
import {
  bitmapSectors,
  blockEnd,
  blocksThatFit,
  endOfDataSector,
  nextBlockSector,
} from "../../src/vhd/format/layout.ts";
import {
  decodeLocation,
  decodeParentName,
  encodeLocation,
  encodeParentName,
  locatorSpaceBytes,
  PLAT_CODE_MACX,
  PLAT_CODE_W2KU,
  PLAT_CODE_W2RU,
} from "../../src/vhd/format/locator.ts";
import { relativePath } from "../../src/files/paths.ts";
import { formatVhdTime, VHD_EPOCH_START, vhdTime } from "../../src/vhd/format/time.ts";
import { formatUuid, generateUuid } from "../../src/vhd/format/uuid.ts";
import { goldenImage } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;

Deno.test("footer, header and batmap of the reference's image come back byte for byte", async () => {
  const image = await goldenImage("child.vhd");
  const footer = image.subarray(image.length - 512);
  assert.deepEqual(encodeFooter(decodeFooter(footer)), footer.slice());
  assert.equal(footerFault(footer), null);
  const header = image.subarray(512, 1536);
  assert.deepEqual(encodeHeader(decodeHeader(header)), header.slice());
  const batmap = image.subarray(2048, 2560);
  assert.deepEqual(encodeBatmapHeader(decodeBatmapHeader(batmap)), batmap.slice());
  const bits = image.subarray(2560, 3072);
  assert.equal(batmapChecksum(bits, 0x10002), decodeBatmapHeader(batmap).checksum);
});

Deno.test("any single changed byte of a footer is noticed", () => {
  const bytes = encodeFooter(newFooter(HD_TYPE_DYNAMIC, 64 * MIB));
  for (let i = 0; i < bytes.length; i++) {
    const changed = bytes.slice();
    changed[i] ^= 0x01;
    assert.notEqual(footerFault(changed), null, `byte ${i}`);
  }
});

Deno.test("any footer and header survive encoding and decoding", () => {
  fc.assert(fc.property(fc.uint8Array({ minLength: 1536, maxLength: 1536 }), (noise) => {
    const footer = decodeFooter(noise);
    const again = decodeFooter(encodeFooter(footer));
    assert.deepEqual({ ...again, checksum: 0 }, { ...footer, checksum: 0 });
    const header = decodeHeader(noise.subarray(512));
    const headerAgain = decodeHeader(encodeHeader(header));
    assert.deepEqual({ ...headerAgain, checksum: 0 }, { ...header, checksum: 0 });
  }));
});

Deno.test("a checksum is the ones' complement of the sum, without its own field", () => {
  assert.equal(onesComplementChecksum(new Uint8Array(8)), 0xffffffff);
  assert.equal(onesComplementChecksum(new Uint8Array([1, 2, 3, 4, 250, 0])), 0xffffffff - 260);
  assert.equal(onesComplementChecksum(new Uint8Array([9, 1, 2, 3, 4, 9]), 1), 0xffffffff - 18);
});

Deno.test("a batmap of version 1.1 is summed over signed bytes", () => {
  assert.equal(batmapChecksum(new Uint8Array([0xff, 0x80]), 0x10001), ~(-1 - 128) >>> 0);
  assert.equal(batmapChecksum(new Uint8Array([0xff, 0x80]), 0x10002), ~(255 + 128) >>> 0);
});

Deno.test("a batmap's length in use rounds down to bytes before it rounds up to sectors", () => {
  assert.equal(batmapBytes(2 * MIB), 512);
  assert.equal(batmapBytes(8 * GIB), 512);
  assert.equal(batmapBytes(8 * GIB + 2 * MIB), 512);
  assert.equal(batmapBytes(8 * GIB + 16 * MIB), 1024);
});

Deno.test("geometry follows the specification's appendix", () => {
  const cases: [number, number, number, number][] = [
    [64 * MIB, 963, 8, 17],
    [2 * MIB, 60, 4, 17],
    [10 * GIB, 20805, 16, 63],
    [2040 * GIB, 65535, 16, 255],
    [1, 0, 4, 17],
  ];
  for (const [sizeBytes, cylinders, heads, sectorsPerTrack] of cases) {
    const geometry = geometryOfSize(sizeBytes);
    assert.deepEqual(geometry, { cylinders, heads, sectorsPerTrack }, String(sizeBytes));
    assert.deepEqual(unpackGeometry(packGeometry(geometry)), geometry);
    const sectors = geometry.cylinders * geometry.heads * geometry.sectorsPerTrack;
    assert.ok(sectors * 512 <= sizeBytes, "a geometry never describes more than there is");
  }
});

Deno.test("times count from 2000 and print as ctime does", () => {
  assert.equal(vhdTime(VHD_EPOCH_START), 0);
  assert.equal(vhdTime(VHD_EPOCH_START + 86400), 86400);
  assert.match(
    formatVhdTime(86400 * 3),
    /^[A-Z][a-z]{2} Jan [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} 2000$/,
  );
});

Deno.test("UUIDs are random, of version 4, and print in groups", () => {
  const uuid = generateUuid();
  assert.match(
    formatUuid(uuid),
    /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
  );
  assert.notDeepEqual(generateUuid(), uuid);
});

Deno.test("a BAT is whole sectors, big-endian, behind its end what was there or zeros", () => {
  const batPadding = new Uint32Array(0);
  const bytes = encodeBat({ bat: new Uint32Array([7, 0xffffffff]), batPadding });
  assert.equal(bytes.length, 512);
  assert.deepEqual([...bytes.subarray(0, 9)], [0, 0, 0, 7, 255, 255, 255, 255, 0]);
  assert.deepEqual(decodeBat(bytes, 2), new Uint32Array([7, 0xffffffff]));
  assert.equal(encodeBat({ bat: new Uint32Array(129), batPadding }).length, 1024);
  const padded = encodeBat({ bat: new Uint32Array([1]), batPadding: new Uint32Array([2, 3]) });
  assert.deepEqual(decodeBat(padded, 4), new Uint32Array([1, 2, 3, 0]));
});

Deno.test("bitmap functions agree with an array of booleans", () => {
  const bit = fc.tuple(fc.nat(99), fc.nat(40));
  fc.assert(fc.property(fc.array(bit, { maxLength: 8 }), (ranges) => {
    const bits = new Uint8Array(20);
    const model = new Array<boolean>(160).fill(false);
    for (const [from, count] of ranges) {
      setBits(bits, from, count);
      model.fill(true, from, from + count);
    }
    model.forEach((set, i) => assert.equal(testBit(bits, i), set));
    for (const end of [160, 157, 64]) {
      assert.equal(countSet(bits, end), model.slice(0, end).filter(Boolean).length);
      assert.equal(allSet(bits, end), model.slice(0, end).every(Boolean));
      for (let at = 0; at < end; at++) {
        const next = model.findIndex((set, i) => i > at && set !== model[at]);
        assert.equal(runEnd(bits, at, end), next < 0 ? end : Math.min(next, end));
      }
    }
  }));
});

Deno.test("bit 0 is the most significant of the first byte", () => {
  const bits = new Uint8Array(2);
  setBit(bits, 0);
  setBit(bits, 9);
  assert.deepEqual([...bits], [0x80, 0x40]);
});

Deno.test("locators carry paths as each platform writes them", () => {
  const mac = encodeLocation(PLAT_CODE_MACX, "./a.vhd");
  assert.equal(new TextDecoder().decode(mac), "file://./a.vhd");
  const windows = encodeLocation(PLAT_CODE_W2RU, "./sub/a.vhd");
  assert.equal(new TextDecoder("utf-16le").decode(windows), ".\\sub\\a.vhd");
  const up = encodeLocation(PLAT_CODE_W2KU, "../a.vhd");
  assert.equal(new TextDecoder("utf-16le").decode(up), ".\\..\\a.vhd");
  const absolute = encodeLocation(PLAT_CODE_W2KU, "/x/a.vhd");
  assert.equal(new TextDecoder("utf-16le").decode(absolute), "\\x\\a.vhd");
  assert.equal(decodeLocation(PLAT_CODE_MACX, mac), "./a.vhd");
  assert.equal(decodeLocation(PLAT_CODE_W2RU, windows), "./sub/a.vhd");
  assert.equal(decodeLocation(PLAT_CODE_MACX, new TextEncoder().encode("http://a")), null);
  assert.equal(decodeLocation(PLAT_CODE_W2RU, new Uint8Array(4)), null);
  const drive = encodeLocation(PLAT_CODE_W2KU, "/vm/a.vhd");
  const withDrive = new Uint8Array([0x43, 0, 0x3a, 0, ...drive]);
  assert.equal(decodeLocation(PLAT_CODE_W2KU, withDrive), "/vm/a.vhd");
});

Deno.test("names beyond ASCII survive in locators and header", () => {
  const name = "größe-数据.vhd";
  for (const code of [PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU]) {
    assert.equal(decodeLocation(code, encodeLocation(code, `./${name}`)), `./${name}`);
  }
  assert.equal(decodeParentName(encodeParentName(name)), name);
  assert.throws(() => encodeParentName("x".repeat(257)), RangeError);
});

Deno.test("a locator's room is in sectors when small, in bytes when it is a multiple of 512", () => {
  const locator = { ...emptyHeader().locators[0] };
  const cases: [number, number][] = [[0, 0], [1, 512], [511, 511 * 512], [512, 512], [1024, 1024], [
    700,
    0,
  ]];
  for (const [dataSpace, bytes] of cases) {
    assert.equal(locatorSpaceBytes({ ...locator, dataSpace }), bytes, String(dataSpace));
  }
});

Deno.test("relative paths lead from the child's folder to the parent", () => {
  assert.equal(relativePath("/a/b/c.vhd", "/a/b/p.vhd"), "./p.vhd");
  assert.equal(relativePath("/a/b/c.vhd", "/a/p.vhd"), "../p.vhd");
  assert.equal(relativePath("/a/c.vhd", "/a/b/p.vhd"), "./b/p.vhd");
  assert.equal(relativePath("/a/b/c.vhd", "/x/p.vhd"), "../../x/p.vhd");
  assert.equal(relativePath("/c.vhd", "/p.vhd"), "./p.vhd");
  assert.equal(relativePath("/a/b/c.vhd", "/a/b"), "../b");
});

Deno.test("new blocks leave a gap so that their data starts on 4 KiB", () => {
  const shape = { bitmapSectors: 1, sectorsPerBlock: 4096 };
  assert.equal(nextBlockSector(shape, 6), 7);
  assert.equal(nextBlockSector(shape, 7), 7);
  assert.equal(nextBlockSector(shape, 8), 15);
  assert.equal(nextBlockSector({ ...shape, bitmapSectors: 4 }, 4), 4);
  fc.assert(fc.property(fc.nat(1 << 30), fc.integer({ min: 1, max: 32 }), (endSector, sectors) => {
    const sector = nextBlockSector({ ...shape, bitmapSectors: sectors }, endSector);
    assert.ok(sector >= endSector && sector < endSector + 8);
    assert.equal((sector + sectors) % 8, 0);
  }));
});

Deno.test("no block is placed where a BAT entry cannot point, and the count of those left agrees", () => {
  const bitmaps = fc.integer({ min: 1, max: 32 });
  const blocks = fc.integer({ min: 3, max: 17 });
  const ends = fc.integer({ min: 2 ** 32 - 600_000, max: 2 ** 32 + 20 });
  fc.assert(fc.property(bitmaps, blocks, ends, (bitmapSectors, log, from) => {
    const shape = { bitmapSectors, sectorsPerBlock: 2 ** log };
    let count = 0;
    for (let end = from;;) {
      const sector = nextBlockSector(shape, end);
      if (sector < 0) break;
      end = blockEnd(shape, sector);
      assert.ok(end < 0xffff_ffff);
      count++;
    }
    assert.equal(blocksThatFit(shape, from), count);
  }));
});

Deno.test("the end of data is behind the last block, wherever that is in the BAT", () => {
  const layout = { endOfHeadersBytes: 3072, sectorsPerBlock: 4096, bitmapSectors: 1 };
  const unused = 0xffffffff;
  assert.equal(endOfDataSector({ ...layout, bat: new Uint32Array([unused]) }), 6);
  const bat = new Uint32Array([9000, unused, 7]);
  assert.equal(endOfDataSector({ ...layout, bat }), 9000 + 4097);
  assert.equal(bitmapSectors(4096), 1);
  assert.equal(bitmapSectors(8), 1);
  assert.equal(bitmapSectors(4097), 2);
});
