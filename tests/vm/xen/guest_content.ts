/**
 * The contents of guests' disks, before and after what the guests do.
 *
 * @module
 */

/** The contents of the guest's disks. */
export interface GuestContent {
  readonly before: Uint8Array<ArrayBuffer>;
  /** The contents after the guest's copies. */
  readonly after: Uint8Array<ArrayBuffer>;
}

const SECTOR = 512;
const PAGE = 4096;

/** Blocks that a guest copies within its disk; places and counts are in blocks. */
export interface GuestCopy {
  readonly from: number;
  readonly count: number;
  readonly to: number;
  readonly blockBytes: number;
}

/** The copies of guest.sh, which has the same numbers. */
export const GUEST_COPIES: readonly GuestCopy[] = [
  { from: 256, count: 768, to: 4480, blockBytes: PAGE },
  { from: 17, count: 1, to: 50001, blockBytes: SECTOR },
];

/** Random bytes in every other half MiB, so that images also have holes; and after these copies. */
export function guestContent(bytes: number, copies: readonly GuestCopy[]): GuestContent {
  const before = new Uint8Array(bytes);
  for (let at = 0; at < bytes; at += 1024 ** 2) {
    for (let part = 0; part < 8; part++) {
      const from = at + part * 65536;
      crypto.getRandomValues(before.subarray(from, from + 65536));
    }
  }
  const after = before.slice();
  for (const { from, count, to, blockBytes } of copies) {
    after.copyWithin(to * blockBytes, from * blockBytes, (from + count) * blockBytes);
  }
  return { before, after };
}
