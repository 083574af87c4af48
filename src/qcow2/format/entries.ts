/**
 * Entries of the L1 table, the L2 tables and the refcount table: 64 bits, of which bits 9 to 55 are an
 * offset in the file. Halves of 32 bits are used instead of BigInts, because the driver reads entries
 * for each request. Places are sectors of the file.
 *
 * @module
 */
import { SECTOR_BYTES } from "./units.ts";

/** Bit 63: the refcount of the cluster or table is exactly one. Of the upper half. */
export const OFLAG_COPIED_HIGH = 0x80000000;
/** Bit 62: a compressed cluster. Of the upper half. */
export const OFLAG_COMPRESSED_HIGH = 0x40000000;
/** Bit 0: the cluster reads as zeros. Of the lower half; not with subclusters. */
export const OFLAG_ZERO_LOW = 1;
/** Bits 32 to 55 of an offset, in the upper half. */
const OFFSET_MASK_HIGH = 0x00ffffff;
/** Sectors for each step of the upper half. */
const SECTORS_PER_HIGH = 2 ** 32 / SECTOR_BYTES;

/** Bits of an entry of the L1 or refcount table that must be 0. */
export const L1_RESERVED_HIGH = 0x7f000000;
export const L1_RESERVED_LOW = 0x1ff;
/** Bits of the L2 entry of a standard cluster that must be 0. */
export const L2_RESERVED_HIGH = 0x3f000000;
export const L2_RESERVED_LOW = 0x1fe;

/** Sector of the file that bits 9 to 55 of an entry name; 0 when there is none. */
export function sectorOfEntry(high: number, low: number): number {
  return (high & OFFSET_MASK_HIGH) * SECTORS_PER_HIGH + (low >>> 9);
}

/** The upper half of an entry for a sector of the file, without flags. */
export function highOfSector(sector: number): number {
  return Math.floor(sector / SECTORS_PER_HIGH);
}

/** The lower half of such an entry. */
export function lowOfSector(sector: number): number {
  return ((sector & (SECTORS_PER_HIGH - 1)) * SECTOR_BYTES) >>> 0;
}

/** Where a compressed cluster is. */
export interface CompressedPlace {
  /** Byte offset in the file at which the data begins. */
  readonly offsetBytes: number;
  /** Bytes from there to the end of the last sector that has some of it. */
  readonly lengthBytes: number;
}

/** Bits of the L2 entry of a compressed cluster that are the offset. */
function offsetBitsOf(clusterBits: number): number {
  return 62 - (clusterBits - 8);
}

/**
 * Byte offset of the data of a compressed cluster. Where clusters are small, the entry has bits beyond
 * 2^56, which is behind the end of all files.
 */
export function compressedOffset(high: number, low: number, clusterBits: number): number {
  const mask = 2 ** (offsetBitsOf(clusterBits) - 32) - 1;
  return (high & mask) * 2 ** 32 + (low >>> 0);
}

/** Whether bits of the offset are set that are beyond all files: where clusters are small, it has some. */
export function hasWrongOffset(high: number, clusterBits: number): boolean {
  const mask = 2 ** (offsetBitsOf(clusterBits) - 32) - 1;
  return (high & mask & ~OFFSET_MASK_HIGH) !== 0;
}

/** Sectors that a compressed cluster has some of, the one of its offset included. */
export function compressedSectors(high: number, clusterBits: number): number {
  const bits = offsetBitsOf(clusterBits);
  return ((high & 0x3fffffff) >>> (bits - 32)) + 1;
}

/**
 * The upper half of the entry of a compressed cluster; the lower one is that of the offset.
 *
 * @param sectors Sectors behind the one of the offset that have some of it.
 */
export function compressedHigh(offsetBytes: number, sectors: number, clusterBits: number): number {
  const shift = offsetBitsOf(clusterBits) - 32;
  return (OFLAG_COMPRESSED_HIGH | (sectors << shift) | Math.floor(offsetBytes / 2 ** 32)) >>> 0;
}

/** The place of a compressed cluster. */
export function compressedPlace(high: number, low: number, clusterBits: number): CompressedPlace {
  const offsetBytes = compressedOffset(high, low, clusterBits);
  const lengthBytes = compressedSectors(high, clusterBits) * SECTOR_BYTES -
    offsetBytes % SECTOR_BYTES;
  return { offsetBytes, lengthBytes };
}
