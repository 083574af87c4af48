/**
 * What lies where in the files of a chain, and what a disk that damages a sector of a file damages
 * with it.
 *
 * @module
 */
import type { Storage } from "../../../src/files/storage.ts";
import { DD_BLK_UNUSED } from "../../../src/vhd/format/bat.ts";
import { batmapBytes } from "../../../src/vhd/format/batmap.ts";
import { batmapHeaderOffset } from "../../../src/vhd/format/layout.ts";
import { locatorSpaceBytes, PLAT_CODE_NONE } from "../../../src/vhd/format/locator.ts";
import { openVhd, type VhdImage } from "../../../src/vhd/image/image.ts";
import type { MadeImage } from "../images/chain.ts";

/** The kinds of structures in a file. */
export type PlaceKind =
  | "backup footer"
  | "footer"
  | "header"
  | "table"
  | "batmap header"
  | "batmap"
  | "locator"
  | "bitmap"
  | "data";

/** A structure, or a part of one. */
export interface Place {
  readonly path: string;
  readonly kind: PlaceKind;
  /** Sectors of the file. */
  readonly sector: number;
  readonly count: number;
  /** The sectors of the disk that depend on the place: all of them on each of its sectors. */
  readonly disk: readonly { readonly sector: number; readonly count: number }[];
  /** Of a sector of the BAT: the entries of blocks that are there. */
  readonly entries?: readonly number[];
}

const SECTOR_BYTES = 512;
const ENTRIES_IN_SECTOR = 128;
const BITS_IN_SECTOR = 4096;

/** The structures of the files of a chain that is in order. */
export function placesOf(storage: Storage, images: readonly MadeImage[]): Place[] {
  return images.flatMap(({ path, kind, content }) => {
    if (kind === "raw") return [dataOf(path, 0, { sector: 0, count: content.sectors })];
    const image = openVhd(path, { storage });
    try {
      return image.header === null ? fixedPlaces(image) : sparsePlaces(image);
    } finally {
      image.close();
    }
  });
}

function dataOf(
  path: string,
  sector: number,
  disk: { readonly sector: number; readonly count: number },
): Place {
  return { path, kind: "data", sector, count: disk.count, disk: [disk] };
}

function fixedPlaces({ path, sizeBytes, file }: VhdImage): Place[] {
  const sectors = sizeBytes / SECTOR_BYTES;
  const footer = Math.ceil(file.sizeBytes() / SECTOR_BYTES) - 1;
  return [
    dataOf(path, 0, { sector: 0, count: sectors }),
    { path, kind: "footer", sector: footer, count: 1, disk: [] },
  ];
}

function sparsePlaces(image: VhdImage): Place[] {
  const { path, footer, header, file, batmap, bat, sectorsPerBlock, bitmapSectors } = image;
  if (header === null) return [];
  const place = (
    kind: PlaceKind,
    offsetBytes: number,
    lengthBytes: number,
    disk: Place["disk"] = [],
  ): Place => {
    const sector = Math.floor(offsetBytes / SECTOR_BYTES);
    const end = Math.ceil((offsetBytes + lengthBytes) / SECTOR_BYTES);
    return { path, kind, sector, count: end - sector, disk };
  };
  const places = [
    place("backup footer", 0, SECTOR_BYTES),
    place("header", Number(footer.dataOffset), 2 * SECTOR_BYTES),
    place("footer", (Math.ceil(file.sizeBytes() / SECTOR_BYTES) - 1) * SECTOR_BYTES, SECTOR_BYTES),
  ];
  for (let first = 0; first < bat.length; first += ENTRIES_IN_SECTOR) {
    const disk = { sector: first * sectorsPerBlock, count: ENTRIES_IN_SECTOR * sectorsPerBlock };
    const table = place("table", image.batOffsetBytes + first * 4, SECTOR_BYTES, [disk]);
    const entries = [...bat.subarray(first, first + ENTRIES_IN_SECTOR).entries()]
      .filter(([, at]) => at !== DD_BLK_UNUSED).map(([index]) => index);
    places.push({ ...table, entries });
  }
  if (batmap !== null && batmap.bits.length > 0) {
    const mapBytes = batmapBytes(image.sizeBytes, image.blockSizeBytes);
    places.push(place("batmap header", batmapHeaderOffset(header), SECTOR_BYTES));
    places.push(place("batmap", batmap.offsetBytes, mapBytes));
  }
  for (const locator of header.locators) {
    if (locator.code === PLAT_CODE_NONE) continue;
    const lengthBytes = Math.max(locatorSpaceBytes(locator), locator.dataLength);
    places.push(place("locator", Number(locator.dataOffset), lengthBytes));
  }
  for (const [block, at] of bat.entries()) {
    if (at === DD_BLK_UNUSED) continue;
    const first = block * sectorsPerBlock;
    for (let i = 0; i < bitmapSectors; i++) {
      const start = first + i * BITS_IN_SECTOR;
      const count = Math.min(BITS_IN_SECTOR, first + sectorsPerBlock - start);
      const disk = [{ sector: start, count }];
      places.push({ path, kind: "bitmap", sector: at + i, count: 1, disk });
    }
    places.push(dataOf(path, at + bitmapSectors, { sector: first, count: sectorsPerBlock }));
  }
  return places;
}

