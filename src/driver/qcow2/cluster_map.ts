import { Errno, SystemError } from "../../../ffi/errno.ts";
import {
  OFLAG_COMPRESSED_HIGH,
  OFLAG_COPIED_HIGH,
  OFLAG_ZERO_LOW,
  sectorOfEntry,
} from "../../qcow2/format/entries.ts";
import type { Geometry } from "../../qcow2/format/units.ts";
import type { Qcow2Image } from "../../qcow2/image/image.ts";
import { MOST_SLICE_BYTES, SliceCache } from "./slice_cache.ts";

/** What an image has of a part of a cluster. */
export const Held = {
  /** Nothing: the image below shows through, or zeros. */
  Nothing: 0,
  /** It reads as zeros. */
  Zeros: 1,
  /** Data in the file. */
  Data: 2,
  /** Data in the file, compressed. */
  Compressed: 3,
} as const;

/** Whether an image has something of a cluster. */
export const Holds = {
  Nothing: 0,
  Something: 1,
  /** The part of the table with its entry is not in memory. */
  Unknown: 2,
} as const;

/** How much memory slices of L2 tables may take, MiB; see `docs/images.md`. */
const CACHE_VARIABLE = "BLKTAP_QCOW2_CACHE_MIB";
/** With clusters of 64 KiB it covers 64 GiB of the disk. */
const DEFAULT_CACHE_MIB = 8;
const MOST_CACHE_MIB = 128;

/** Memory for slices of L2 tables, bytes. Throws `SystemError` EINVAL for a wish that is no size. */
function cacheBytes(): number {
  const wish = Deno.env.get(CACHE_VARIABLE) ?? "";
  const mib = wish === "" ? DEFAULT_CACHE_MIB : Number(wish);
  if (Number.isInteger(mib) && mib > 0 && mib <= MOST_CACHE_MIB) return mib << 20;
  const what = `Cannot take ${CACHE_VARIABLE} for a size: ${JSON.stringify(wish)}`;
  throw new SystemError(Errno.EINVAL, what, { hint: `give MiB from 1 to ${MOST_CACHE_MIB}` });
}

/**
 * Where the clusters of the disk are: the L1 table, and the slices of L2 tables that are in use. It has
 * what is in the file; changes that are on their way there are not in it.
 */
export class ClusterMap {
  readonly geometry: Geometry;
  readonly cache: SliceCache;
  /** The L1 table, as it is in the file. */
  readonly l1: DataView<ArrayBuffer>;
  /** Clusters of a slice of an L2 table. */
  readonly clustersPerSlice: number;
  readonly slicesPerTable: number;
  readonly #entryBytes: number;
  /**
   * All sizes are powers of 2, so these products are exact, and masks take the place of remainders,
   * which cost a call where a number is no small integer.
   */
  readonly #clustersPerSector: number;
  readonly #slicesPerCluster: number;
  readonly #tablesPerSlice: number;
  readonly #clusterMask: number;
  /** Entries of a standard cluster of version 2 have no flag for zeros. */
  readonly #hasZeroFlag: boolean;
  readonly #hasDataFile: boolean;
  /** Whether there are subclusters, or the place of a cluster is known without its entry. */
  readonly #hasMoreThanEntry: boolean;
  readonly #slicesPerByte: number;

  constructor({ geometry, l1, header, dataFile }: Qcow2Image) {
    this.geometry = geometry;
    this.l1 = l1;
    const sliceBytes = Math.min(geometry.clusterBytes, MOST_SLICE_BYTES);
    this.#entryBytes = geometry.l2EntryBytes;
    this.clustersPerSlice = sliceBytes / geometry.l2EntryBytes;
    this.slicesPerTable = geometry.clusterBytes / sliceBytes;
    this.#clustersPerSector = 1 / geometry.clusterSectors;
    this.#slicesPerCluster = 1 / this.clustersPerSlice;
    this.#tablesPerSlice = 1 / this.slicesPerTable;
    this.#clusterMask = geometry.clusterSectors - 1;
    this.#hasZeroFlag = header.version >= 3 && !geometry.hasSubclusters;
    this.#hasDataFile = dataFile !== null;
    this.#hasMoreThanEntry = geometry.hasSubclusters || this.#hasDataFile;
    this.#slicesPerByte = 1 / sliceBytes;
    const slices = l1.byteLength / 8 * this.slicesPerTable;
    this.cache = new SliceCache(sliceBytes, Math.min(cacheBytes(), slices * sliceBytes));
  }

