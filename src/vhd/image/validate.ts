import { allocatedBlocks, DD_BLK_UNUSED } from "../format/bat.ts";
import { VhdFormatError } from "./errors.ts";
import type { FooterSource } from "./footer_reader.ts";
import type { StorageFile } from "../../files/storage.ts";
import { type BlockShape, clobberedMetadata, metadataRegions } from "../format/layout.ts";
import { type Footer, HD_FOOTER_SIZE } from "../format/footer.ts";
import type { DynamicHeader } from "../format/header.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";

/** What the BAT of an image is compared with. Every open image with blocks is one. */
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

/** What can be wrong with one entry of the BAT. */
export type BatFaultKind = "clobbers headers" | "clobbers footer" | "clobbers block";

/**
 * Called with one entry of the BAT that is wrong; returns whether to go on.
 *
 * @param other The block that it overlaps, for `clobbers block`; else -1.
 */
export type BatFaultListener = (block: number, kind: BatFaultKind, other: number) => boolean;

/**
 * Reports everything that is wrong with a BAT: entries that point into the metadata, past the end,
 * or to where another block lies. Each of millions of entries may be wrong, so a fault costs one call
 * and no object.
 *
 * @param options.checkOverlaps Off saves sorting the table.
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
 * Where blocks must end. Without a footer at the end (a crash, or a tapdisk at work) the file may
 * end within the last block, whose bitmap at least must be there.
 */
function lastUsableSector(image: BatInFile): number {
  const sizeBytes = image.file.sizeBytes();
  if (image.footerSource === "backup") return sectorsOf(sizeBytes);
  return Math.floor(
    (sizeBytes + (image.footerSource === "short" ? 1 : 0) - HD_FOOTER_SIZE) /
      VHD_SECTOR_SIZE,
  );
}

/** Reports blocks that begin before the one in front of them in the file ends, in that order. */
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
 * Compares the BAT with the file.
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
