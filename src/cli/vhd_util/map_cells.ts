import type { ChainExtent } from "../../vhd/image/extents.ts";

/** A disk divided into equal cells, and what each cell holds. */
export interface CellMap {
  readonly columns: number;
  readonly rows: number;
  readonly cellSectors: number;
  /** The layer that most of a cell's data is read from; -1 for a cell without data. */
  readonly layers: Int16Array;
  /** How much of a cell holds data, from 0 to 1. */
  readonly fullness: Float32Array;
  /** Sectors that are read from each layer. */
  readonly sectorsOfLayer: readonly number[];
}

/**
 * Counts the extents of a disk into cells, read from left to right and from top to bottom.
 *
 * @param most The largest number of columns and rows; a small disk has fewer rows.
 */
export function countCells(
  extents: Iterable<ChainExtent>,
  { sizeSectors, layerCount, columns, rows }: {
    sizeSectors: number;
    layerCount: number;
    columns: number;
    rows: number;
  },
): CellMap {
  // A power of two, at least 4 KiB, so that the edges of blocks that large are edges of cells.
  const atLeast = Math.max(8, Math.ceil(sizeSectors / (columns * rows)));
  const cellSectors = 2 ** Math.ceil(Math.log2(atLeast));
  const cells = Math.ceil(sizeSectors / cellSectors);
  const held = new Float64Array(cells * layerCount);
  const sectorsOfLayer = new Array<number>(layerCount).fill(0);
  for (const { sector, lengthSectors, layer } of extents) {
    if (layer < 0) continue;
    sectorsOfLayer[layer] += lengthSectors;
    const end = sector + lengthSectors;
    for (let at = sector; at < end;) {
      const cell = Math.floor(at / cellSectors);
      const cellEnd = Math.min(end, (cell + 1) * cellSectors);
      held[cell * layerCount + layer] += cellEnd - at;
      at = cellEnd;
    }
  }
  const layers = new Int16Array(cells).fill(-1);
  const fullness = new Float32Array(cells);
  for (let cell = 0; cell < cells; cell++) {
    const counts = held.subarray(cell * layerCount, (cell + 1) * layerCount);
    const most = Math.max(...counts);
    const sectors = Math.min(cellSectors, sizeSectors - cell * cellSectors);
    if (most > 0) layers[cell] = counts.indexOf(most);
    fullness[cell] = counts.reduce((sum, count) => sum + count, 0) / sectors;
  }
  return {
    columns,
    rows: Math.ceil(cells / columns),
    cellSectors,
    layers,
    fullness,
    sectorsOfLayer,
  };
}
