/**
 * Reference counts in a refcount block: numbers of 1 to 64 bits, one after the other. Counts that are
 * narrower than a byte begin with the least significant bits of it.
 *
 * @module
 */

/** The largest count of a width that is told apart from larger ones. */
const MOST_EXACT = Number.MAX_SAFE_INTEGER;

/** The largest reference count of a width. */
export function maxRefcount(bits: number): number {
  return bits >= 64 ? MOST_EXACT : 2 ** bits - 1;
}

/** The reference count at an index of a refcount block that begins at a byte of `view`. */
export function refcountAt(
  view: DataView,
  startBytes: number,
  index: number,
  bits: number,
): number {
  if (bits === 16) return view.getUint16(startBytes + 2 * index, false);
  if (bits < 8) {
    const at = index * bits;
    return (view.getUint8(startBytes + (at >>> 3)) >>> (at & 7)) & ((1 << bits) - 1);
  }
  if (bits === 8) return view.getUint8(startBytes + index);
  if (bits === 32) return view.getUint32(startBytes + 4 * index, false);
  const at = startBytes + 8 * index;
  return Math.min(view.getUint32(at, false) * 2 ** 32 + view.getUint32(at + 4, false), MOST_EXACT);
}

/** Sets the reference count at an index of a refcount block. */
export function setRefcountAt(
  view: DataView,
  startBytes: number,
  index: number,
  bits: number,
  count: number,
): void {
  if (bits === 16) return view.setUint16(startBytes + 2 * index, count, false);
  if (bits < 8) {
    const at = index * bits;
    const byte = startBytes + (at >>> 3);
    const mask = ((1 << bits) - 1) << (at & 7);
    return view.setUint8(byte, (view.getUint8(byte) & ~mask) | (count << (at & 7)));
  }
  if (bits === 8) return view.setUint8(startBytes + index, count);
  if (bits === 32) return view.setUint32(startBytes + 4 * index, count, false);
  const at = startBytes + 8 * index;
  view.setUint32(at, Math.floor(count / 2 ** 32), false);
  view.setUint32(at + 4, count % 2 ** 32, false);
}