/** A range of sectors of a file that do not hold what was written to them. */
export interface Hit {
  readonly what: string;
  readonly path: string;
  readonly sector: number;
  readonly count: number;
  /** The bit that was flipped, counted from the first sector; undefined where more is wrong. */
  readonly bit?: number;
  /**
   * Whether a checksum must tell of it in the end: not where an old, whole structure is still there,
   * or where a tapdisk wrote it anew.
   */
  readonly mustBeFound: boolean;
}

/** What hits damage. */
export interface Damage {
  /** Sectors of the disk that may hold anything. */
  readonly sectors: Set<number>;
  /** The structures that were hit. */
  readonly places: readonly Place[];
  /** Whether opening the chain may be refused. */
  readonly mayBeRefused: boolean;
}

/** Structures that an image has only once, so that it cannot be opened without them. */
const ESSENTIAL: readonly PlaceKind[] = ["header", "table", "locator"];

/** What hits damage, in a chain with these places. */
export function damageOf(hits: readonly Hit[], places: readonly Place[]): Damage {
  const sectors = new Set<number>();
  const damaged = new Set<Place>();
  for (const hit of hits) {
    for (const place of places) {
      if (place.path !== hit.path) continue;
      const from = Math.max(hit.sector, place.sector);
      const end = Math.min(hit.sector + hit.count, place.sector + place.count);
      if (from >= end) continue;
      damaged.add(place);
      for (const { sector, count } of place.disk) {
        // Data has a sector of the disk in each sector; other structures are needed as a whole.
        const [first, last] = place.kind === "data"
          ? [sector + from - place.sector, sector + end - place.sector]
          : [sector, sector + count];
        if (place.kind === "table" && hit.bit !== undefined) {
          // One entry is wrong: the other blocks of the sector are where they were.
          const blockSectors = count / ENTRIES_IN_SECTOR;
          const block = sector + Math.floor(hit.bit / 32) * blockSectors;
          for (let at = block; at < block + blockSectors; at++) sectors.add(at);
        } else for (let at = first; at < last; at++) sectors.add(at);
      }
    }
  }
  const all = [...damaged];
  const footers = (path: string): PlaceKind[] =>
    all.filter((place) => place.path === path && place.kind.endsWith("footer"))
      .map(({ kind }) => kind);
  const mayBeRefused = all.some(({ kind, path }) =>
    ESSENTIAL.includes(kind) || (kind === "footer" && isLastFooter(places, path, footers(path)))
  );
  return { sectors, places: all, mayBeRefused };
}

function isLastFooter(places: readonly Place[], path: string, hit: readonly PlaceKind[]): boolean {
  const has = places.some((place) => place.path === path && place.kind === "backup footer");
  return !has || hit.includes("backup footer");
}
