/**
 * `src/vhd/format`: the VHD format as bytes. The functions decode and encode structures, compute
 * checksums, and define the layout of an image and the order of writes.
 *
 * All functions are pure: bytes in, bytes out. This folder must not open, read or write a file, and
 * it must not decide the effect of a wrong field on an image; `src/vhd/image` does that.
 *
 * This file has the units of the format.
 *
 * @module
 */

/** Bytes in a sector. */
export const VHD_SECTOR_SIZE = 512;
/** Bytes in a block of the images that we create. Other programs may use other sizes. */
export const VHD_BLOCK_SIZE = 2 * 1024 * 1024;
/** The largest virtual disk that the format allows: 2040 GiB, in bytes. */
export const VHD_MAX_SIZE = 2040 * 1024 * 1024 * 1024;

/** The number of sectors that hold `bytes`. */
export function sectorsOf(bytes: number): number {
  return Math.ceil(bytes / VHD_SECTOR_SIZE);
}

/** `bytes` rounded up to whole sectors, at least one, as metadata is stored. */
export function paddedBytes(bytes: number): number {
  return Math.max(1, sectorsOf(bytes)) * VHD_SECTOR_SIZE;
}
