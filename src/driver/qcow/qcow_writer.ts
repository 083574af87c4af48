import { assert } from "../../../ffi/assert.ts";
import { Errno, errnoOf, SystemError } from "../../../ffi/errno.ts";
import { Arena, zeroSectors } from "../../../ffi/memory.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import { clusterSector, packedLength, packedOffset } from "../../qcow/format.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import type { Deferred } from "../deferral.ts";
import {
  type ImageContext,
  type ImageCounts,
  type ImageDriver,
  REQUEST_SLOTS,
  type RequestSink,
  SECTOR_BYTES,
} from "../driver.ts";
import { Batch, MOST_RUNS } from "./batch.ts";
import type { Inflater } from "./inflater.ts";
import { LostClusters } from "./lost_clusters.ts";
import type { QcowFile } from "./qcow_file.ts";
import type { TableCache } from "../table_cache.ts";
import { TABLE_OPERATIONS, TablePublisher } from "./table_publisher.ts";

const NONE = -1;
const BOUNCE_BYTES = 1 << 20;
const FEWEST_BOUNCES = 8;

/**
 * Adds clusters to an image. Writes to clusters that the image does not hold, or holds compressed, are
 * gathered in a batch. The order on disk:
 *
 * 1. the data, and what surrounds it in its first and last cluster: from the backing file, from the
 *    compressed cluster, or zeros;
 * 2. new L2 tables;
 * 3. a sync;
 * 4. the sectors of L2 tables that name the clusters, and those of the L1 table that name new tables.
 *
 * Only then do the requests of the batch end. Others wait for the next batch. A failure ends the
 * requests that needed the step; their clusters are lost room until the image is compacted.
 */
export class QcowWriter implements Deferred, RequestSink {
  deferred = false;
  /** The image below; null without one. */
  below: ImageDriver | null = null;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: QcowFile;
  readonly #cache: TableCache;
  readonly #inflater: Inflater;
  readonly #counts: ImageCounts;
  readonly #free: () => void;
  readonly #batch = new Batch();
  readonly #publisher: TablePublisher;
  /** It reads while there is no batch, and needs no operations of its own. */
  readonly #lost: LostClusters;
  /** Clusters that surround data, one after the other. */
  readonly #bounces: Arena;
  readonly #mostBounces: number;
  #usedBounces = 0;
  /** Runs whose data has not been written. */
  #writing = 0;
  #isPublishing = false;
  /** By slot: sectors that are being read below for a write, and whether that failed. */
  readonly #readingBelow = new Int32Array(REQUEST_SLOTS);
  readonly #errnoBelow = new Int32Array(REQUEST_SLOTS);
  #idle: (() => void) | null = null;
  readonly #owner: IoOwner = { ioDone: (run, _sectors, errno) => this.#operationDone(run, errno) };

