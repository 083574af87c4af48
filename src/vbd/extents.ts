import type { SlotTable } from "./slots.ts";

const BYTES_PER_EXTENT = 8;

/**
 * Notes one more run in the answer of a status request, which joins the last one if it is alike;
 * false when the answer is full.
 *
 * @param base Where the slot's memory begins, bytes.
 */
export function addExtent(
  slots: SlotTable,
  slot: number,
  sectors: number,
  isData: boolean,
  base: number,
): boolean {
  const { view } = slots.arena;
  const data = isData ? 1 : 0;
  const count = slots.extents[slot];
  const last = base + (count - 1) * BYTES_PER_EXTENT;
  if (count > 0 && view.getUint32(last + 4, true) === data) {
    view.setUint32(last, view.getUint32(last, true) + sectors, true);
  } else if (count === slots.mostExtents[slot]) return false;
  else {
    view.setUint32(last + BYTES_PER_EXTENT, sectors, true);
    view.setUint32(last + BYTES_PER_EXTENT + 4, data, true);
    slots.extents[slot] = count + 1;
  }
  slots.progress[slot] += sectors;
  return true;
}
