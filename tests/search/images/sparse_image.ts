/**
 * Makes dynamic and differencing images as other programs may have made them.
 *
 * @module
 */
import type { AesXts } from "../../../ffi/aes_xts.ts";
import type { Storage, StorageFile } from "../../../src/files/storage.ts";
import type { Random } from "../../../src/testing/random.ts";
import { DD_BLK_UNUSED } from "../../../src/vhd/format/bat.ts";
import { batmapBytes, encodeBatmapHeader, type KeyHash } from "../../../src/vhd/format/batmap.ts";
import { setBit } from "../../../src/vhd/format/bitmap.ts";
import {
  encodeFooter,
  type Footer,
  HD_TYPE_DIFF,
  HD_TYPE_DYNAMIC,
} from "../../../src/vhd/format/footer.ts";
import { type DynamicHeader, emptyHeader, encodeHeader } from "../../../src/vhd/format/header.ts";
import { NO_LOCATOR, type ParentLocator } from "../../../src/vhd/format/locator.ts";
import { bitmapOf, isFull, type PlannedBlock } from "./blocks.ts";
import { stamped } from "../sim/stamps.ts";
import { isTap, someCreator, someFooter } from "./creators.ts";
import { type FileLayout, type Part, type PlacedPart, someLayout } from "./layout.ts";
import type { ParentNames, PlannedLocator } from "./locators.ts";
import type { Run } from "./content.ts";
import type { Shape } from "./sizes.ts";

/** What of an image is not as it should be, although the image must be served. */
export interface Damage {
  /** `vhd-util check` must report an error; without, it may not. */
  readonly checkFails: boolean;
  /** `vhd-util check -b`, which reads the data, must report an error. */
  readonly dataCheckFails: boolean;
}

/** What is given for a sparse image. */
export interface SparseWish {
  readonly path: string;
  readonly shape: Shape;
  readonly blocks: readonly PlannedBlock[];
  /** The parent; null for a dynamic image. */
  readonly parent: { readonly uuid: Uint8Array; readonly names: ParentNames } | null;
  /** The cipher of the data and the hash of its key; null for an image that is not encrypted. */
  readonly encryption: { readonly cipher: AesXts; readonly keyhash: KeyHash } | null;
  /** Whether blocks may lie near the end of what the table can point to. */
  readonly far: boolean;
  /** Whether redundant structures may be wrong. */
  readonly damaged: boolean;
  /** Whether `damaged` includes footers. */
  readonly wrongFooters: boolean;
}

/** A sparse image that was made. */
export interface SparseImage extends Damage {
  readonly uuid: Uint8Array;
  readonly what: string;
  /** Whether programs that ignore bitmaps, and read the footer at the start, read the same. */
  readonly isPlain: boolean;
}

const NO_KEY: KeyHash = { cookie: 0, nonce: new Uint8Array(32), hash: new Uint8Array(32) };

/** What becomes of the redundant structures. */
interface Quirks {
  readonly batmap: "none" | "right" | "sparse" | "lying" | "checksum" | "impossible";
  readonly backup: "same" | "other" | "torn" | "lost";
  readonly end: "whole" | "short" | "lost" | "torn";
  readonly slackSectors: number;
  readonly headerOffsetField: bigint;
}

function someQuirks(random: Random, wish: SparseWish, { tap }: { tap: boolean }): Quirks {
  const { damaged, encryption, wrongFooters } = wish;
  const dice = random.below(12);
  const maps = ["right", "right", "right", "sparse", "sparse"] as const;
  const wrong = ["lying", "lying", "checksum", "impossible"] as const;
  const batmap = !tap || (encryption === null && random.chance(0.25))
    ? "none"
    : damaged && random.chance(0.5)
    ? wrong[random.below(hasUnused(wish) ? 4 : 3)]
    : maps[random.below(maps.length)];
  const backup = wrongFooters && damaged && dice < 3
    ? (["other", "torn", "lost"] as const)[dice]
    : "same";
  const end = backup !== "same"
    ? "whole"
    : random.chance(0.1)
    ? "short"
    : wrongFooters && damaged && random.chance(0.2)
    ? (["lost", "torn"] as const)[random.below(2)]
    : "whole";
  return {
    batmap,
    backup,
    end,
    slackSectors: random.chance(0.2) ? random.below(40) : 0,
    headerOffsetField: random.chance(0.15) ? 0xffff_ffffn : 0xffff_ffff_ffff_ffffn,
  };
}

