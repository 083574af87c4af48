import type { VhdChain } from "./chain.ts";
import { type Extent, heldExtents } from "./read.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";

/** A range of a disk, and the layer of the chain that it is read from. */
export interface ChainExtent extends Extent {
  /** 0 for the image itself, 1 for its parent, and so on; -1 when no layer holds the range. */
  readonly layer: number;
}

interface Walker {
  readonly extents: Iterator<Extent>;
  /** The current extent: the first one that ends behind the position of the walk. */
  start: number;
  end: number;
}

function advance(walker: Walker): void {
  const { done, value } = walker.extents.next();
  walker.start = done ? Infinity : value.sector;
  walker.end = done ? Infinity : value.sector + value.lengthSectors;
}

/**
 * Walks a disk from start to end. Each extent names the layer of the chain that it is read from. A
 * raw image at the bottom holds all sectors up to its end. Memory use is one block's bitmap per
 * layer.
 */
export function* chainExtents(chain: VhdChain): Generator<ChainExtent> {
  const sizeSectors = chain.images[0].sizeBytes / VHD_SECTOR_SIZE;
  // Layers below an image do not show behind its end.
  let lengthSectors = sizeSectors;
  const walkers: Walker[] = chain.images.map((image) => {
    lengthSectors = Math.min(lengthSectors, image.sizeBytes / VHD_SECTOR_SIZE);
    return { extents: heldExtents(image, { sector: 0, lengthSectors }), start: 0, end: 0 };
  });
  if (chain.raw !== null) {
    lengthSectors = Math.min(lengthSectors, chain.raw.sizeBytes / VHD_SECTOR_SIZE);
    const extent = { sector: 0, lengthSectors };
    walkers.push({ extents: [extent][Symbol.iterator](), start: 0, end: 0 });
  }
  let pending = null as ChainExtent | null;
  for (let sector = 0; sector < sizeSectors;) {
    let end = sizeSectors;
    let layer = -1;
    for (let i = 0; i < walkers.length && layer < 0; i++) {
      const walker = walkers[i];
      while (walker.end <= sector) advance(walker);
      if (walker.start <= sector) [layer, end] = [i, Math.min(end, walker.end)];
      else end = Math.min(end, walker.start);
    }
    const lengthSectors = end - sector;
    if (pending !== null && pending.layer === layer) {
      pending = { ...pending, lengthSectors: pending.lengthSectors + lengthSectors };
    } else {
      if (pending !== null) yield pending;
      pending = { sector, lengthSectors, layer };
    }
    sector = end;
  }
  if (pending !== null) yield pending;
}
