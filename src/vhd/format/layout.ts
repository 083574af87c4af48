import { batBytes, DD_BLK_UNUSED } from "./bat.ts";
import {
  BATMAP_HEADER_SIZE,
  type BatmapHeader,
  VHD_BATMAP_COOKIE,
  VHD_BATMAP_CURRENT_VERSION,
} from "./batmap.ts";
import { type Footer, HD_FOOTER_SIZE } from "./footer.ts";
import { DD_HEADER_SIZE, type DynamicHeader } from "./header.ts";
import { locatorSpaceBytes, PLAT_CODE_NONE } from "./locator.ts";
import { paddedBytes, sectorsOf, VHD_SECTOR_SIZE } from "./units.ts";

/** The data of a block starts on a multiple of this many sectors: 4 KiB, a page. */
const DATA_ALIGNMENT_SECTORS = 8;

/** Sectors of data in a block. */
export function sectorsPerBlock(blockSizeBytes: number): number {
  return blockSizeBytes / VHD_SECTOR_SIZE;
}

/** Sectors in a block's bitmap: one bit a sector of data, padded to whole sectors. */
export function bitmapSectors(sectorsInBlock: number): number {
  return Math.max(1, sectorsOf(sectorsInBlock / 8));
}

/** The number of blocks of a disk of `sizeBytes`. The last one may be incomplete. */
export function blocksOf(sizeBytes: number, blockSizeBytes: number): number {
  return Math.ceil(sizeBytes / blockSizeBytes);
}

/** Byte offset of the batmap's header: behind the whole BAT. */
export function batmapHeaderOffset(header: DynamicHeader): number {
  return Number(header.tableOffset) + batBytes(header.maxBatEntries);
}

/** The header of an empty batmap in our layout: directly behind the BAT, followed by the map. */
export function newBatmapHeader(header: DynamicHeader): BatmapHeader {
  const mapBytes = paddedBytes(Math.ceil(header.maxBatEntries / 8));
  return {
    cookie: VHD_BATMAP_COOKIE,
    batmapOffset: BigInt(batmapHeaderOffset(header) + BATMAP_HEADER_SIZE),
    batmapSectors: mapBytes / VHD_SECTOR_SIZE,
    batmapVersion: VHD_BATMAP_CURRENT_VERSION,
    checksum: 0,
    marker: 0,
    keyhash: { cookie: 0, nonce: new Uint8Array(32), hash: new Uint8Array(32) },
  };
}

/** The shape of a block in the file: its bitmap, then its data. */
export interface BlockShape {
  readonly bitmapSectors: number;
  readonly sectorsPerBlock: number;
}

/** The first sector behind a block that begins at `sector`. */
export function blockEnd({ bitmapSectors, sectorsPerBlock }: BlockShape, sector: number): number {
  return sector + bitmapSectors + sectorsPerBlock;
}

/**
 * The sector at which the next block starts, with its bitmap. A gap in front of it puts the block's
 * data on a 4 KiB boundary, whatever the alignment of the blocks before. -1 when the block would
 * end beyond the reach of a BAT entry.
 *
 * All writers use this function for the place of a new block.
 *
 * @param endSector The first sector behind all metadata and blocks; see
 * {@linkcode endOfDataSector}.
 */
export function nextBlockSector(shape: BlockShape, endSector: number): number {
  const past = (endSector + shape.bitmapSectors) % DATA_ALIGNMENT_SECTORS;
  const sector = endSector + (past === 0 ? 0 : DATA_ALIGNMENT_SECTORS - past);
  return blockEnd(shape, sector) < DD_BLK_UNUSED ? sector : -1;
}

/** The number of blocks that can be added behind `endSector` within the range of sector numbers. */
export function blocksThatFit(shape: BlockShape, endSector: number): number {
  const first = nextBlockSector(shape, endSector);
  if (first < 0) return 0;
  const length = shape.bitmapSectors + shape.sectorsPerBlock;
  const stride = Math.ceil(length / DATA_ALIGNMENT_SECTORS) * DATA_ALIGNMENT_SECTORS;
  return 1 + Math.floor((DD_BLK_UNUSED - 1 - first - length) / stride);
}

/** The sectors of a structure of the metadata in the file. */
export interface Region {
  readonly name: "backup footer" | "header" | "BAT" | "batmap" | "parent locator";
  readonly startSector: number;
  /** The first sector behind it. */
  readonly endSector: number;
  /** Whether the image is unusable without it. Other structures may be missing or wrong. */
  readonly essential: boolean;
}