  /** The cluster that a sector lies in. */
  clusterOf(sector: number): number {
    return Math.floor(sector * this.#clustersPerSector);
  }

  /** A sector's place within its cluster. */
  inCluster(sector: number): number {
    return sector & this.#clusterMask;
  }

  /** The number of the slice that has a cluster's entry. */
  sliceOf(cluster: number): number {
    return Math.floor(cluster * this.#slicesPerCluster);
  }

  /** The index in the L1 table of the table that has a slice. */
  tableOf(slice: number): number {
    return Math.floor(slice * this.#tablesPerSlice);
  }

  /** Sector of the file at which an L2 table begins; 0 when there is none. */
  tableSector(table: number): number {
    return sectorOfEntry(
      this.l1.getUint32(8 * table, false),
      this.l1.getUint32(8 * table + 4, false),
    );
  }

  /** Whether the table that has a slice begins where a cluster does. */
  hasSoundTable(slice: number): boolean {
    return this.inCluster(this.tableSector(this.tableOf(slice))) === 0;
  }

  /** Whether an L2 table is only the active L1 table's, so that it may be written. */
  isOwnTable(table: number): boolean {
    return (this.l1.getUint32(8 * table, false) & OFLAG_COPIED_HIGH) !== 0;
  }

  /** Sector of the file at which a slice begins; 0 when its table does not exist. */
  sliceSector(slice: number): number {
    const table = this.tableOf(slice);
    const start = this.tableSector(table);
    if (start === 0) return 0;
    return start + (slice - table * this.slicesPerTable) * this.cache.sliceSectors;
  }

  /** Byte of the cache's view at which a cluster's entry begins. */
  entryAt(slice: number, cluster: number): number {
    return this.cache.byteOf(slice) + (cluster & (this.clustersPerSlice - 1)) * this.#entryBytes;
  }

  /** The entry of the cache whose slice has a byte of the cache's view. */
  sliceAt(at: number): number {
    return Math.floor(at * this.#slicesPerByte);
  }

  /** Whether an entry is empty, and no more is to be known of its cluster: it has nothing, and no place. */
  isBlank(at: number): boolean {
    if (this.#hasMoreThanEntry) return false;
    const { view } = this.cache;
    return view.getUint32(at, false) === 0 && view.getUint32(at + 4, false) === 0;
  }

  /** What the image has of a subcluster, by the entry at a byte of the cache's view. */
  heldAt(at: number, subcluster: number): number {
    const { view } = this.cache;
    const high = view.getUint32(at, false);
    if ((high & OFLAG_COMPRESSED_HIGH) !== 0) return Held.Compressed;
    if (this.geometry.hasSubclusters) {
      const bit = 1 << subcluster;
      if ((view.getUint32(at + 12, false) & bit) !== 0) return Held.Data;
      return (view.getUint32(at + 8, false) & bit) !== 0 ? Held.Zeros : Held.Nothing;
    }
    const low = view.getUint32(at + 4, false);
    if (this.#hasZeroFlag && (low & OFLAG_ZERO_LOW) !== 0) return Held.Zeros;
    if (sectorOfEntry(high, low) !== 0) return Held.Data;
    // The entry of the first cluster of a data file has only the flag.
    return this.#hasDataFile && (high & OFLAG_COPIED_HIGH) !== 0 ? Held.Data : Held.Nothing;
  }

  /** Whether the image has something of a cluster, as far as that is known without a read. */
  holds(cluster: number): number {
    const slice = this.sliceOf(cluster);
    const entry = this.cache.find(slice);
    if (entry < 0) return this.sliceSector(slice) === 0 ? Holds.Nothing : Holds.Unknown;
    if (this.cache.isLoading(entry)) return Holds.Unknown;
    const at = this.entryAt(entry, cluster);
    if (!this.geometry.hasSubclusters) {
      return this.heldAt(at, 0) === Held.Nothing ? Holds.Nothing : Holds.Something;
    }
    const { view } = this.cache;
    const isCompressed = (view.getUint32(at, false) & OFLAG_COMPRESSED_HIGH) !== 0;
    const bits = view.getUint32(at + 8, false) | view.getUint32(at + 12, false);
    return isCompressed || bits !== 0 ? Holds.Something : Holds.Nothing;
  }

  /** Sector of the file at which a standard cluster begins. */
  sectorAt(at: number): number {
    const { view } = this.cache;
    return sectorOfEntry(view.getUint32(at, false), view.getUint32(at + 4, false));
  }

  /** Whether a standard cluster has a place that nothing else refers to. */
  isOwn(at: number): boolean {
    return (this.cache.view.getUint32(at, false) & OFLAG_COPIED_HIGH) !== 0;
  }

  /**
   * Whether the place of a standard cluster is one that a cluster can have. With subclusters also
   * whether there is one for their data.
   */
  hasSoundPlace(at: number, cluster: number): boolean {
    const place = this.sectorAt(at);
    const { clusterSectors, hasSubclusters } = this.geometry;
    if (this.#hasDataFile) return place === 0 || place === cluster * clusterSectors;
    if (place !== 0) return this.inCluster(place) === 0;
    return !hasSubclusters || this.cache.view.getUint32(at + 12, false) === 0;
  }

  /** How many subclusters from one on, up to the end of a range, the image has alike. */
  runAt(at: number, first: number, end: number): number {
    const held = this.heldAt(at, first);
    let last = first + 1;
    while (last < end && this.heldAt(at, last) === held) last++;
    return last - first;
  }
}
