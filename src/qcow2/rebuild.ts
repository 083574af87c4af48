import { Errno, SystemError } from "../../ffi/errno.ts";
import type { StorageFile } from "../files/storage.ts";
import { highOfSector, lowOfSector } from "./format/entries.ts";
import { HeaderField } from "./format/header.ts";
import { maxRefcount, setRefcountAt } from "./format/refcounts.ts";
import { MAX_REFCOUNT_TABLE_BYTES, SECTOR_BYTES } from "./format/units.ts";
import type { Qcow2Image } from "./image/image.ts";
import type { References } from "./references.ts";

/** Where a new refcount table is. */
export interface RebuiltTable {
  readonly offsetBytes: number;
  readonly clusters: number;
}

/**
 * Writes a refcount table and all its blocks anew, in a free piece of the file: nothing leads there
 * before the header does. The clusters of the old ones have no references in it, so they are free.
 *
 * @param references All others than those of the refcount table and its blocks.
 * @param first The cluster at which the piece begins: behind everything in use.
 * @throws {SystemError} ERANGE for a cluster with more references than a count can hold; EFBIG.
 */
export function rebuildRefcounts(
  { file, geometry }: Qcow2Image,
  references: References,
  first: number,
): RebuiltTable {
  const { refcountsPerBlock, clusterBytes, refcountBits, clusterSectors } = geometry;
  const plan = planPiece(first, references, refcountsPerBlock, clusterBytes);
  if (plan.tableClusters * clusterBytes > MAX_REFCOUNT_TABLE_BYTES) {
    throw new SystemError(Errno.EFBIG, `Cannot write the reference counts of ${file.path}`);
  }
  const { tableClusters, groups } = plan;
  const end = first + tableClusters + groups.length;
  requireRoom(file, end * clusterBytes);
  const table = new DataView(new ArrayBuffer(tableClusters * clusterBytes));
  const block = new Uint8Array(clusterBytes);
  const view = new DataView(block.buffer);
  for (const [i, group] of groups.entries()) {
    block.fill(0);
    for (let k = 0; k < refcountsPerBlock; k++) {
      const cluster = group * refcountsPerBlock + k;
      const own = cluster >= first && cluster < end ? 1 : 0;
      const count = references.of(cluster) + own;
      if (count > maxRefcount(refcountBits)) {
        const what = `Cannot mend ${file.path}: a cluster has ${count} references`;
        throw new SystemError(Errno.ERANGE, `${what}, and a count only ${refcountBits} bits`);
      }
      if (count > 0) setRefcountAt(view, 0, k, refcountBits, count);
    }
    const place = first + tableClusters + i;
    file.writeAt(block, place * clusterBytes);
    table.setUint32(8 * group, highOfSector(place * clusterSectors), false);
    table.setUint32(8 * group + 4, lowOfSector(place * clusterSectors), false);
  }
  file.writeAt(new Uint8Array(table.buffer), first * clusterBytes);
  return { offsetBytes: first * clusterBytes, clusters: tableClusters };
}

function requireRoom(file: StorageFile, needed: number): void {
  if (!file.isBlockDevice || needed <= file.sizeBytes()) return;
  throw new SystemError(Errno.ENOSPC, `Cannot write the reference counts of ${file.path}`);
}

/** How many clusters the table takes, and the groups of clusters that need a block. */
function planPiece(
  first: number,
  references: References,
  perBlock: number,
  clusterBytes: number,
): { tableClusters: number; groups: number[] } {
  const used = Math.ceil(references.end / perBlock);
  const inUse: number[] = [];
  for (let group = 0; group < used; group++) {
    if (hasReference(references, group * perBlock, perBlock)) inUse.push(group);
  }
  let tableClusters = 1;
  let blocks = inUse.length;
  for (;;) {
    const end = first + tableClusters + blocks;
    const groups = new Set(inUse);
    for (let g = Math.floor(first / perBlock); g * perBlock < end; g++) groups.add(g);
    const needed = Math.ceil(Math.max(used, Math.ceil(end / perBlock)) * 8 / clusterBytes);
    if (needed <= tableClusters && groups.size <= blocks) {
      return { tableClusters, groups: [...groups].sort((a, b) => a - b) };
    }
    tableClusters = Math.max(tableClusters, needed);
    blocks = Math.max(blocks, groups.size);
  }
}

function hasReference(references: References, first: number, count: number): boolean {
  for (let i = 0; i < count; i++) if (references.of(first + i) > 0) return true;
  return false;
}

/** Fields of the header, by their offset: numbers of 8 bytes, or of 4 where `isShort`. */
export interface HeaderChange {
  readonly offset: number;
  readonly value: bigint;
  readonly isShort?: boolean;
}

/** The changes of the header that lead to a new refcount table. */
export function tableChanges({ offsetBytes, clusters }: RebuiltTable): HeaderChange[] {
  return [
    { offset: HeaderField.RefcountTableOffset, value: BigInt(offsetBytes) },
    { offset: HeaderField.RefcountTableClusters, value: BigInt(clusters), isShort: true },
  ];
}

/** Changes fields of the header, in one write of one sector, between two syncs. */
export function changeHeader(file: StorageFile, changes: readonly HeaderChange[]): void {
  file.sync();
  const bytes = new Uint8Array(SECTOR_BYTES);
  file.readAt(bytes, 0);
  const view = new DataView(bytes.buffer);
  for (const { offset, value, isShort = false } of changes) {
    if (isShort) view.setUint32(offset, Number(value), false);
    else view.setBigUint64(offset, value, false);
  }
  file.writeAt(bytes, 0);
  file.sync();
}
