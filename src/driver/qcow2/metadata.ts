import { Errno, errnoName, SystemError } from "../../../ffi/errno.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { Deferred } from "../deferral.ts";
import type { ImageContext, RequestSink } from "../driver.ts";
import { PieceLists } from "../pieces.ts";
import { BLOCK_MAKER_OPERATIONS, BlockMaker } from "./block_maker.ts";
import type { ClusterMap } from "./cluster_map.ts";
import { Committer, COMMITTER_OPERATIONS } from "./committer.ts";
import type { CopyBuffers } from "./copy_buffers.ts";
import { Drops } from "./drops.ts";
import { EntryWriter } from "./entry_writer.ts";
import type { Flights } from "./flights.ts";
import { HEADER_OPERATIONS, HeaderWriter } from "./header_writer.ts";
import { ProtectedPlaces } from "./protected_places.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { Refcounts } from "./refcounts.ts";
import type { Records } from "./records.ts";
import { LOADER_OPERATIONS, SliceLoader, type WaitingPieces } from "./slice_loader.ts";
import { TABLE_OPERATIONS, Tables } from "./tables.ts";

const NONE = -1;
/** Operations beside those of requests. */
const OPERATIONS = COMMITTER_OPERATIONS + TABLE_OPERATIONS + BLOCK_MAKER_OPERATIONS +
  HEADER_OPERATIONS + LOADER_OPERATIONS + 1;

/** What a writer of metadata is made of. */
export interface MetadataParts {
  readonly context: ImageContext;
  readonly sink: RequestSink;
  readonly file: Qcow2File;
  readonly map: ClusterMap;
  /** Reads slices of L2 tables. */
  readonly loader: SliceLoader;
  readonly flights: Flights;
  readonly records: Records;
  readonly buffers: CopyBuffers;
  /** What becomes of pieces that waited. */
  readonly waiting: WaitingPieces;
  readonly owner: MetadataOwner;
}

/** Where the ends are told. */
export interface MetadataOwner {
  /** The entry in the file has a change now, or, with an errno, may not have it. */
  committed(record: number, errno: number): void;
  /** Buffers may be free again. */
  buffersFree(): void;
}

/**
 * The metadata of an image that is written: reference counts, tables, the header, and the commits that
 * bring changes of them to the file. Pieces of requests wait here for what they need of it.
 */
export class Metadata implements Deferred {
  deferred = false;
  readonly refcounts: Refcounts;
  readonly drops: Drops;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: Qcow2File;
  readonly #map: ClusterMap;
  /** Reads slices of L2 tables. */
  readonly loader: SliceLoader;
  readonly #waiting: WaitingPieces;
  readonly #records: Records;
  readonly #places: ProtectedPlaces;
  readonly #header: HeaderWriter;
  readonly #countLoader: SliceLoader;
  readonly #blockMaker: BlockMaker;
  readonly #tables: Tables;
  readonly #committer: Committer;
  /** Pieces that wait for anything: a record, a place, a table. */
  readonly #starved = new PieceLists(1);
  #mayRetry = false;
  #blockWanted = NONE;
  /** A commit failed: what is left waits for the next request, or for the close. */
  #isStalled = false;
  /** Features that other programs must see cleared are: the image may be written. */
  #isPrepared: boolean;
  #isPreparing = false;
  /** A structure would have been overwritten: nothing is written any more. */
  isBroken = false;
  #idle: ((errno: number) => void) | null = null;
  /** The error of the last commit since the image is being closed. */
  #lastError = 0;
  /** The image is being closed, and only references of the reserve are left to be written. */
  #isEmptying = false;
  /** They cannot be written. */
  #isReserveLost = false;
  readonly #prepareOwner: IoOwner = { ioDone: (_t, _n, errno) => this.#prepared(errno) };

