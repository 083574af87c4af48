import { allocatedBlocks, DD_BLK_UNUSED } from "../format/bat.ts";
import { VhdFormatError } from "./errors.ts";
import type { VhdImage } from "./image.ts";
import { HD_FOOTER_SIZE } from "../format/footer.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";

/** What is wrong with one entry of the BAT. */
export interface BatFault {
  readonly block: number;
  /** The sector that the entry holds. */
  readonly sector: number;
  readonly kind: "clobbers headers" | "clobbers footer" | "clobbers block";
  /** The block that it overlaps, for `clobbers block`. */
  readonly other?: number;
}

/**
 * Everything that is wrong with a BAT: entries that point into the metadata, past the end, or to
 * where another block lies. One at a time, as each of millions of entries may be wrong.
 *
 * @param options.checkOverlaps Off saves sorting the table.
 */
export function* batFaults(
  image: VhdImage,
  { checkOverlaps = true }: { checkOverlaps?: boolean } = {},
): Generator<BatFault> {
  const firstSector = sectorsOf(image.endOfHeadersBytes);
  const endSector = lastUsableSector(image);
  const lengthSectors = image.footerSource === "backup"
    ? image.bitmapSectors
    : image.bitmapSectors + image.sectorsPerBlock;
  const { bat } = image;
  for (let block = 0; block < bat.length; block++) {
    const sector = bat[block];
    if (sector === DD_BLK_UNUSED) continue;
    if (sector < firstSector) yield { block, sector, kind: "clobbers headers" };
    else if (sector + lengthSectors > endSector) yield { block, sector, kind: "clobbers footer" };
  }
  if (checkOverlaps) yield* overlaps(image);
}

/**
 * Where blocks must end. Without a footer at the end (a crash, or a tapdisk at work) the file may
 * end within the last block, whose bitmap at least must be there.
 */
function lastUsableSector(image: VhdImage): number {
  const sizeBytes = image.file.sizeBytes();
  if (image.footerSource === "backup") return sectorsOf(sizeBytes);
  return Math.floor(
    (sizeBytes + (image.footerSource === "short" ? 1 : 0) - HD_FOOTER_SIZE) /
      VHD_SECTOR_SIZE,
  );
}

/** Blocks that begin before the block in front of them in the file ends, in the file's order. */
function* overlaps({ bat, bitmapSectors, sectorsPerBlock }: VhdImage): Generator<BatFault> {
  const lengthSectors = bitmapSectors + sectorsPerBlock;
  const places = sortedPlaces(bat);
  for (let i = 3; i < places.length; i += 2) {
    const sector = places[i];
    if (sector - places[i - 2] >= lengthSectors) continue;
    yield { block: places[i - 1], sector, kind: "clobbers block", other: places[i - 3] };
  }
}

/** Pairs of block and sector for all allocated blocks, in the order of the sectors. */
function sortedPlaces(bat: Uint32Array): Uint32Array {
  const keys = new BigUint64Array(allocatedBlocks(bat));
  // The machine is little-endian: the upper half of a key, by which it is sorted first, is second.
  const pairs = new Uint32Array(keys.buffer);
  let end = 0;
  for (let block = 0; block < bat.length; block++) {
    if (bat[block] === DD_BLK_UNUSED) continue;
    pairs[end++] = block;
    pairs[end++] = bat[block];
  }
  keys.sort();
  return pairs;
}

/**
 * Holds the BAT against the file.
 *
 * @throws {VhdFormatError} for the first fault.
 */
export function validateBat(image: VhdImage): void {
  const fault = batFaults(image).next().value;
  if (!fault) return;
  const { block, sector, kind, other } = fault;
  const problem = kind === "clobbers headers"
    ? "points into the metadata at the start of the file"
    : kind === "clobbers footer"
    ? "makes a block that reaches past the end of the file"
    : `makes a block that overlaps block ${other}`;
  throw new VhdFormatError(image.path, {
    field: `bat[${block}]`,
    offsetBytes: image.batOffsetBytes + block * 4,
    value: `sector ${sector}`,
    problem,
  });
}
