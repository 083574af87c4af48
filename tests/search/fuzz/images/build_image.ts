/**
 * Images from a description, the same bytes each time: fixed UUIDs and times, and contents from
 * numbers. Recipes of mutations refer to places in them.
 *
 * @module
 */
import { geometryOfSize, packGeometry } from "../../../../src/vhd/format/geometry.ts";
import {
  BATMAP_HEADER_SIZE,
  batmapBytes,
  batmapChecksum,
  encodeBatmapHeader,
  VHD_BATMAP_COOKIE,
  VHD_BATMAP_CURRENT_VERSION,
} from "../../../../src/vhd/format/batmap.ts";
import { DD_BLK_UNUSED } from "../../../../src/vhd/format/bat.ts";
import { setBit } from "../../../../src/vhd/format/bitmap.ts";
import {
  encodeFooter,
  type Footer,
  HD_COOKIE,
  HD_FF_VERSION,
  HD_RESERVED,
  HD_TYPE_DIFF,
  HD_TYPE_DYNAMIC,
  HD_TYPE_FIXED,
  VHD_CURRENT_VERSION,
  VHD_NO_OFFSET,
} from "../../../../src/vhd/format/footer.ts";
import { emptyHeader, encodeHeader } from "../../../../src/vhd/format/header.ts";
import {
  encodeLocation,
  encodeParentName,
  NO_LOCATOR,
} from "../../../../src/vhd/format/locator.ts";
import { paddedBytes, sectorsOf } from "../../../../src/vhd/format/units.ts";
import { Random } from "../../../../src/testing/random.ts";

const SECTOR = 512;
/** A time in the past, in seconds since 2000. */
const TIMESTAMP = 600_000_000;

/** A block of an image. */
export interface BuiltBlock {
  readonly block: number;
  /** Which of its sectors are present. */
  readonly holds: "all" | "some" | "none";
}

/** An image to build. */
export interface BuiltImage {
  /** The last byte of its UUID and the seed of its content. */
  readonly number: number;
  readonly sizeBytes: number;
  /** 0 for a fixed image. */
  readonly blockSizeBytes: number;
  readonly blocks?: readonly BuiltBlock[];
  /** `tap\0` by default. */
  readonly creator?: string;
  readonly hasBatmap?: boolean;
  /** Entries of the BAT beyond those of the disk. */
  readonly spareEntries?: number;
  readonly parent?: { readonly number: number; readonly name: string; readonly codes: number[] };
  readonly isEncrypted?: boolean;
  /** Unused sectors in front of the footer. */
  readonly slackSectors?: number;
  /** The header and the BAT lie behind the blocks. */
  readonly headerLast?: boolean;
}

/** The UUID of an image; all zero for number 0, a raw image. */
export function uuidOf(number: number): Uint8Array<ArrayBuffer> {
  const uuid = new Uint8Array(16);
  if (number > 0) uuid.fill(0x42).set([number], 15);
  return uuid;
}

/** Bytes from a seed. */
export function contentOf(seed: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(lengthBytes / 4));
  const random = new Random(seed);
  for (let i = 0; i < words.length; i++) words[i] = random.bits();
  return new Uint8Array(words.buffer, 0, lengthBytes);
}

function footerOf({ number, sizeBytes, creator, parent, blockSizeBytes }: BuiltImage): Footer {
  const diskType = blockSizeBytes === 0
    ? HD_TYPE_FIXED
    : parent === undefined
    ? HD_TYPE_DYNAMIC
    : HD_TYPE_DIFF;
  return {
    cookie: HD_COOKIE,
    features: HD_RESERVED,
    fileFormatVersion: HD_FF_VERSION,
    dataOffset: VHD_NO_OFFSET,
    timestamp: TIMESTAMP,
    creatorApplication: creator ?? "tap\0",
    creatorVersion: creator === undefined ? VHD_CURRENT_VERSION : 0x000a_0000,
    creatorHostOs: 0,
    originalSize: BigInt(sizeBytes),
    currentSize: BigInt(sizeBytes),
    geometry: packGeometry(geometryOfSize(sizeBytes)),
    diskType,
    checksum: 0,
    uuid: uuidOf(number),
    savedState: 0,
    hidden: 0,
    reserved: new Uint8Array(426),
  };
}

/** The parts of a file by their offset. */
class Parts {
  readonly #parts: [number, Uint8Array<ArrayBuffer>][] = [];

  put(offsetBytes: number, bytes: Uint8Array<ArrayBuffer>): void {
    this.#parts.push([offsetBytes, bytes]);
  }