/** Whether one of the first blocks is not in the image. */
function hasUnused({ blocks, shape }: SparseWish): boolean {
  const first = Math.min(64, Math.ceil(shape.sectors / shape.blockSectors));
  return blocks.filter(({ block }) => block < first).length < first;
}

/** Writes an image; returns what it is. */
export function makeSparse(random: Random, storage: Storage, wish: SparseWish): SparseImage {
  const { path, parent, encryption, shape } = wish;
  const creator = someCreator(random, { isTap: encryption !== null || random.chance(0.6) });
  const quirks = someQuirks(random, wish, { tap: isTap(creator) });
  const diskType = parent === null ? HD_TYPE_DYNAMIC : HD_TYPE_DIFF;
  const footer = someFooter(random, { creator, diskType, sectors: shape.sectors });
  const layout = someLayout(random, partsOf(wish, quirks), { far: wish.far });
  const image = new ImageWriter(random, { wish, quirks, footer, layout });
  const file = storage.open(path, "create");
  try {
    image.write(file);
    file.sync();
  } finally {
    file.close();
  }
  return {
    uuid: footer.uuid,
    what: describe(wish, quirks, { footer, layout }),
    checkFails: quirks.backup !== "same" || quirks.end === "lost" || quirks.end === "torn" ||
      quirks.batmap === "checksum" || quirks.batmap === "impossible",
    dataCheckFails: quirks.batmap === "lying" || wish.blocks.some(({ stale }) => stale.length > 0),
    isPlain: quirks.backup === "same" && encryption === null &&
      wish.blocks.every(({ stale }) => stale.length === 0),
  };
}

function tableSectors({ entries }: Shape): number {
  return Math.max(1, Math.ceil(entries / 128));
}

/** The sectors of a map that has a bit for each entry of the table. */
function mapSectors({ entries }: Shape): number {
  return Math.max(1, Math.ceil(entries / 4096));
}

/** The structures of an image that have to be placed. */
function partsOf({ shape, blocks, parent }: SparseWish, { batmap }: Quirks): Part[] {
  const part = (kind: Part["kind"], sectors: number, index = 0, bitmapSectors = 0): Part => (
    { kind, index, sectors, bitmapSectors }
  );
  const hasMap = batmap !== "none";
  // The batmap's header has its place right behind the table.
  const parts = [part("header", 2), part("table", tableSectors(shape) + (hasMap ? 1 : 0))];
  if (hasMap) parts.push(part("map", mapSectors(shape)));
  for (const [index, { roomSectors }] of (parent?.names.locators ?? []).entries()) {
    if (roomSectors > 0) parts.push(part("locator", roomSectors, index));
  }
  const bitmapSectors = Math.max(1, Math.ceil(shape.blockSectors / 4096));
  for (const { block } of blocks) {
    parts.push(part("block", bitmapSectors + shape.blockSectors, block, bitmapSectors));
  }
  return parts;
}

/** Writes the structures of one image to their places. */
class ImageWriter {
  readonly #random: Random;
  readonly #wish: SparseWish;
  readonly #quirks: Quirks;
  readonly #footer: Footer;
  readonly #layout: FileLayout;

  constructor(
    random: Random,
    { wish, quirks, footer, layout }: {
      wish: SparseWish;
      quirks: Quirks;
      footer: Footer;
      layout: FileLayout;
    },
  ) {
    this.#random = random;
    this.#wish = wish;
    this.#quirks = quirks;
    this.#footer = footer;
    this.#layout = layout;
  }

