/**
 * The units that the VHD format counts in.
 *
 * This folder turns bytes into meaning and back, and does the offline work on image files. It must
 * not know tapdisk, its event loop or its drivers, and it must not print.
 */

/** Bytes in a sector. */
export const VHD_SECTOR_SIZE = 512;
/** log2 of {@linkcode VHD_SECTOR_SIZE}. */
export const VHD_SECTOR_SHIFT = 9;
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