  join(): Uint8Array<ArrayBuffer> {
    const end = Math.max(...this.#parts.map(([at, bytes]) => at + bytes.length));
    const file = new Uint8Array(end);
    for (const [at, bytes] of this.#parts) file.set(bytes, at);
    return file;
  }
}

/** The bytes of an image. */
export function buildImage(image: BuiltImage): Uint8Array<ArrayBuffer> {
  const footer = footerOf(image);
  const parts = new Parts();
  if (image.blockSizeBytes === 0) {
    parts.put(0, contentOf(image.number, image.sizeBytes));
    parts.put(image.sizeBytes, encodeFooter(footer));
    return parts.join();
  }
  if (image.headerLast === true) {
    const blocksAt = SECTOR;
    const headerAt = putBlocks(parts, image, blocksAt, new Uint32Array(entriesOf(image)));
    footer.dataOffset = BigInt(headerAt);
    const end = putSparse(parts, image, { headerAt, blocksAt });
    parts.put(0, encodeFooter(footer));
    parts.put(end, encodeFooter(footer));
    return parts.join();
  }
  footer.dataOffset = BigInt(SECTOR);
  const end = putSparse(parts, image, { headerAt: SECTOR, blocksAt: null });
  parts.put(0, encodeFooter(footer));
  parts.put(end + (image.slackSectors ?? 0) * SECTOR, encodeFooter(footer));
  return parts.join();
}

function entriesOf({ sizeBytes, blockSizeBytes, spareEntries = 0 }: BuiltImage): number {
  return Math.ceil(sizeBytes / blockSizeBytes) + spareEntries;
}

/** Puts header, BAT, batmap, names and blocks; returns the end. */
function putSparse(
  parts: Parts,
  image: BuiltImage,
  { headerAt, blocksAt }: { headerAt: number; blocksAt: number | null },
): number {
  const header = emptyHeader();
  const tableAt = headerAt + 1024;
  const entries = entriesOf(image);
  header.tableOffset = BigInt(tableAt);
  header.maxBatEntries = entries;
  header.blockSize = image.blockSizeBytes;
  const bat = new Uint32Array(entries).fill(DD_BLK_UNUSED);
  let end = tableAt + paddedBytes(entries * 4);
  if (image.hasBatmap ?? image.creator === undefined) end = putBatmap(parts, image, end, entries);
  if (image.parent !== undefined) {
    const { number, name, codes } = image.parent;
    header.parentUuid = uuidOf(number);
    header.parentTimestamp = TIMESTAMP;
    header.parentName = encodeParentName(name);
    header.locators = Array.from({ length: 8 }, (_, i) => {
      if (i >= codes.length) return NO_LOCATOR;
      const bytes = encodeLocation(codes[i], `./${name}`);
      const space = paddedBytes(bytes.length);
      parts.put(end, new Uint8Array(space));
      parts.put(end, new Uint8Array(bytes));
      const dataOffset = BigInt(end);
      end += space;
      return {
        code: codes[i],
        dataSpace: space,
        dataLength: bytes.length,
        reserved: 0,
        dataOffset,
      };
    });
  }
  const blocksEnd = putBlocks(parts, image, blocksAt ?? end, bat);
  const padded = new Uint8Array(paddedBytes(entries * 4)).fill(0xff);
  const view = new DataView(padded.buffer);
  bat.forEach((sector, i) => view.setUint32(4 * i, sector));
  parts.put(tableAt, padded);
  parts.put(headerAt, encodeHeader(header));
  return blocksAt === null ? blocksEnd : end;
}

function putBatmap(parts: Parts, image: BuiltImage, at: number, entries: number): number {
  const bits = new Uint8Array(paddedBytes(Math.ceil(entries / 8)));
  for (const { block, holds } of image.blocks ?? []) if (holds === "all") setBit(bits, block);
  const summed = bits.subarray(0, batmapBytes(image.sizeBytes));
  const header = {
    cookie: VHD_BATMAP_COOKIE,
    batmapOffset: BigInt(at + BATMAP_HEADER_SIZE),
    batmapSectors: bits.length / SECTOR,
    batmapVersion: VHD_BATMAP_CURRENT_VERSION,
    checksum: batmapChecksum(summed, VHD_BATMAP_CURRENT_VERSION),
    marker: 0,
    keyhash: {
      cookie: image.isEncrypted === true ? 1 : 0,
      nonce: new Uint8Array(32),
      hash: new Uint8Array(32),
    },
  };
  parts.put(at, encodeBatmapHeader(header));
  parts.put(at + BATMAP_HEADER_SIZE, bits);
  return at + BATMAP_HEADER_SIZE + bits.length;
}

/** Puts the blocks from an offset on, the last block first; returns the end. */
function putBlocks(parts: Parts, image: BuiltImage, at: number, bat: Uint32Array): number {
  const sectors = image.blockSizeBytes / SECTOR;
  const bitmapBytes = paddedBytes(sectors / 8);
  for (const { block, holds } of [...image.blocks ?? []].reverse()) {
    bat[block] = sectorsOf(at);
    const bitmap = new Uint8Array(bitmapBytes);
    const data = contentOf(image.number * 1000 + block, image.blockSizeBytes);
    for (let sector = 0; sector < sectors; sector++) {
      const isHeld = holds === "all" || (holds === "some" && (sector * 7 + block) % 3 > 0);
      if (isHeld) setBit(bitmap, sector);
      else data.fill(0, sector * SECTOR, (sector + 1) * SECTOR);
    }
    parts.put(at, bitmap);
    parts.put(at + bitmapBytes, data);
    at += bitmapBytes + image.blockSizeBytes;
  }
  return at;
}