  /** Throws `SystemError` EBUSY when the process serves too many images. */
  constructor(
    { context, sink, file, cache, inflater, counts, free }: {
      context: ImageContext;
      sink: RequestSink;
      file: QcowFile;
      cache: TableCache;
      inflater: Inflater;
      counts: ImageCounts;
      /** Called when writes that had to wait can be tried again. */
      free: () => void;
    },
  ) {
    if (!context.queue.reserve(TABLE_OPERATIONS)) {
      const { path } = file.disk;
      const why = `Cannot serve ${path}: this tapdisk serves too many images (start another)`;
      throw new SystemError(Errno.EBUSY, why);
    }
    this.#context = context;
    this.#sink = sink;
    this.#file = file;
    this.#cache = cache;
    this.#inflater = inflater;
    this.#counts = counts;
    this.#free = free;
    const clusterBytes = file.clusterSectors * SECTOR_BYTES;
    this.#mostBounces = Math.max(
      FEWEST_BOUNCES,
      Math.min(2 * MOST_RUNS, Math.floor(BOUNCE_BYTES / clusterBytes)),
    );
    this.#bounces = new Arena(this.#mostBounces * clusterBytes);
    this.#lost = new LostClusters(context, file, free);
    this.#publisher = new TablePublisher({
      file,
      cache,
      queue: context.queue,
      batch: this.#batch,
      done: () => this.#published(),
    });
  }

  /**
   * Writes sectors of clusters that are to be added: all of one table, and none of them in the file.
   *
   * @param entry Where the table is in the cache; -1: it is not in the file.
   * @returns 0; -1 when the write has to wait; an errno.
   */
  allocate(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    table: number,
    entry: number,
  ): number {
    const refusal = this.#lost.mayAdd();
    if (refusal !== 0) return refusal;
    const { clusterSectors } = this.#file;
    const cluster = Math.floor(sector / clusterSectors);
    const clusters = Math.ceil((sector + count) / clusterSectors) - cluster;
    if (this.#isPublishing || this.#batch.size === MOST_RUNS) return NONE;
    if (this.#batch.has(cluster, clusters)) return NONE;
    if (this.#usedBounces + 2 > this.#mostBounces || !this.#inflater.hasRoom) return NONE;
    const inCache = entry === NONE ? this.#newTable(table) : entry;
    if (inCache === NONE) return NONE;
    if (!this.#publisher.reserve(table, cluster, clusters)) {
      this.#dropUnused(table, inCache, entry);
      return NONE;
    }
    let place: number;
    try {
      place = this.#file.grow(clusters * clusterSectors);
    } catch (error) {
      this.#publisher.giveBack();
      this.#dropUnused(table, inCache, entry);
      return errnoOf(error);
    }
    this.#cache.pin(inCache);
    const run = this.#batch.add(slot, sector, count, clusterSectors);
    this.#batch.table[run] = table;
    this.#batch.entry[run] = inCache;
    this.#batch.place[run] = place;
    this.#counts.writtenSectors += count;
    this.#start(run, memorySector, entry !== NONE);
    return 0;
  }

  /** The cache's entry of a table that is not in the file; -1: all are in use. */
  #newTable(table: number): number {
    const known = this.#cache.find(table);
    return known === NONE ? this.#cache.claim(table) : known;
  }

  /** A new table whose first run could not be added is none. */
  #dropUnused(table: number, inCache: number, entry: number): void {
    if (entry === NONE && this.#batch.runOfTable(table) === NONE) this.#cache.drop(inCache);
  }

  /** Starts to write a run's data, and to get what surrounds it. */
  #start(run: number, memorySector: number, mayBePacked: boolean): void {
    const batch = this.#batch;
    const { clusterSectors } = this.#file;
    const sector = batch.sector[run];
    const count = batch.count[run];
    const before = sector - batch.cluster[run] * clusterSectors;
    const after = (batch.cluster[run] + batch.clusters[run]) * clusterSectors - sector - count;
    this.#writing++;
    batch.left[run] = 2;
    const place = batch.place[run] + before;
    this.#context.queue.write(
      this.#file.disk.file,
      place,
      count,
      memorySector,
      this.#owner,
      run,
    );
    if (before > 0 || after > 0) {
      if (mayBePacked && this.#isPacked(run)) this.#unpack(run);
      else this.#readAround(run, before, after);
    }
    this.#operationDone(run, 0);
  }

  #entryAt(run: number): number {
    const { clusterSectors, sectorsPerTable } = this.#file;
    const perTable = sectorsPerTable / clusterSectors;
    const index = this.#batch.cluster[run] - this.#batch.table[run] * perTable;
    return this.#cache.at(this.#batch.entry[run], index);
  }

  #isPacked(run: number): boolean {
    return clusterSector(this.#cache.view, this.#entryAt(run)) < 0;
  }

  /** Gets what surrounds data in a compressed cluster. A run has only one of those. */
  #unpack(run: number): void {
    const { clusterBits } = this.#file.image.header;
    const { view } = this.#cache;
    const at = this.#entryAt(run);
    this.#batch.left[run]++;
    const offset = packedOffset(view, at, clusterBits);
    const errno = this.#inflater.start(~run, offset, packedLength(view, at, clusterBits));
    assert(errno !== NONE, "No place is free for a compressed cluster, although one was");
    if (errno < NONE) this.#operationDone(run, NONE - errno);
  }

  /** The compressed cluster of a run has been read. */
  inflated(place: number, errno: number): void {
    const run = ~this.#inflater.tokenOf(place);
    const batch = this.#batch;
    batch.packed[run] = place;
    if (errno === 0) {
      const at = this.#inflater.clusterAt(place);
      batch.head[run] = at;
      batch.tail[run] = at;
      this.#writeAround(run);
    }
    this.#operationDone(run, errno);
  }

  /** Gets what surrounds data from the image below. Without one, the file has zeros there. */
  #readAround(run: number, before: number, after: number): void {
    const { below } = this;
    if (below === null) return;
    const batch = this.#batch;
    const { clusterSectors } = this.#file;
    const slot = batch.slot[run];
    const first = batch.cluster[run] * clusterSectors;
    const end = batch.sector[run] + batch.count[run];
    const inHead = Math.max(0, Math.min(before, below.sectors - first));
    const inTail = Math.max(0, Math.min(after, below.sectors - end));
    if (inHead + inTail === 0) return;
    batch.left[run]++;
    batch.isReading[run] = 1;
    const at = this.#bounces.sector + this.#usedBounces * clusterSectors;
    this.#usedBounces += 2;
    zeroSectors(at, 2 * clusterSectors);
    batch.head[run] = before > 0 ? at : NONE;
    batch.tail[run] = after > 0 ? at + clusterSectors : NONE;
    if (this.#readingBelow[slot] === 0) this.#errnoBelow[slot] = 0;
    // All of it before the first read: it may end within the call.
    this.#readingBelow[slot] += inHead + inTail;
    if (inHead > 0) below.read(slot, first, inHead, at);
    if (inTail > 0) below.read(slot, end, inTail, at + 2 * clusterSectors - after);
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (this.#readingBelow[slot] === 0) return this.#sink.pieceDone(slot, sectors, errno);
    if (errno !== 0) this.#errnoBelow[slot] = errno;
    this.#readingBelow[slot] -= sectors;
    assert(this.#readingBelow[slot] >= 0, "More was read below a QCOW than was asked for");
    if (this.#readingBelow[slot] > 0) return;
    const batch = this.#batch;
    for (let run = 0; run < batch.size; run++) {
      if (batch.slot[run] !== slot || batch.isReading[run] === 0) continue;
      batch.isReading[run] = 0;
      if (this.#errnoBelow[slot] === 0) this.#writeAround(run);
      this.#operationDone(run, this.#errnoBelow[slot]);
    }
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return this.#sink.extent(slot, sectors, isData);
  }

  statusDone(slot: number, errno: number): void {
    this.#sink.statusDone(slot, errno);
  }

  /** Writes what surrounds the data of a run. */
  #writeAround(run: number): void {
    const batch = this.#batch;
    const { clusterSectors, disk: { file } } = this.#file;
    const { queue } = this.#context;
    const place = batch.place[run];
    const before = batch.sector[run] - batch.cluster[run] * clusterSectors;
    const dataEnd = before + batch.count[run];
    const after = batch.clusters[run] * clusterSectors - dataEnd;
    if (batch.head[run] >= 0 && before > 0) {
      batch.left[run]++;
      queue.write(file, place, before, batch.head[run], this.#owner, run);
    }
    if (batch.tail[run] >= 0 && after > 0) {
      batch.left[run]++;
      const from = batch.tail[run] + clusterSectors - after;
      queue.write(file, place + dataEnd, after, from, this.#owner, run);
    }
  }

  #operationDone(run: number, errno: number): void {
    const batch = this.#batch;
    if (errno !== 0 && batch.errno[run] === 0) batch.errno[run] = errno;
    assert(batch.left[run] > 0, "More operations of new clusters ended than were started");
    if (--batch.left[run] > 0) return;
    this.#writing--;
    if (this.#writing === 0) this.#context.deferral.add(this);
  }

  get faults(): FaultOwner {
    return this.#context.faults;
  }

  runDeferred(): void {
    if (this.#context.faults.failed || this.#isPublishing) return;
    if (this.#writing > 0 || this.#batch.size === 0) return this.#checkIdle();
    this.#isPublishing = true;
    this.#publisher.start();
  }

  /** The batch is on disk, as far as its runs have no error. Ends its requests. */
  #published(): void {
    const batch = this.#batch;
    const { size } = batch;
    for (let run = 0; run < size; run++) {
      const entry = batch.entry[run];
      this.#cache.unpin(entry);
      if (batch.packed[run] !== NONE) this.#inflater.free(batch.packed[run]);
    }
    for (let run = 0; run < size; run++) this.#dropFailed(run);
    batch.size = 0;
    this.#usedBounces = 0;
    for (let run = 0; run < size; run++) {
      this.#sink.pieceDone(batch.slot[run], batch.count[run], batch.errno[run]);
    }
    this.#isPublishing = false;
    this.#free();
    this.#context.deferral.add(this);
  }

  /** A new table of which nothing is in the file is given up. */
  #dropFailed(run: number): void {
    const table = this.#batch.table[run];
    if (this.#file.image.l1[table] !== 0) return;
    const entry = this.#cache.find(table);
    if (entry !== NONE) this.#cache.drop(entry);
  }

  /** Calls back when nothing is under way any more; no request may be. */
  whenIdle(done: () => void): void {
    this.#idle = done;
    this.#checkIdle();
  }

  #checkIdle(): void {
    if (this.#idle === null || this.#isPublishing || this.#batch.size > 0) return;
    const done = this.#idle;
    this.#idle = null;
    done();
  }

  /** Gives back what it holds; it must be idle. */
  release(): void {
    this.#lost.release();
    this.#publisher.release();
    this.#bounces.release();
    this.#context.queue.release(TABLE_OPERATIONS);
  }
}
