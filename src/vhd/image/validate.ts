import { allocatedBlocks, DD_BLK_UNUSED } from "../format/bat.ts";
import { VhdFormatError } from "./errors.ts";
import type { FooterSource } from "./footer_reader.ts";
import type { StorageFile } from "../../files/storage.ts";
import { type BlockShape, clobberedMetadata, metadataRegions } from "../format/layout.ts";
import { type Footer, HD_FOOTER_SIZE } from "../format/footer.ts";
import type { DynamicHeader } from "../format/header.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";

/**
 * The part of an image that its BAT is checked against. Every open dynamic or differencing image
 * has these fields.
 */
export interface BatInFile extends BlockShape {
  readonly path: string;
  readonly file: Pick<StorageFile, "sizeBytes">;
  readonly footer: Footer;
  readonly footerSource: FooterSource;
  readonly header: DynamicHeader | null;
  readonly endOfHeadersBytes: number;
  readonly bat: Uint32Array;
  readonly batOffsetBytes: number;
}

/** The kinds of faults of a BAT entry. */
export type BatFaultKind = "clobbers headers" | "clobbers footer" | "clobbers block";

/**
 * Called for each wrong entry of the BAT. Returns whether to go on.
 *
 * @param other The overlapped block, for `clobbers block`; else -1.
 */
export type BatFaultListener = (block: number, kind: BatFaultKind, other: number) => boolean;

/**
 * Reports every wrong entry of a BAT: entries that point into the metadata, past the end of the
 * file, or into another block. Each of millions of entries may be wrong, so a fault costs one call
 * and no object.
 *
 * @param options.checkOverlaps False skips the check for overlapping blocks, which sorts the table.
 */
export function eachBatFault(
  image: BatInFile,
  listener: BatFaultListener,
  { checkOverlaps = true }: { checkOverlaps?: boolean } = {},
): void {
  const { header, footer } = image;
  const regions = header === null ? [] : metadataRegions({ footer, header, batmap: null });
  const endOfHeadersSector = sectorsOf(image.endOfHeadersBytes);
  const endSector = lastUsableSector(image);
  const lengthSectors = image.footerSource === "backup"
    ? image.bitmapSectors
    : image.bitmapSectors + image.sectorsPerBlock;
  const { bat } = image;
  for (let block = 0; block < bat.length; block++) {
    const sector = bat[block];
    if (sector === DD_BLK_UNUSED) continue;
    const isLow = sector < endOfHeadersSector &&
      clobberedMetadata(regions, image, sector) !== null;
    if (!isLow && sector + lengthSectors <= endSector) continue;
    if (!listener(block, isLow ? "clobbers headers" : "clobbers footer", -1)) return;
  }
  if (checkOverlaps) eachOverlap(image, listener);
}

/**
 * The sector at which blocks must end. Without a footer at the end (after a crash, or while a
 * tapdisk serves the image) the file may end within the last block, but must hold its bitmap.
 */
function lastUsableSector(image: BatInFile): number {
  const sizeBytes = image.file.sizeBytes();
  if (image.footerSource === "backup") return Math.floor(sizeBytes / VHD_SECTOR_SIZE);
  return Math.floor(
    (sizeBytes + (image.footerSource === "short" ? 1 : 0) - HD_FOOTER_SIZE) /
      VHD_SECTOR_SIZE,
  );
}

/** Reports blocks that overlap the block in front of them, in file order. */
function eachOverlap(
  { bat, bitmapSectors, sectorsPerBlock }: BatInFile,
  listener: BatFaultListener,
): void {
  const lengthSectors = bitmapSectors + sectorsPerBlock;
  const places = sortedPlaces(bat);
  for (let i = 3; i < places.length; i += 2) {
    if (places[i] - places[i - 2] >= lengthSectors) continue;
    if (!listener(places[i - 1], "clobbers block", places[i - 3])) return;
  }
}

/** Pairs of block and sector for all allocated blocks, sorted by sector. */
function sortedPlaces(bat: Uint32Array): Uint32Array {
  const keys = new BigUint64Array(allocatedBlocks(bat));
  // The machine is little-endian, so the second number of a pair is the upper half of its sort key.
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
 * Checks the BAT against the file.
 *
 * @throws {VhdFormatError} for the first fault.
 */
export function validateBat(image: BatInFile): void {
  eachBatFault(image, (block, kind, other) => {
    const problem = kind === "clobbers headers"
      ? "makes a block that lies over the header, the block table or the backup footer"
      : kind === "clobbers footer"
      ? "makes a block that reaches past the end of the file"
      : `makes a block that overlaps block ${other}`;
    throw new VhdFormatError(image.path, {
      field: `bat[${block}]`,
      offsetBytes: image.batOffsetBytes + block * 4,
      value: `sector ${image.bat[block]}`,
      problem,
    });
  });
}
