import { DD_BLK_UNUSED } from "../format/bat.ts";
import { batmapChecksum, encodeBatmapHeader } from "../format/batmap.ts";
import { clearBit, setBit, testBit } from "../format/bitmap.ts";
import type { DynamicHeader } from "../format/header.ts";
import { batmapHeaderOffset, newBatmapHeader } from "../format/layout.ts";
import type { Batmap, VhdImage } from "./image.ts";

/**
 * Sets or clears the bit of a block in the batmap in memory. `full`: all of the block's sectors are
 * present.
 */
export function noteFull({ batmap }: VhdImage, block: number, full: boolean): void {
  if (batmap === null || block >= batmap.bits.length * 8) return;
  if (testBit(batmap.bits, block) === full) return;
  if (full) setBit(batmap.bits, block);
  else clearBit(batmap.bits, block);
  batmap.dirty = true;
}

/**
 * Clears the batmap's bits of blocks that are not allocated, in memory. Returns the number of bits.
 */
export function clearImpossible({ batmap, bat }: VhdImage): number {
  if (batmap === null) return 0;
  let cleared = 0;
  for (let block = 0; block < batmap.bits.length * 8; block++) {
    const allocated = block < bat.length && bat[block] !== DD_BLK_UNUSED;
    if (allocated || !testBit(batmap.bits, block)) continue;
    clearBit(batmap.bits, block);
    cleared++;
  }
  if (cleared > 0) batmap.dirty = true;
  return cleared;
}

/**
 * An empty batmap, directly behind the BAT.
 *
 * @param lengthBytes The length of the map in memory, which is also the length that is written.
 */
export function emptyBatmap(header: DynamicHeader, lengthBytes: number): Batmap {
  const batmapHeader = newBatmapHeader(header);
  return {
    header: batmapHeader,
    dirty: true,
    bits: new Uint8Array(lengthBytes),
    headerOffsetBytes: batmapHeaderOffset(header),
    offsetBytes: Number(batmapHeader.batmapOffset),
  };
}

/**
 * Writes the map and its header with the new checksum. When the two are adjacent, as in all images
 * that we make, they are written in one piece, so that a crash between them is unlikely. A torn map
 * has a wrong checksum and counts as empty. The bitmaps that the map repeats must be durable.
 */
export function writeBatmap({ batmap, file }: Pick<VhdImage, "batmap" | "file">): void {
  if (batmap === null || batmap.bits.length === 0) return;
  const { header, bits, headerOffsetBytes, offsetBytes } = batmap;
  header.checksum = batmapChecksum(bits, header.batmapVersion);
  const headerBytes = encodeBatmapHeader(header);
  if (headerOffsetBytes + headerBytes.length === offsetBytes) {
    const both = new Uint8Array(headerBytes.length + bits.length);
    both.set(headerBytes);
    both.set(bits, headerBytes.length);
    file.writeAt(both, headerOffsetBytes);
  } else {
    file.writeAt(bits, offsetBytes);
    file.writeAt(headerBytes, headerOffsetBytes);
  }
  batmap.dirty = false;
}
