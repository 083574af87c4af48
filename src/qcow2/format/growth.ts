/**
 * How the table of reference counts grows: new refcount blocks, and a longer refcount table when the
 * one that is there has no entries for them. All of it lies in one piece of the file.
 *
 * @module
 */
import { highOfSector, lowOfSector } from "./entries.ts";
import { setRefcountAt } from "./refcounts.ts";
import { type Geometry, MAX_REFCOUNT_TABLE_BYTES, SECTOR_BYTES } from "./units.ts";

/** A piece of the file with new structures, which count themselves. */
export interface Growth {
  /** The first cluster of the piece. */
  readonly first: number;
  /** The group of clusters that the first block counts; the blocks that follow count the next ones. */
  readonly firstGroup: number;
  /** Blocks, at the start of the piece. */
  readonly blocks: number;
  /** Clusters of a new refcount table behind them; 0: the old one has room. */
  readonly tableClusters: number;
}

/**
 * Plans new structures for the group of a cluster, which has no refcount block. With a new table the
 * piece may reach into further groups, which then get blocks too.
 *
 * @param tableEntries How many entries the refcount table has.
 * @returns Null when the table would be longer than is accepted.
 */
export function planGrowth(first: number, geometry: Geometry, tableEntries: number): Growth | null {
  const { refcountsPerBlock, clusterBytes } = geometry;
  const firstGroup = Math.floor(first / refcountsPerBlock);
  if (firstGroup < tableEntries) return { first, firstGroup, blocks: 1, tableClusters: 0 };
  let blocks = 1;
  let tableClusters = 0;
  for (;;) {
    const last = first + blocks + tableClusters - 1;
    const groups = Math.floor(last / refcountsPerBlock) + 1;
    // Half as many entries again, so that it is not moved often.
    const entries = Math.ceil(groups * 1.5);
    const neededTable = Math.max(tableClusters, Math.ceil(entries * 8 / clusterBytes));
    const neededBlocks = groups - firstGroup;
    if (neededTable * clusterBytes > MAX_REFCOUNT_TABLE_BYTES) return null;
    if (neededTable === tableClusters && neededBlocks === blocks) {
      return { first, firstGroup, blocks, tableClusters };
    }
    [blocks, tableClusters] = [neededBlocks, neededTable];
  }
}

/** The entry of the refcount table for a new block. */
function putEntry(view: DataView, at: number, sector: number): void {
  view.setUint32(at, highOfSector(sector), false);
  view.setUint32(at + 4, lowOfSector(sector), false);
}

/** The refcount table with the entries of new blocks: a longer one where there is a new table. */
export function grownTable(
  { first, firstGroup, blocks, tableClusters }: Growth,
  { clusterBytes, clusterSectors }: Geometry,
  table: DataView<ArrayBuffer>,
): DataView<ArrayBuffer> {
  const length = Math.max(table.byteLength, tableClusters * clusterBytes);
  const bytes = new Uint8Array(length);
  bytes.set(new Uint8Array(table.buffer, table.byteOffset, table.byteLength));
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < blocks; i++) {
    putEntry(view, 8 * (firstGroup + i), (first + i) * clusterSectors);
  }
  return view;
}

/**
 * Fills memory with a part of the piece, from a sector of it on.
 *
 * @param table What `grownTable` returned.
 */
export function encodeGrowth(
  growth: Growth,
  geometry: Geometry,
  { table, sector, into }: { table: DataView; sector: number; into: Uint8Array<ArrayBuffer> },
): void {
  into.fill(0);
  const { first, firstGroup, blocks, tableClusters } = growth;
  const { refcountBits, refcountsPerBlock, clusterSectors } = geometry;
  const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
  const perSector = SECTOR_BYTES * 8 / refcountBits;
  const end = first + blocks + tableClusters;
  for (let i = 0; i < into.length / SECTOR_BYTES; i++) {
    const inPiece = sector + i;
    const block = Math.floor(inPiece / clusterSectors);
    if (block >= blocks) {
      const from = (inPiece - blocks * clusterSectors) * SECTOR_BYTES;
      const part = new Uint8Array(table.buffer, table.byteOffset + from, SECTOR_BYTES);
      into.set(part, i * SECTOR_BYTES);
      continue;
    }
    // Counts of this sector of the block begin with this cluster.
    const start = (firstGroup + block) * refcountsPerBlock +
      (inPiece - block * clusterSectors) * perSector;
    for (
      let cluster = Math.max(first, start);
      cluster < Math.min(end, start + perSector);
      cluster++
    ) {
      setRefcountAt(view, i * SECTOR_BYTES, cluster - start, refcountBits, 1);
    }
  }
}