  #placeOf(kind: Part["kind"], index = 0): PlacedPart {
    const part = this.#layout.parts.find((part) => part.kind === kind && part.index === index);
    if (part === undefined) throw new RangeError(`There is no place for a ${kind}`);
    return part;
  }

  write(file: StorageFile): void {
    const { blocks } = this.#wish;
    this.#footer.dataOffset = BigInt(this.#placeOf("header").sector * 512);
    this.#writeTable(file);
    if (this.#quirks.batmap !== "none") this.#writeBatmap(file);
    const header = this.#header();
    file.writeAt(encodeHeader(header), this.#placeOf("header").sector * 512);
    for (const [index, locator] of (this.#wish.parent?.names.locators ?? []).entries()) {
      if (locator.roomSectors === 0) continue;
      const at = this.#placeOf("locator", index).sector * 512 + locator.shift;
      file.writeAt(new Uint8Array(locator.name), at);
    }
    for (const block of blocks) this.#writeBlock(file, block);
    this.#writeFooters(file);
  }

  #writeTable(file: StorageFile): void {
    const { shape, blocks } = this.#wish;
    const bytes = new Uint8Array(tableSectors(shape) * 512);
    const view = new DataView(bytes.buffer);
    const used = Math.ceil(shape.sectors / shape.blockSectors);
    // What lies behind the table's end belongs to no block, and programs leave anything there.
    const behind = this.#random.chance(0.8) ? DD_BLK_UNUSED : this.#random.below(3);
    for (let at = 0; at < bytes.length; at += 4) {
      view.setUint32(at, at / 4 < used ? DD_BLK_UNUSED : behind);
    }
    for (const { block } of blocks) view.setUint32(block * 4, this.#placeOf("block", block).sector);
    file.writeAt(bytes, this.#placeOf("table").sector * 512);
  }

  #writeBatmap(file: StorageFile): void {
    const { shape, blocks, encryption } = this.#wish;
    const { batmap } = this.#quirks;
    const map = new Uint8Array(mapSectors(shape) * 512);
    const summed = Math.min(map.length, batmapBytes(shape.sectors * 512, shape.blockSectors * 512));
    const allocated = new Set(blocks.map(({ block }) => block));
    const lies = batmap === "lying" || batmap === "checksum";
    for (const block of blocks) {
      if (block.block >= summed * 8) continue;
      const full = isFull(block, shape.blockSectors);
      if (lies || (full && (batmap !== "sparse" || this.#random.chance(0.5)))) {
        setBit(map, block.block);
      }
    }
    const used = Math.ceil(shape.sectors / shape.blockSectors);
    for (let block = 0; batmap === "impossible" && block < Math.min(used, 64); block++) {
      if (!allocated.has(block)) setBit(map, block);
    }
    const batmapVersion = this.#footer.creatorVersion === 0x0001_0001 ? 0x0001_0001 : 0x0001_0002;
    const right = mapChecksum(map.subarray(0, summed), { signed: batmapVersion === 0x0001_0001 });
    const header = encodeBatmapHeader({
      cookie: "tdbatmap",
      batmapOffset: BigInt(this.#placeOf("map").sector * 512),
      batmapSectors: mapSectors(shape),
      batmapVersion,
      checksum: batmap === "checksum" ? (right ^ 0x100) >>> 0 : right,
      marker: this.#random.chance(0.2) ? 1 : 0,
      keyhash: encryption?.keyhash ?? NO_KEY,
    });
    file.writeAt(header, (this.#placeOf("table").sector + tableSectors(shape)) * 512);
    file.writeAt(map, this.#placeOf("map").sector * 512);
  }

  #header(): DynamicHeader {
    const { shape, parent } = this.#wish;
    const header = emptyHeader();
    header.dataOffset = this.#quirks.headerOffsetField;
    header.tableOffset = BigInt(this.#placeOf("table").sector * 512);
    header.maxBatEntries = shape.entries;
    header.blockSize = shape.blockSectors * 512;
    if (parent === null) return header;
    header.parentUuid = parent.uuid;
    header.parentTimestamp = this.#random.below(700_000_000);
    header.parentName = bigEndian(parent.names.headerName);
    header.locators = Array.from({ length: 8 }, (_, index) => {
      const locator = parent.names.locators[index];
      return locator === undefined ? NO_LOCATOR : this.#locator(locator, index);
    });
    return header;
  }

  #locator(locator: PlannedLocator, index: number): ParentLocator {
    const { code, name, roomSectors, shift } = locator;
    const at = roomSectors === 0 ? 0 : this.#placeOf("locator", index).sector * 512 + shift;
    return {
      code,
      dataSpace: locator.dataSpace ?? roomSectors * 512,
      dataLength: locator.dataLength ?? name.length,
      reserved: 0,
      dataOffset: locator.dataOffset ?? BigInt(at),
    };
  }

  #writeBlock(file: StorageFile, block: PlannedBlock): void {
    const { blockSectors } = this.#wish.shape;
    const { sector, bitmapSectors } = this.#placeOf("block", block.block);
    file.writeAt(bitmapOf(block, blockSectors), sector * 512);
    const runs = [...block.stale, ...block.held];
    for (const run of runs) {
      if (
        run.count > 0 &&
        (run.stamp !== 0 || this.#wish.encryption !== null || block.stale.length > 0)
      ) {
        this.#writeRun(file, run, { block: block.block, at: sector + bitmapSectors });
      }
    }
  }

  #writeRun(
    file: StorageFile,
    { sector, count, stamp }: Run,
    { block, at }: { block: number; at: number },
  ): void {
    const { shape, encryption } = this.#wish;
    const diskSector = block * shape.blockSectors + sector;
    const bytes = stamp === 0 ? new Uint8Array(count * 512) : stamped(diskSector, count, stamp);
    encryption?.cipher.encrypt(bytes, diskSector);
    file.writeAt(bytes, (at + sector) * 512);
  }

  #writeFooters(file: StorageFile): void {
    const { backup, end, slackSectors } = this.#quirks;
    const { endSector } = this.#layout;
    const bytes = encodeFooter(this.#footer);
    this.#writeBackup(file, bytes);
    if (slackSectors > 0) {
      const rubbish = Uint8Array.from(
        { length: slackSectors * 512 },
        () => this.#random.below(256),
      );
      file.writeAt(rubbish, endSector * 512);
    }
    const at = file.isBlockDevice ? file.sizeBytes() - 512 : (endSector + slackSectors) * 512;
    if (end === "torn") bytes.fill(0x20, 300);
    if (end === "lost" && !file.isBlockDevice) file.truncate(endSector * 512);
    else if (end === "lost") file.writeAt(new Uint8Array(512), at);
    else file.writeAt(end === "short" && !file.isBlockDevice ? bytes.slice(0, 511) : bytes, at);
    if (backup === "lost") file.writeAt(new Uint8Array(512), 0);
  }

  #writeBackup(file: StorageFile, footer: Uint8Array<ArrayBuffer>): void {
    const { backup } = this.#quirks;
    if (backup === "lost") return;
    const bytes = footer.slice();
    if (backup === "torn") bytes.fill(0xe5, 256);
    if (backup === "other") {
      const { timestamp, hidden } = this.#footer;
      const other = { ...this.#footer, timestamp: timestamp + 1, hidden: 1 - hidden };
      bytes.set(encodeFooter(other));
    }
    file.writeAt(bytes, 0);
  }
}

/** The ones' complement of the sum of all bytes; in batmaps of version 1.1 of signed ones. */
function mapChecksum(map: Uint8Array, { signed }: { signed: boolean }): number {
  const sum = map.reduce((sum, byte) => sum + (signed && byte > 127 ? byte - 256 : byte), 0);
  return ~sum >>> 0;
}

function bigEndian(text: string): Uint8Array {
  const bytes = new Uint8Array(512);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < Math.min(text.length, 256); i++) view.setUint16(i * 2, text.charCodeAt(i));
  return bytes;
}

function describe(
  { shape, blocks, parent, encryption }: SparseWish,
  { batmap, backup, end, slackSectors, headerOffsetField }: Quirks,
  { footer, layout }: { footer: Footer; layout: FileLayout },
): string {
  const { sectors, blockSectors, entries } = shape;
  const partial = blocks.filter((block) => !isFull(block, blockSectors)).length;
  const version = `${footer.creatorVersion >>> 16}.${footer.creatorVersion & 0xffff}`;
  const creator = `${JSON.stringify(footer.creatorApplication)} ${version}`;
  const parts = [
    `${
      parent === null ? "dynamic" : "differencing"
    }, ${sectors} sectors in blocks of ${blockSectors}`,
    `${entries} entries, ${blocks.length} blocks (${partial} partial)`,
    `by ${creator}`,
    layout.what,
    `batmap ${batmap}`,
  ];
  if (backup !== "same") parts.push(`backup footer ${backup}`);
  if (end !== "whole") parts.push(`footer ${end}`);
  if (slackSectors > 0) parts.push(`${slackSectors} sectors of slack`);
  if (headerOffsetField !== 0xffff_ffff_ffff_ffffn) parts.push("next structure 0xffffffff");
  if (footer.hidden !== 0) parts.push("hidden");
  if (footer.savedState !== 0) parts.push("saved state");
  if (encryption !== null) parts.push("encrypted");
  if (blocks.some(({ stale }) => stale.length > 0)) parts.push("stale data");
  for (const { what } of parent?.names.locators ?? []) parts.push(`locator ${what}`);
  return parts.join("; ");
}