function region(name: Region["name"], startBytes: number, lengthBytes: number): Region {
  return {
    name,
    startSector: Math.floor(startBytes / VHD_SECTOR_SIZE),
    endSector: sectorsOf(startBytes + lengthBytes),
    essential: name !== "batmap" && name !== "parent locator",
  };
}

/**
 * The metadata of a dynamic or differencing image, without the BAT's entries and the footer at the
 * end.
 */
export interface Metadata {
  readonly footer: Footer;
  readonly header: DynamicHeader;
  readonly batmap: BatmapHeader | null;
}

/**
 * The regions of all metadata, in whole sectors. The format allows each structure anywhere in the
 * file, also behind the blocks.
 */
export function metadataRegions({ footer, header, batmap }: Metadata): Region[] {
  const regions = [
    region("backup footer", 0, HD_FOOTER_SIZE),
    region("header", Number(footer.dataOffset), DD_HEADER_SIZE),
    region("BAT", Number(header.tableOffset), batBytes(header.maxBatEntries)),
  ];
  if (batmap !== null) {
    regions.push(
      region("batmap", batmapHeaderOffset(header), BATMAP_HEADER_SIZE),
      region("batmap", Number(batmap.batmapOffset), batmap.batmapSectors * VHD_SECTOR_SIZE),
    );
  }
  for (const locator of header.locators) {
    if (locator.code === PLAT_CODE_NONE) continue;
    const lengthBytes = Math.max(locatorSpaceBytes(locator), locator.dataLength);
    regions.push(region("parent locator", Number(locator.dataOffset), lengthBytes));
  }
  return regions;
}

/** Whether two ranges have a sector in common. */
function overlap(a: Omit<Region, "name" | "essential">, startSector: number, end: number): boolean {
  return a.startSector < end && startSector < a.endSector;
}

/**
 * Whether the place of a batmap and its header overlaps no other structure. The batmap may exist or
 * be planned.
 *
 * @param spareLocators Whether parent locators count. Their places are often wrong, so a locator
 * that points into an existing batmap does not disable it.
 */
export function isBatmapPlaceFree(
  metadata: Metadata & { readonly batmap: BatmapHeader },
  { shape, bat, spareLocators }: {
    shape: BlockShape;
    bat: Uint32Array;
    spareLocators: boolean;
  },
): boolean {
  const regions = metadataRegions(metadata);
  const own = regions.filter(({ name }) => name === "batmap");
  const others = regions.filter(({ name, essential }) =>
    essential || (spareLocators && name === "parent locator")
  );
  const inTheWay = (start: number, end: number): boolean =>
    own.some((region) => overlap(region, start, end));
  if (others.some(({ startSector, endSector }) => inTheWay(startSector, endSector))) return false;
  const last = Math.max(...own.map(({ endSector }) => endSector));
  for (let block = 0; block < bat.length; block++) {
    const sector = bat[block];
    if (sector < last && inTheWay(sector, blockEnd(shape, sector))) return false;
  }
  return true;
}

/** The essential structure that a block at `sector` would overlap; null without one. */
export function clobberedMetadata(
  regions: readonly Region[],
  shape: BlockShape,
  sector: number,
): Region | null {
  const end = blockEnd(shape, sector);
  for (const region of regions) {
    if (region.essential && overlap(region, sector, end)) return region;
  }
  return null;
}

/** The first byte behind all metadata except the footer at the end, on a sector boundary. */
export function endOfHeaders(metadata: Metadata): number {
  const ends = metadataRegions(metadata).map(({ endSector }) => endSector);
  return Math.max(...ends) * VHD_SECTOR_SIZE;
}

/** The first sector behind all blocks; 0 without a block. */
export function endOfBlocksSector(data: BlockShape & { readonly bat: Uint32Array }): number {
  const { bat } = data;
  let lastBlock = -1;
  for (let i = 0; i < bat.length; i++) {
    if (bat[i] !== DD_BLK_UNUSED && bat[i] > lastBlock) lastBlock = bat[i];
  }
  return lastBlock < 0 ? 0 : blockEnd(data, lastBlock);
}

/**
 * The first sector behind all metadata and blocks: the place of the footer in a file, and the
 * earliest start of the next block. It may be behind the end of a file without a batmap, as the
 * place of one is kept free.
 */
export function endOfDataSector(
  data: BlockShape & { readonly endOfHeadersBytes: number; readonly bat: Uint32Array },
): number {
  return Math.max(sectorsOf(data.endOfHeadersBytes), endOfBlocksSector(data));
}
