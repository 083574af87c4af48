import { assert } from "../../../ffi/assert.ts";
import { Errno, errnoOf } from "../../../ffi/errno.ts";
import { copySectors } from "../../../ffi/memory.ts";
import { sectorOfEntry } from "../../qcow2/format/entries.ts";
import { maxRefcount, refcountAt, setRefcountAt } from "../../qcow2/format/refcounts.ts";
import { SECTOR_BYTES } from "../driver.ts";
import type { ProtectedPlaces } from "./protected_places.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { Reserve } from "./reserve.ts";
import { MOST_SLICE_BYTES, SliceCache } from "./slice_cache.ts";
import type { SliceLoader } from "./slice_loader.ts";

const NONE = -1;
/** A cluster cannot be given out yet: something is being read or written first. */
export const WAIT = -1;
/** The most sectors of refcount blocks that differ from the file at once. */
export const MOST_DIRTY_SECTORS = 32;
/** Free clusters that are remembered. */
const MOST_FREE = 8192;
const REFCOUNT_CACHE_BYTES = 1 << 20;
/** For so many clusters that are given out, one slice of old reference counts is looked through. */
const CLUSTERS_FOR_LOOK = 128;

/** What else a place for a cluster may need. */
export interface RefcountOwner {
  /** No refcount block is there for a cluster: the next ones are to be made. */
  wantBlock(cluster: number): void;
  /** Sectors are to be written before more can change. */
  wantWrites(): void;
  /**
   * A cluster that is free by its reference count, or a refcount block, lies in a structure.
   *
   * @param index Of `ProtectedPlaces`; -1: it is no cluster.
   */
  overlap(index: number): void;
}

/**
 * Reference counts of the clusters of the file, and the choice of new ones. Counts change in memory
 * first; `stage` copies their sectors to be written.
 */
export class Refcounts {
  readonly cache: SliceCache;
  /** Clusters that are counted before they are given out. */
  readonly reserve: Reserve;
  /** The refcount table, as it is in the file. */
  table: DataView<ArrayBuffer>;
  readonly #file: Qcow2File;
  readonly #places: ProtectedPlaces;
  readonly #owner: RefcountOwner;
  #loader: SliceLoader | null = null;
  readonly #bits: number;
  readonly #perBlock: number;
  readonly #perSlice: number;
  readonly #perSector: number;
  readonly #slicesPerBlock: number;
  /** Sectors that differ from the file: entry of the cache × sectors of a slice + sector. */
  readonly #dirty = new Int32Array(MOST_DIRTY_SECTORS);
  #dirtyCount = 0;
  /** Sectors that are being written. */
  #stagedCount = 0;
  readonly #isDirty: Uint8Array;
  /** Free clusters below the end, oldest first. */
  readonly #free = new Float64Array(MOST_FREE);
  #freeFirst = 0;
  #freeCount = 0;
  /** The next cluster behind all that are in use. */
  #next: number;
  /** Slices of old counts up to here have been looked through for free clusters. */
  #looked = 0;
  readonly #lookEnd: number;
  #givenOut = 0;
  /** Whether free clusters below `#next` found no room in the list. */
  #hasForgotten = false;

  constructor(file: Qcow2File, places: ProtectedPlaces, owner: RefcountOwner) {
    const { geometry, refcountTable } = file.image;
    this.table = refcountTable;
    this.#file = file;
    this.#places = places;
    this.#owner = owner;
    const sliceBytes = Math.min(geometry.clusterBytes, MOST_SLICE_BYTES);
    this.#bits = geometry.refcountBits;
    this.#perBlock = geometry.refcountsPerBlock;
    this.#perSlice = sliceBytes * 8 / this.#bits;
    this.#perSector = SECTOR_BYTES * 8 / this.#bits;
    this.#slicesPerBlock = geometry.clusterBytes / sliceBytes;
    this.cache = new SliceCache(sliceBytes, REFCOUNT_CACHE_BYTES);
    this.reserve = new Reserve(geometry.clusterBytes);
    this.#isDirty = new Uint8Array(this.cache.entries * this.cache.sliceSectors);
    // On a device the first free cluster is looked for from the start.
    this.#next = file.disk.isBlockDevice ? 0 : file.clusters;
    this.#lookEnd = file.disk.isBlockDevice ? 0 : Math.ceil(file.clusters / this.#perSlice);
  }

