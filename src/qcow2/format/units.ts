/**
 * `src/qcow2/format`: pure functions between the bytes of a QCOW2 image and their meaning: the
 * header and its extensions, entries of the L1 and L2 tables, reference counts. This folder must not
 * open files and must not know the order of writes.
 *
 * The layout is that of docs/interop/qcow2 in QEMU's sources; constants have the names used there.
 * All numbers are big-endian.
 *
 * This file has the sizes that follow from a header.
 *
 * @module
 */

/** Bytes of a sector: the unit of requests and of writes of metadata. */
export const SECTOR_BYTES = 512;
/** The smallest and the largest size of a cluster, as powers of 2. */
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
/** The smallest size of a cluster that has subclusters, as a power of 2. */
export const MIN_EXTENDED_CLUSTER_BITS = 14;
/** Subclusters of a cluster in an image with extended L2 entries. */
const SUBCLUSTERS = 32;
/** The longest L1 table and the longest refcount table that are accepted, bytes. */
export const MAX_L1_BYTES = 32 << 20;
export const MAX_REFCOUNT_TABLE_BYTES = 8 << 20;
/** The longest name of a backing file, bytes. */
export const MAX_BACKING_NAME_BYTES = 1023;
/** The largest offset of a cluster or a table in the file. */
export const MAX_HOST_OFFSET = 2 ** 56 - 512;

/** The sizes of an image's structures. */
export interface Geometry {
  readonly clusterBits: number;
  readonly clusterBytes: number;
  /** Sectors of a cluster. */
  readonly clusterSectors: number;
  readonly hasSubclusters: boolean;
  /** Bytes of an entry of an L2 table: 8, or 16 with subclusters. */
  readonly l2EntryBytes: number;
  /** Entries of an L2 table, which takes one cluster. */
  readonly l2Entries: number;
  /** Subclusters of a cluster; 1 without subclusters. */
  readonly subclusters: number;
  readonly subclusterSectors: number;
  /** Width of a reference count, bits: a power of 2 up to 64. */
  readonly refcountBits: number;
  /** Reference counts of a refcount block, which takes one cluster. */
  readonly refcountsPerBlock: number;
}

/** The sizes that follow from three fields of the header. */
export function geometryOf(
  { clusterBits, refcountOrder, hasSubclusters }: {
    clusterBits: number;
    refcountOrder: number;
    hasSubclusters: boolean;
  },
): Geometry {
  const clusterBytes = 2 ** clusterBits;
  const clusterSectors = clusterBytes / SECTOR_BYTES;
  const l2EntryBytes = hasSubclusters ? 16 : 8;
  const subclusters = hasSubclusters ? SUBCLUSTERS : 1;
  const refcountBits = 1 << refcountOrder;
  return {
    clusterBits,
    clusterBytes,
    clusterSectors,
    hasSubclusters,
    l2EntryBytes,
    l2Entries: clusterBytes / l2EntryBytes,
    subclusters,
    subclusterSectors: clusterSectors / subclusters,
    refcountBits,
    refcountsPerBlock: clusterBytes * 8 / refcountBits,
  };
}

/** Entries of the L1 table of a disk of this size. */
export function l1EntriesOf(sizeBytes: number, { clusterBytes, l2Entries }: Geometry): number {
  return Math.ceil(sizeBytes / (clusterBytes * l2Entries));
}
