import { CBT_BLOCK_BYTES, nextBlock } from "../../cbt/cbt_log.ts";

const SECTOR_BYTES = 512;
const BLOCK_SECTORS = CBT_BLOCK_BYTES / SECTOR_BYTES;
const EXTENT_BYTES = 8;
/** qemu's NBD_STATE_DIRTY: the extent has changed. */
const STATE_CHANGED = 1;

/**
 * Writes the extents of changed and unchanged blocks of a range as a block status reply has them:
 * pairs of big-endian numbers, bytes and state.
 *
 * @param bits The log's bits; null when there is no log any more: then all may have changed.
 * @param count Sectors from `sector` on, fewer than 2^23.
 * @param most The most extents.
 * @returns The number of extents.
 */
export function putChangedExtents(
  view: DataView,
  at: number,
  bits: Uint8Array | null,
  sector: number,
  count: number,
  most: number,
): number {
  const end = sector + count;
  const blocks = Math.ceil(end / BLOCK_SECTORS);
  let extents = 0;
  for (let from = sector; from < end && extents < most; extents++) {
    const block = Math.floor(from / BLOCK_SECTORS);
    const isChanged = bits === null || nextBlock(bits, block, block + 1, true) === block;
    const next = bits === null ? blocks : nextBlock(bits, block, blocks, !isChanged);
    const to = Math.min(end, next * BLOCK_SECTORS);
    view.setUint32(at + extents * EXTENT_BYTES, (to - from) * SECTOR_BYTES, false);
    view.setUint32(at + extents * EXTENT_BYTES + 4, isChanged ? STATE_CHANGED : 0, false);
    from = to;
  }
  return extents;
}