  /** Throws `SystemError` EBUSY when the process serves too many images. */
  constructor(parts: MetadataParts) {
    const { context, file, map, flights, records, buffers, owner } = parts;
    if (!context.queue.reserve(OPERATIONS)) {
      throw new SystemError(
        Errno.EBUSY,
        `Cannot serve ${file.image.path}: this tapdisk serves too many images (start another)`,
      );
    }
    this.#context = context;
    this.#sink = parts.sink;
    this.#file = file;
    this.#map = map;
    this.loader = parts.loader;
    this.#waiting = parts.waiting;
    this.#records = records;
    const { queue } = context;
    this.#header = new HeaderWriter(file.image, file.disk.file, queue);
    this.#places = new ProtectedPlaces(file.image, this.#header.keepsBitmaps);
    this.#isPrepared = !this.#header.needsClearing(this.#keepsRaw);
    this.refcounts = new Refcounts(file, this.#places, {
      wantBlock: (cluster) => this.#wantBlock(cluster),
      wantWrites: () => this.#wantCommit(),
      overlap: (index) => this.#foundOverlap(index),
    });
    const refcounts = this.refcounts;
    this.#countLoader = new SliceLoader({
      context,
      cache: refcounts.cache,
      file: file.disk.file,
      flights,
      waiting: parts.waiting,
      loaded: (errno) => this.#countsLoaded(errno),
    });
    refcounts.loader = this.#countLoader;
    this.#blockMaker = new BlockMaker({
      file,
      refcounts,
      header: this.#header,
      places: this.#places,
      queue,
      owner: {
        blocksMade: (errno) => this.#blocksMade(errno),
        oldTable: (cluster, count) => {
          for (let i = 0; i < count && this.drops.hasSpareRoom; i++) this.drops.add(cluster + i);
        },
      },
    });
    this.drops = new Drops({ file, refcounts, flights, changed: () => this.changed() });
    this.#tables = new Tables({
      context,
      file,
      map,
      refcounts,
      buffers,
      owner: {
        tableWritten: () => {
          this.#mayRetry = true;
          this.#wantCommit();
          owner.buffersFree();
        },
        unused: (cluster) => {
          if (this.drops.hasSpareRoom) this.drops.add(cluster);
        },
      },
    });
    this.#tables.failPieces = (first, errno) => this.#failAll(first, errno);
    this.#committer = new Committer({
      file,
      map,
      records,
      entries: new EntryWriter({ map, records, file, drops: this.drops }),
      refcounts,
      tables: this.#tables,
      drops: this.drops,
      queue,
      owner: {
        committed: (record, errno) => owner.committed(record, errno),
        tableCommitted: (job, errno, isInFile) => this.#tableCommitted(job, errno, isInFile),
        commitEnded: (errno) => this.#commitEnded(errno),
      },
    });
  }

  get #keepsRaw(): boolean {
    return this.#file.image.dataFile?.raw === true;
  }

  get faults(): FaultOwner {
    return this.#context.faults;
  }

  // ---- what changes need ----------------------------------------------------------------------

  /** Whether nothing can be written just now: the piece waits, or has ended. */
  mustStarve(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
  ): boolean {
    if (this.isBroken) {
      this.#sink.pieceDone(slot, count, Errno.EIO);
      return true;
    }
    if (this.#isPrepared) return false;
    this.starve(kind, slot, sector, count, memorySector);
    if (!this.#isPreparing) {
      this.#isPreparing = true;
      this.#header.clearAutoclear(this.#keepsRaw, (errno) => {
        if (errno !== 0) return this.#prepared(errno);
        this.#context.queue.sync(this.#file.disk.file, this.#prepareOwner, 0);
      });
    }
    return true;
  }

  #prepared(errno: number): void {
    this.#isPreparing = false;
    this.#isPrepared = errno === 0;
    if (errno !== 0) return this.#failAll(this.#starved.takeAll(0), errno);
    this.changed();
  }

  /** Lets a piece wait for anything that may change. */
  starve(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
  ): void {
    const { pieces } = this.#context;
    pieces.append(this.#starved, 0, pieces.take(kind, slot, sector, count, memorySector));
  }

  /**
   * The byte of the map's cache with the entry of a cluster that is to change, in a table that may be
   * changed; -1 when the piece waits, or has ended.
   */
  entryToChange(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    cluster: number,
  ): number {
    const { pieces } = this.#context;
    const slice = this.#map.sliceOf(cluster);
    const table = this.#map.tableOf(slice);
    // A table that is not there is made, and one that a snapshot shares is copied and loses a reference.
    const place = this.#map.tableSector(table);
    const isLost = this.#file.isTableMissing(table) || (place !== 0 && !this.#isPlace(place));
    if (isLost) {
      this.#sink.pieceDone(slot, count, Errno.EIO);
      return NONE;
    }
    if (place === 0 || !this.#map.isOwnTable(table)) {
      const job = this.#tables.want(table);
      if (job < NONE) this.#sink.pieceDone(slot, count, NONE - job);
      else if (job === NONE) this.starve(kind, slot, sector, count, memorySector);
      else {
        const piece = pieces.take(kind, slot, sector, count, memorySector);
        pieces.append(this.#tables.waiting, job, piece);
      }
      return NONE;
    }
    const entry = this.loader.entryFor(slice, this.#map.sliceSector(slice));
    if (!this.loader.mustWait(entry)) return this.#map.entryAt(entry, cluster);
    this.loader.wait(pieces.take(kind, slot, sector, count, memorySector), entry);
    return NONE;
  }

  /**
   * Whether a standard cluster may change: what its entry names is a place that a cluster can have.
   * Otherwise the image is marked as corrupt. What is missing of it at the end of the file is added.
   *
   * @param at The byte of the map's cache with its entry.
   */
  mayChange(at: number, cluster: number): boolean {
    if (!this.#map.hasSoundPlace(at, cluster)) return this.#foundOverlap(NONE);
    const place = this.#map.sectorAt(at);
    if (this.#file.hasDataFile || place === 0) return true;
    const { clusterSectors } = this.#file;
    const overlap = this.#places.overlap(place, clusterSectors);
    if (overlap !== NONE) return this.#foundOverlap(overlap);
    const hostCluster = place / clusterSectors;
    // The file may be longer than what was given out takes; a close cuts it there.
    const isInFile = place < this.#file.endSector && !this.#file.isUntouched(hostCluster);
    return isInFile || this.#file.reach(hostCluster);
  }

  /** Whether a cluster of the file may be written; otherwise the image is marked as corrupt. */
  #isPlace(place: number): boolean {
    const { clusterSectors } = this.#file;
    if (this.#map.inCluster(place) !== 0) return this.#foundOverlap(NONE);
    const overlap = this.#places.overlap(place, clusterSectors);
    return overlap === NONE || this.#foundOverlap(overlap);
  }

  /** A place that is to be written is not one of data. Returns false. */
  #foundOverlap(index: number): false {
    if (this.isBroken) return false;
    this.isBroken = true;
    const what = index === NONE ? "a place that is no cluster" : this.#places.nameOf(index);
    this.#context.log(
      `${this.#file.disk.path} is marked as corrupt and not written any more: its tables lead into ` +
        `${what}; mend it by qemu-img check -r all`,
    );
    this.#header.markCorrupt(() => this.changed());
    this.changed();
    return false;
  }

  /** All data of a record is written: its entry goes to the file with the next commit. */
  makeReady(record: number): void {
    this.#committer.add(record);
    this.#wantCommit();
  }

  #end(piece: number, errno: number): void {
    const { pieces } = this.#context;
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    pieces.give(piece);
    this.#sink.pieceDone(slot, count, errno);
  }

  #failAll(first: number, errno: number): void {
    for (let piece = first; piece !== NONE;) {
      const next = this.#context.pieces.next(piece);
      this.#end(piece, errno);
      piece = next;
    }
  }

  // ---- what waits for what --------------------------------------------------------------------

  /** Something may have become free: what waits is looked at again. */
  changed(): void {
    this.#mayRetry = true;
    this.#context.deferral.add(this);
  }

  #wantCommit(): void {
    this.#isStalled = false;
    // At the end of a commit everything is looked at again.
    if (!this.#committer.busy) this.#context.deferral.add(this);
  }

  #wantBlock(cluster: number): void {
    this.#blockWanted = cluster;
    this.#context.deferral.add(this);
  }

  #blocksMade(errno: number): void {
    this.#blockWanted = NONE;
    if (errno !== 0) this.#failAll(this.#starved.takeAll(0), errno);
    this.changed();
  }

  #countsLoaded(errno: number): void {
    if (errno !== 0) {
      this.drops.giveUpNext();
      if (this.#isEmptying) this.#loseReserve(errno);
      this.#failAll(this.#starved.takeAll(0), errno);
    }
    this.changed();
  }

  #tableCommitted(job: number, errno: number, isInFile: boolean): void {
    const first = errno === 0 ? this.#tables.waiting.takeAll(job) : NONE;
    this.#tables.committed(job, errno, isInFile);
    for (let piece = first; piece !== NONE;) {
      const next = this.#context.pieces.next(piece);
      this.#waiting.resume(piece);
      piece = next;
    }
  }

  #commitEnded(errno: number): void {
    this.#isStalled = errno !== 0;
    if (errno !== 0 && this.#isEmptying) this.#loseReserve(errno);
    else if (errno !== 0) {
      this.#failAll(this.#starved.takeAll(0), errno);
      this.#lastError = errno;
    }
    this.changed();
  }

  /** Takes the references of the reserve away, when nothing else is left to be written. */
  #emptyReserve(): void {
    const { reserve } = this.refcounts;
    if (reserve.count === 0) return;
    if (this.isBroken || this.#lastError !== 0) return reserve.forget();
    if (!this.#committer.isIdle || !this.drops.isIdle) return;
    this.#isEmptying = true;
    this.refcounts.emptyReserve();
  }

  /** The references of the reserve stay. This fails no close: they waste a little of the file's length. */
  #loseReserve(errno: number): void {
    this.#isReserveLost = true;
    this.refcounts.reserve.forget();
    this.#context.log(
      `${this.#file.disk.path} keeps references to clusters that were not used ` +
        `(${errnoName(errno)}); td-util check --repair takes them away`,
    );
  }

  runDeferred(): void {
    if (this.#context.faults.failed) return;
    this.drops.run();
    if (this.#idle !== null) this.#emptyReserve();
    if (this.#mayRetry) {
      this.#mayRetry = false;
      for (let piece = this.#starved.takeAll(0); piece !== NONE;) {
        const next = this.#context.pieces.next(piece);
        this.#waiting.resume(piece);
        piece = next;
      }
      this.loader.retryStarved();
    }
    if (this.#blockWanted !== NONE && !this.#blockMaker.isBusy) {
      const cluster = this.#blockWanted;
      this.#blockWanted = NONE;
      this.#blockMaker.start(cluster);
    }
    if (!this.#isStalled || this.#committer.hasRequests) this.#committer.start();
    this.#checkIdle();
  }

  /**
   * Calls back when nothing is under way any more; no request may be.
   *
   * @param done Gets the error of the last commit: references may be in the file that nothing has.
   */
  whenIdle(done: (errno: number) => void): void {
    this.#idle = done;
    this.#lastError = 0;
    this.#isEmptying = false;
    this.#isReserveLost = false;
    this.#isStalled = false;
    this.changed();
  }

  #checkIdle(): void {
    const done = this.#idle;
    if (done === null) return;
    // What cannot be written stays: references that nothing has.
    const isDone = this.#lastError !== 0 || this.isBroken || this.#isReserveLost ||
      (this.#committer.isIdle && this.drops.isIdle && this.refcounts.reserve.count === 0);
    const isIdle = isDone && !this.#committer.busy && this.#tables.isIdle && this.#header.isIdle &&
      !this.#blockMaker.isBusy && this.#records.used === 0 && this.#countLoader.isIdle &&
      this.loader.isIdle;
    if (!isIdle) return;
    this.#idle = null;
    done(this.#lastError);
  }

  /** Gives back what it holds; it must be idle. */
  release(): void {
    this.#committer.release();
    this.#blockMaker.release();
    this.refcounts.release();
    this.#header.release();
    this.#context.queue.release(OPERATIONS);
  }
}