  /** Whether the cluster that was given out last is a hole in the file. */
  lastWasUntouched = false;
  /** Whether it was counted in advance. */
  lastWasReserved = false;

  /** Reads slices; set once. */
  set loader(loader: SliceLoader) {
    this.#loader = loader;
  }

  /** The number of the group of clusters that one refcount block counts. */
  groupOf(cluster: number): number {
    return Math.floor(cluster / this.#perBlock);
  }

  /** Sector of the file at which the refcount block of a group begins; 0 when there is none. */
  blockSector(group: number): number {
    if (8 * group >= this.table.byteLength) return 0;
    return sectorOfEntry(
      this.table.getUint32(8 * group, false),
      this.table.getUint32(8 * group + 4, false),
    );
  }

  /** The next cluster behind all that are in use. */
  get nextCluster(): number {
    return this.#next;
  }

  /** New clusters are looked for from here on. */
  skipTo(cluster: number): void {
    this.#next = Math.max(this.#next, cluster);
  }

  /**
   * The entry of the slice that counts a cluster; -1 when it is being read, or there is no room to.
   * -2 when there is no refcount block.
   */
  #sliceOf(cluster: number): number {
    const key = Math.floor(cluster / this.#perSlice);
    const known = this.cache.find(key);
    if (known !== NONE) return this.cache.isLoading(known) ? NONE : known;
    const block = this.blockSector(this.groupOf(cluster));
    if (block === 0) return -2;
    if (!this.#isBlock(block)) return NONE;
    const inBlock = key - Math.floor(key / this.#slicesPerBlock) * this.#slicesPerBlock;
    const loader = this.#loader;
    assert(loader !== null, "Reference counts are read before there is a loader");
    if (loader.entryFor(key, block + inBlock * this.cache.sliceSectors) === NONE) {
      this.#owner.wantWrites();
    }
    return NONE;
  }

  /** Whether a refcount block may be at a sector of the file. */
  #isBlock(sector: number): boolean {
    const { clusterSectors } = this.#file;
    const isCluster = (sector & (clusterSectors - 1)) === 0;
    const overlap = isCluster ? this.#places.overlap(sector, clusterSectors) : NONE;
    if (isCluster && overlap === NONE) return true;
    this.#owner.overlap(overlap);
    return false;
  }

  #indexOf(cluster: number): number {
    return cluster & (this.#perSlice - 1);
  }

  #countAt(entry: number, index: number): number {
    return refcountAt(this.cache.view, this.cache.byteOf(entry), index, this.#bits);
  }

  /** Whether a count may change now: its sector is to be written already, or one more can be. */
  #mayChange(entry: number, index: number): boolean {
    if (this.#isDirty[this.#sectorOf(entry, index)] === 1) return true;
    if (this.#dirtyCount + this.#stagedCount < MOST_DIRTY_SECTORS) return true;
    this.#owner.wantWrites();
    return false;
  }

  #sectorOf(entry: number, index: number): number {
    return entry * this.cache.sliceSectors + Math.floor(index / this.#perSector);
  }

  #set(entry: number, index: number, count: number): void {
    setRefcountAt(this.cache.view, this.cache.byteOf(entry), index, this.#bits, count);
    this.#makeDirty(this.#sectorOf(entry, index));
  }

  #makeDirty(sector: number): void {
    if (this.#isDirty[sector] === 1) return;
    assert(this.#dirtyCount < MOST_DIRTY_SECTORS, "Too many reference counts differ from the file");
    this.#isDirty[sector] = 1;
    this.#dirty[this.#dirtyCount++] = sector;
    this.cache.pin(Math.floor(sector / this.cache.sliceSectors));
  }

  /** A cluster that nothing refers to, with a count of 1 from now on; -1: wait; below: -1 - errno. */
  allocate(): number {
    this.lastWasReserved = false;
    if (this.#file.hasMissingBlocks) return WAIT - Errno.EIO;
    const cluster = this.#find();
    if (cluster !== WAIT - Errno.ENOSPC || !this.#hasForgotten) return cluster;
    this.#hasForgotten = false;
    this.#next = 0;
    return this.#find();
  }

  #find(): number {
    if (this.#freeCount > 0) return this.#takeFree();
    this.#lookForFree();
    this.#fillReserve();
    if (this.reserve.count > 0) return this.#takeReserved();
    for (;;) {
      const cluster = this.#next;
      const entry = this.#sliceOf(cluster);
      if (entry === -2) {
        const errno = this.#roomFor(cluster);
        if (errno !== 0) return WAIT - errno;
        this.#owner.wantBlock(cluster);
        return WAIT;
      }
      if (entry === NONE) return WAIT;
      const end = this.#perSlice;
      let index = this.#indexOf(cluster);
      while (index < end && this.#countAt(entry, index) !== 0) index++;
      const found = cluster + index - this.#indexOf(cluster);
      if (index < end) return this.#take(entry, found, index);
      this.#next = found;
    }
  }

  /** Whether the file can have a cluster: 0 or an error number. */
  #roomFor(cluster: number): number {
    const { disk, clusters } = this.#file;
    return disk.isBlockDevice && cluster >= clusters ? Errno.ENOSPC : 0;
  }

  #take(entry: number, cluster: number, index: number): number {
    if (!this.#mayChange(entry, index)) return WAIT;
    const { clusterSectors } = this.#file;
    const overlap = this.#places.overlap(cluster * clusterSectors, clusterSectors);
    if (overlap !== NONE) {
      this.#owner.overlap(overlap);
      return WAIT - Errno.EIO;
    }
    this.lastWasUntouched = this.#file.isUntouched(cluster);
    try {
      this.#file.take(cluster);
    } catch (error) {
      return WAIT - errnoOf(error);
    }
    this.#set(entry, index, 1);
    if (cluster >= this.#next) this.#next = cluster + 1;
    this.#noteGivenOut();
    return cluster;
  }

  #noteGivenOut(): void {
    this.#givenOut++;
    this.reserve.noteGivenOut();
  }

  // ---- the reserve ----------------------------------------------------------------------------

  #takeReserved(): number {
    const cluster = this.reserve.take();
    // The file is long enough.
    this.#file.take(cluster);
    this.lastWasUntouched = true;
    this.lastWasReserved = true;
    this.#noteGivenOut();
    return cluster;
  }

  /** Counts clusters of the hole at the end of the file in advance, if there are too few. */
  #fillReserve(): void {
    const first = this.#next;
    const wanted = this.reserve.wanted(first);
    if (wanted === 0 || !this.#file.isUntouched(first)) return;
    const entry = this.#sliceOf(first);
    if (entry < 0) return;
    const start = this.#indexOf(first);
    const most = Math.min(wanted, this.#perSlice - start);
    const { clusterSectors } = this.#file;
    if (this.#places.overlap(first * clusterSectors, most * clusterSectors) !== NONE) return;
    if (!this.#file.makeRoom(first + most - 1)) return;
    let count = 0;
    for (; count < most; count++) {
      if (this.#countAt(entry, start + count) !== 0) break;
      if (!this.#mayChange(entry, start + count)) break;
      this.#set(entry, start + count, 1);
    }
    if (count === 0) return;
    this.reserve.add(first, count);
    this.#next = first + count;
  }

  /**
   * Takes the references of the reserve away, as far as that can be done now; nothing may be given
   * out any more.
   */
  emptyReserve(): void {
    while (this.reserve.count > 0) {
      const cluster = this.reserve.last;
      const entry = this.#sliceOf(cluster);
      if (entry === NONE) return;
      const index = this.#indexOf(cluster);
      if (entry >= 0) {
        if (!this.#mayChange(entry, index)) return;
        this.#set(entry, index, 0);
      }
      this.reserve.takeLast();
    }
  }

  #takeFree(): number {
    const cluster = this.#free[this.#freeFirst];
    const entry = this.#sliceOf(cluster);
    if (entry === NONE) return WAIT;
    const index = this.#indexOf(cluster);
    const isFree = entry >= 0 && this.#countAt(entry, index) === 0;
    const taken = isFree ? this.#take(entry, cluster, index) : WAIT;
    if (isFree && taken < 0) return taken;
    this.#freeFirst = (this.#freeFirst + 1) % MOST_FREE;
    this.#freeCount--;
    return isFree ? taken : this.#find();
  }

  /** Looks through a slice of old counts now and then, so that room that was freed once is used. */
  #lookForFree(): void {
    if (this.#looked >= this.#lookEnd || this.#givenOut < CLUSTERS_FOR_LOOK) return;
    const first = this.#looked * this.#perSlice;
    const entry = this.#sliceOf(first);
    if (entry === NONE) return;
    this.#givenOut = 0;
    this.#looked++;
    if (entry < 0) return;
    const end = Math.min(this.#perSlice, this.#next - first);
    for (let index = 0; index < end; index++) {
      if (this.#countAt(entry, index) === 0) this.#noteFree(first + index);
    }
  }

  #noteFree(cluster: number): void {
    if (this.#freeCount === MOST_FREE) {
      this.#hasForgotten = true;
      return;
    }
    this.#free[(this.#freeFirst + this.#freeCount++) % MOST_FREE] = cluster;
  }

  /**
   * Takes a reference to a cluster away. Returns the references that are left; -1 when it has to
   * wait; -2 when there was none, or the cluster is not one of data, and nothing changes.
   */
  drop(cluster: number): number {
    const { clusterSectors } = this.#file;
    const overlap = this.#places.overlap(cluster * clusterSectors, clusterSectors);
    if (overlap !== NONE) {
      this.#owner.overlap(overlap);
      return -2;
    }
    const entry = this.#sliceOf(cluster);
    if (entry < 0) return entry;
    const index = this.#indexOf(cluster);
    const count = this.#countAt(entry, index);
    if (count === 0) return -2;
    if (!this.#mayChange(entry, index)) return NONE;
    // A count at its largest may stand for more.
    if (this.#bits === 64 && count >= maxRefcount(64)) return count;
    this.#set(entry, index, count - 1);
    if (count === 1) this.#noteFree(cluster);
    return count - 1;
  }

  /** How many sectors differ from the file and are not being written. */
  get dirtySectors(): number {
    return this.#dirtyCount;
  }

  /**
   * Copies a sector that differs from the file to a sector of I/O memory, to be written.
   *
   * @returns Its number: entry of the cache × sectors of a slice + sector.
   */
  stage(memorySector: number): number {
    const sector = this.#dirty[--this.#dirtyCount];
    this.#isDirty[sector] = 0;
    this.#stagedCount++;
    copySectors(memorySector, this.cache.memoryOf(0) + sector, 1);
    return sector;
  }

  /** Sector of the file at which a staged sector belongs. */
  sectorOf(staged: number): number {
    const entry = Math.floor(staged / this.cache.sliceSectors);
    const key = this.cache.key[entry];
    const inBlock = key - Math.floor(key / this.#slicesPerBlock) * this.#slicesPerBlock;
    const inSlice = staged - entry * this.cache.sliceSectors;
    const block = this.blockSector(Math.floor(key / this.#slicesPerBlock));
    return block + inBlock * this.cache.sliceSectors + inSlice;
  }

  /** A staged sector has been written, or not. */
  staged(sector: number, isWritten: boolean): void {
    this.#stagedCount--;
    if (!isWritten) this.#makeDirty(sector);
    this.cache.unpin(Math.floor(sector / this.cache.sliceSectors));
  }

  /** Unmaps its memory. */
  release(): void {
    this.cache.release();
  }
}
