import { countSet, setBit, testBit } from "../format/bitmap.ts";
import { isAllocated, readBitmap } from "../image/block.ts";
import type { VhdImage } from "../image/image.ts";

/** The statistics of an image of a chain, in sectors. */
export interface LayerStatistics {
  readonly path: string;
  /** Sectors of allocated blocks. */
  allocated: number;
  /** Written sectors. */
  written: number;
  /** Sectors that are written here but not in the parent. */
  notInParent: number;
  /** Sectors that are written here but in no ancestor. */
  notInAncestors: number;
}

/**
 * Counts the sectors of the images of a chain. All images are read together, one block at a time.
 *
 * @param images The last ancestor first.
 */
export function layerStatistics(images: readonly VhdImage[]): LayerStatistics[] {
  const statistics = images.map(({ path }) => ({
    path,
    allocated: 0,
    written: 0,
    notInParent: 0,
    notInAncestors: 0,
  }));
  const blocks = Math.max(...images.map((image) => image.blocks));
  for (let block = 0; block < blocks; block++) addBlock(images, block, statistics);
  return statistics;
}

function addBlock(images: readonly VhdImage[], block: number, statistics: LayerStatistics[]): void {
  let below: Uint8Array | null = null;
  let parent: Uint8Array | null = null;
  for (const [index, image] of images.entries()) {
    const held = block < image.blocks && isAllocated(image, block);
    const bits: Uint8Array | null = held ? readBitmap(image, block) : null;
    if (bits !== null) {
      const sectors = image.sectorsPerBlock;
      const entry = statistics[index];
      entry.allocated += sectors;
      entry.written += countSet(bits, sectors);
      entry.notInParent += countMissing(bits, parent, sectors);
      entry.notInAncestors += countMissing(bits, below, sectors);
      below = union(below, bits, sectors);
    }
    parent = bits;
  }
}

function countMissing(bits: Uint8Array, other: Uint8Array | null, sectors: number): number {
  if (other === null) return countSet(bits, sectors);
  let missing = 0;
  for (let i = 0; i < sectors; i++) if (testBit(bits, i) && !testBit(other, i)) missing++;
  return missing;
}

function union(a: Uint8Array | null, b: Uint8Array, sectors: number): Uint8Array {
  if (a === null) return b.slice();
  for (let i = 0; i < sectors; i++) if (testBit(b, i)) setBit(a, i);
  return a;
}
