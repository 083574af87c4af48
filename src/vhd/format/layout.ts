import { batBytes, DD_BLK_UNUSED } from "./bat.ts";
import { BATMAP_HEADER_SIZE, type BatmapHeader } from "./batmap.ts";
import type { Footer } from "./footer.ts";
import { DD_HEADER_SIZE, type DynamicHeader } from "./header.ts";
import { locatorSpaceBytes, PLAT_CODE_NONE } from "./locator.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "./units.ts";

/** Data of a block starts on a multiple of this many sectors: 4 KiB, a page. */
export const DATA_ALIGNMENT_SECTORS = 8;

/** Sectors of data in a block. */
export function sectorsPerBlock(blockSizeBytes: number): number {
  return blockSizeBytes / VHD_SECTOR_SIZE;
}

/** Sectors in a block's bitmap: one bit a sector of data, padded to whole sectors. */
export function bitmapSectors(sectorsInBlock: number): number {
  return Math.max(1, sectorsOf(sectorsInBlock / 8));
}

/** Blocks that a disk of `sizeBytes` has, the last one perhaps not in full. */
export function blocksOf(sizeBytes: number, blockSizeBytes: number): number {
  return Math.ceil(sizeBytes / blockSizeBytes);
}

/** Byte offset of the batmap's header: behind the whole BAT. */
export function batmapHeaderOffset(header: DynamicHeader): number {
  return Number(header.tableOffset) + batBytes(header.maxBatEntries);
}

/**
 * The sector at which the next block that is allocated begins, with its bitmap. There is as much of
 * a gap before it as it takes for its data to start on a 4 KiB boundary, whatever the alignment of
 * the blocks before.
 *
 * @param endSector The first sector behind all metadata and blocks; see {@linkcode endOfData}.
 */
export function nextBlockSector(
  { endSector, bitmapSectors }: { endSector: number; bitmapSectors: number },
): number {
  const dataSector = endSector + bitmapSectors;
  const past = dataSector % DATA_ALIGNMENT_SECTORS;
  return endSector + (past === 0 ? 0 : DATA_ALIGNMENT_SECTORS - past);
}

/**
 * The first byte behind all metadata at the front of a dynamic or differencing image: backup footer,
 * header, BAT, batmap and parent locators.
 */
export function endOfHeaders(
  { footer, header, batmap }: {
    footer: Footer;
    header: DynamicHeader;
    batmap: BatmapHeader | null;
  },
): number {
  let end = Number(footer.dataOffset) + DD_HEADER_SIZE;
  end = Math.max(end, batmapHeaderOffset(header));
  if (batmap !== null) {
    end = Math.max(end, batmapHeaderOffset(header) + BATMAP_HEADER_SIZE);
    end = Math.max(end, Number(batmap.batmapOffset) + batmap.batmapSectors * VHD_SECTOR_SIZE);
  }
  for (const locator of header.locators) {
    if (locator.code === PLAT_CODE_NONE) continue;
    end = Math.max(end, Number(locator.dataOffset) + locatorSpaceBytes(locator));
  }
  return end;
}

/**
 * The first sector behind all metadata and all blocks: where the footer of an image in a file
 * belongs, and from where the next block is allocated.
 */
export function endOfDataSector(
  { endOfHeadersBytes, bat, sectorsPerBlock, bitmapSectors }: {
    endOfHeadersBytes: number;
    bat: Uint32Array;
    sectorsPerBlock: number;
    bitmapSectors: number;
  },
): number {
  let lastBlock = -1;
  for (let i = 0; i < bat.length; i++) {
    if (bat[i] !== DD_BLK_UNUSED && bat[i] > lastBlock) lastBlock = bat[i];
  }
  const endOfHeadersSector = Math.floor(endOfHeadersBytes / VHD_SECTOR_SIZE);
  if (lastBlock < 0) return endOfHeadersSector;
  return Math.max(endOfHeadersSector, lastBlock + sectorsPerBlock + bitmapSectors);
}
