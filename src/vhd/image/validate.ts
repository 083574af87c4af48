import { DD_BLK_UNUSED } from "../format/bat.ts";
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
 * where another block lies. Blocks behind the end of the virtual disk count too.
 *
 * @param options.checkOverlaps Off saves sorting the table.
 */
export function batFaults(
  image: VhdImage,
  { checkOverlaps = true }: { checkOverlaps?: boolean } = {},
): BatFault[] {
  const faults: BatFault[] = [];
  const firstSector = sectorsOf(image.endOfHeadersBytes);
  const endSector = lastUsableSector(image);
  const lengthSectors = image.footerSource === "backup"
    ? image.bitmapSectors
    : image.bitmapSectors + image.sectorsPerBlock;
  const { bat } = image;
  for (let block = 0; block < bat.length; block++) {
    const sector = bat[block];
    if (sector === DD_BLK_UNUSED) continue;
    if (sector < firstSector) faults.push({ block, sector, kind: "clobbers headers" });
    else if (sector + lengthSectors > endSector) {
      faults.push({ block, sector, kind: "clobbers footer" });
    }
  }
  if (checkOverlaps) addOverlaps(image, faults);
  return faults;
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

function addOverlaps(image: VhdImage, faults: BatFault[]): void {
  const { bat } = image;
  const lengthSectors = image.bitmapSectors + image.sectorsPerBlock;
  if (!anyOverlap(bat, lengthSectors)) return;
  const blocks: number[] = [];
  for (let block = 0; block < bat.length; block++) {
    if (bat[block] !== DD_BLK_UNUSED) blocks.push(block);
  }
  blocks.sort((a, b) => bat[a] - bat[b] || a - b);
  for (let i = 1; i < blocks.length; i++) {
    const [other, block] = [blocks[i - 1], blocks[i]];
    if (bat[block] - bat[other] >= lengthSectors) continue;
    faults.push({ block, sector: bat[block], kind: "clobbers block", other });
  }
}

function anyOverlap(bat: Uint32Array, lengthSectors: number): boolean {
  const sorted = bat.slice().sort();
  for (let i = 1; i < sorted.length && sorted[i] !== DD_BLK_UNUSED; i++) {
    if (sorted[i] - sorted[i - 1] < lengthSectors) return true;
  }
  return false;
}

/**
 * Holds the BAT against the file.
 *
 * @throws {VhdFormatError} for the first fault.
 */
export function validateBat(image: VhdImage): void {
  const [fault] = batFaults(image);
  if (fault === undefined) return;
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
