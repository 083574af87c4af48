/**
 * `src/vhd/format`: the VHD format as bytes. Functions here turn bytes into fields and back, compute
 * checksums, and say where the parts of an image lie and in which order they may be written.
 *
 * All of it is pure: it gets bytes and returns bytes. It must not open, read or write a file, and it
 * must not decide what a wrong field means for an image; `src/vhd/image` does that.
 *
 * This file has the units that the format counts in.
 *
 * @module
 */

/** Bytes in a sector. */
export const VHD_SECTOR_SIZE = 512;
/** Bytes in a block of the images that we create. Other makers may use other sizes. */
export const VHD_BLOCK_SIZE = 2 * 1024 * 1024;
/** The largest virtual disk that the format allows: 2040 GiB, in bytes. */
export const VHD_MAX_SIZE = 2040 * 1024 * 1024 * 1024;

/** How many sectors it takes to hold `bytes`. */
export function sectorsOf(bytes: number): number {
  return Math.ceil(bytes / VHD_SECTOR_SIZE);
}

/** `bytes` rounded up to whole sectors, and at least one: how metadata is stored. */
export function paddedBytes(bytes: number): number {
  return Math.max(1, sectorsOf(bytes)) * VHD_SECTOR_SIZE;
}
