/**
 * The ring that a guest's block device shares with a backend: layouts of Xen's io/blkif.h and
 * io/ring.h.
 *
 * @module
 */

/** How requests lie in a ring: `enum blkif_protocol` of blktap's xen_blkif.h. */
export const BlkifProtocol = {
  /** The layout of this machine, which is that of x86-64. */
  Native: 1,
  /** `x86_32-abi`: 64-bit numbers are aligned to 4 bytes. */
  X86_32: 2,
  /** `x86_64-abi`. */
  X86_64: 3,
} as const;
/** One of `BlkifProtocol`. */
export type BlkifProtocol = (typeof BlkifProtocol)[keyof typeof BlkifProtocol];

/** The most pages of a ring, as a power of two: eight pages. */
export const MOST_RING_PAGE_ORDER = 3;
