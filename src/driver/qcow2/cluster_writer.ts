import { assert } from "../../../ffi/assert.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { Deferred } from "../deferral.ts";
import type { ImageContext, ImageCounts, ImageDriver, RequestSink } from "../driver.ts";
import { PieceKind, PieceLists } from "../pieces.ts";
import { BLOCK_MAKER_OPERATIONS, BlockMaker } from "./block_maker.ts";
import { type ClusterMap, Held } from "./cluster_map.ts";
import { Committer, COMMITTER_OPERATIONS } from "./committer.ts";
import { Copier } from "./copier.ts";
import { CopyBuffers } from "./copy_buffers.ts";
import type { Decompressor } from "./decompressor.ts";
import { Drops } from "./drops.ts";
import { EntryWriter } from "./entry_writer.ts";
import { FlightOwners, type Flights } from "./flights.ts";
import { HEADER_OPERATIONS, HeaderWriter } from "./header_writer.ts";
import { ProtectedPlaces } from "./protected_places.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { Refcounts, WAIT } from "./refcounts.ts";
import { Change, MOST_RECORDS, Records } from "./records.ts";
import { LOADER_OPERATIONS, SliceLoader, type WaitingPieces } from "./slice_loader.ts";
import { TABLE_OPERATIONS, Tables } from "./tables.ts";

const NONE = -1;
/** Operations beside those of requests. */
const OPERATIONS = COMMITTER_OPERATIONS + TABLE_OPERATIONS + BLOCK_MAKER_OPERATIONS +
  HEADER_OPERATIONS + LOADER_OPERATIONS + 1;

/** What a writer is made of. */
export interface WriterParts {
  readonly context: ImageContext;
  readonly sink: RequestSink;
  readonly file: Qcow2File;
  readonly map: ClusterMap;
  /** Reads slices of L2 tables. */
  readonly loader: SliceLoader;
  readonly decompressor: Decompressor;
  readonly flights: Flights;
  readonly counts: ImageCounts;
  /** What becomes of pieces that waited. */
  readonly waiting: WaitingPieces;
  /** Whether the image has a parent, also where that is shorter. */
  readonly hasParent: boolean;
}

/**
 * Writes to clusters. A write to a cluster with a place of its own is one write. Any other one gives
 * the cluster a place, and has this order on disk:
 *
 * 1. the data, and around it what the cluster held (`copier.ts`); the reference counts that changed;
 * 2. a sync;
 * 3. the sector of the L2 table that names the place (`committer.ts`).
 *
 * Only then does the request end. A failure at any step ends the requests that needed it; all steps
 * are done again when they are tried again.
 */
export class ClusterWriter implements Deferred {
  deferred = false;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: Qcow2File;
  readonly #map: ClusterMap;
  readonly #loader: SliceLoader;
  readonly #counts: ImageCounts;
  readonly #waiting: WaitingPieces;
  readonly #hasParent: boolean;
  readonly #hasZeroEntries: boolean;
  readonly #flights: Flights;
  readonly #directOwners: FlightOwners;
  readonly #records = new Records();
  readonly #buffers: CopyBuffers;
  readonly #places: ProtectedPlaces;
  readonly #header: HeaderWriter;
  readonly #refcounts: Refcounts;
  readonly #countLoader: SliceLoader;
  readonly #blockMaker: BlockMaker;
  readonly #tables: Tables;
  readonly #drops: Drops;
  readonly #committer: Committer;
  /** Takes the ends of pieces of the image below. */
  readonly copier: Copier;
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
  #isBroken = false;
  #idle: ((errno: number) => void) | null = null;
  /** The error of the last commit since the image is being closed. */
  #lastError = 0;
  readonly #dataOwner: IoOwner = { ioDone: (piece, _n, errno) => this.#dataDone(piece, errno) };
  readonly #prepareOwner: IoOwner = { ioDone: (_t, _n, errno) => this.#prepared(errno) };

  /** Throws `SystemError` EBUSY when the process serves too many images. */
  constructor(parts: WriterParts) {
    const { context, file, map, flights } = parts;
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
    this.#loader = parts.loader;
    this.#counts = parts.counts;
    this.#waiting = parts.waiting;
    this.#hasParent = parts.hasParent;
    this.#hasZeroEntries = file.image.header.version >= 3;
    this.#flights = flights;
    this.#directOwners = new FlightOwners(flights, {
      ioDone: (slot, sectors, errno) => this.#sink.pieceDone(slot, sectors, errno),
    });
    const { queue } = context;
    const records = this.#records;
    this.#buffers = new CopyBuffers(file.clusterSectors);
    this.#places = new ProtectedPlaces(file.image);
    this.#header = new HeaderWriter(file.image, file.disk.file, queue);
    this.#isPrepared = !this.#header.needsClearing(this.#keepsRaw);
    this.#refcounts = new Refcounts(file, this.#places, {
      wantBlock: (cluster) => this.#wantBlock(cluster),
      wantWrites: () => this.#wantCommit(),
      overlap: (index) => this.#foundOverlap(index),
    });
    const refcounts = this.#refcounts;
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
          for (let i = 0; i < count && this.#drops.room > 0; i++) this.#drops.add(cluster + i);
        },
      },
    });
    this.#drops = new Drops({ file, refcounts, flights, changed: () => this.#changed() });
    this.#tables = new Tables({
      context,
      file,
      map,
      refcounts,
      buffers: this.#buffers,
      owner: {
        tableWritten: () => {
          this.#mayRetry = true;
          this.#wantCommit();
          this.copier.buffersFree();
        },
      },
    });
    this.#tables.failPieces = (first, errno) => this.#failAll(first, errno);
    this.copier = new Copier({
      context,
      sink: parts.sink,
      file,
      map,
      records,
      buffers: this.#buffers,
      decompressor: parts.decompressor,
      owner: { copied: (record, errno) => this.#stepDone(record, errno) },
    });
    this.#committer = new Committer({
      file,
      map,
      records,
      entries: new EntryWriter({ map, records, file, drops: this.#drops }),
      refcounts,
      tables: this.#tables,
      drops: this.#drops,
      queue,
      owner: {
        committed: (record, errno) => this.#committed(record, errno),
        tableCommitted: (job, errno) => this.#tableCommitted(job, errno),
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

  // ---- requests -------------------------------------------------------------------------------

  /** Writes sectors of one cluster. */
  write(slot: number, sector: number, count: number, memorySector: number): void {
    const { clusterSectors } = this.#file;
    const cluster = Math.floor(sector / clusterSectors);
    if (this.#mustStarve(PieceKind.Write, slot, sector, count, memorySector)) return;
    const record = this.#records.find(cluster);
    if (record !== NONE) return this.#join(record, slot, sector, count, memorySector);
    const at = this.#entryToChange(PieceKind.Write, slot, sector, count, memorySector, cluster);
    if (at < 0) return;
    const first = sector - cluster * clusterSectors;
    if (this.#isInPlace(at, first, first + count)) {
      return this.#writeInPlace(at, slot, first, count, memorySector);
    }
    this.#giveMemory(at, slot, sector, count, memorySector, cluster);
  }

  /** Whether nothing can be written just now: the piece waits, or has ended. */
  #mustStarve(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
  ): boolean {
    if (this.#isBroken) {
      this.#sink.pieceDone(slot, count, Errno.EIO);
      return true;
    }
    if (this.#isPrepared) return false;
    this.#starve(kind, slot, sector, count, memorySector);
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
    this.#changed();
  }

  #starve(
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
  #entryToChange(
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
    if (!this.#map.isOwnTable(table)) {
      const job = this.#tables.want(table);
      if (job < NONE) this.#sink.pieceDone(slot, count, NONE - job);
      else if (job === NONE) this.#starve(kind, slot, sector, count, memorySector);
      else {
        const piece = pieces.take(kind, slot, sector, count, memorySector);
        pieces.append(this.#tables.waiting, job, piece);
      }
      return NONE;
    }
    const entry = this.#loader.entryFor(slice, this.#map.sliceSector(slice));
    if (!this.#loader.mustWait(entry)) return this.#map.entryAt(entry, cluster);
    this.#loader.wait(pieces.take(kind, slot, sector, count, memorySector), entry);
    return NONE;
  }

  /** Whether a range of a cluster has data at a place that only it refers to. */
  #isInPlace(at: number, first: number, end: number): boolean {
    if (!this.#map.isOwn(at)) return false;
    const { subclusterSectors } = this.#map.geometry;
    const last = Math.ceil(end / subclusterSectors);
    for (let sub = Math.floor(first / subclusterSectors); sub < last; sub++) {
      if (this.#map.heldAt(at, sub) !== Held.Data) return false;
    }
    return true;
  }

  #writeInPlace(at: number, slot: number, first: number, count: number, memory: number): void {
    const place = this.#map.sectorAt(at);
    if (!this.#mayWrite(place)) return this.#sink.pieceDone(slot, count, Errno.EIO);
    this.#counts.writtenSectors += count;
    this.#context.queue.write(
      this.#file.data.file,
      place + first,
      count,
      memory,
      this.#flights.begin(this.#directOwners),
      slot,
    );
  }

  /** Whether a cluster may be written; otherwise the image is marked as corrupt. */
  #mayWrite(place: number): boolean {
    if (this.#file.hasDataFile) return true;
    const { clusterSectors } = this.#file;
    if (place % clusterSectors !== 0) return this.#foundOverlap(NONE);
    const overlap = this.#places.overlap(place, clusterSectors);
    return overlap === NONE || this.#foundOverlap(overlap);
  }

  /** A place that is to be written is not one of data. Returns false. */
  #foundOverlap(index: number): false {
    if (this.#isBroken) return false;
    this.#isBroken = true;
    const what = index === NONE ? "a place that is no cluster" : this.#places.nameOf(index);
    this.#context.log(
      `${this.#file.disk.path} is marked as corrupt and not written any more: its tables would put ` +
        `data into ${what}; mend it by qemu-img check -r all`,
    );
    this.#header.markCorrupt();
    return false;
  }

  /** A write to a cluster that is changing: goes with the change, or waits for its end. */
  #join(record: number, slot: number, sector: number, count: number, memory: number): void {
    const { pieces } = this.#context;
    const piece = pieces.take(PieceKind.Write, slot, sector, count, memory);
    const records = this.#records;
    const isOpen = records.isOpen[record] === 1 && records.left[record] > 0 &&
      records.error[record] === 0;
    if (!isOpen) return pieces.append(records.waiting, record, piece);
    this.#writeData(record, piece);
  }

  #writeData(record: number, piece: number): void {
    const { pieces, queue } = this.#context;
    const records = this.#records;
    pieces.entry[piece] = record;
    records.left[record]++;
    const count = pieces.count[piece];
    this.#counts.writtenSectors += count;
    const first = pieces.sector[piece] - records.cluster[record] * this.#file.clusterSectors;
    queue.write(
      this.#file.data.file,
      records.place[record] + first,
      count,
      pieces.memory[piece],
      this.#dataOwner,
      piece,
    );
  }

  // ---- changes with data ----------------------------------------------------------------------

  /** Starts a change that gives sectors a place. */
  #giveMemory(
    at: number,
    slot: number,
    sector: number,
    count: number,
    memory: number,
    cluster: number,
  ): void {
    const records = this.#records;
    if (records.used === MOST_RECORDS) {
      return this.#starve(PieceKind.Write, slot, sector, count, memory);
    }
    const hasPlace = this.#map.heldAt(at, 0) !== Held.Compressed && this.#map.isOwn(at) &&
      this.#map.sectorAt(at) !== 0;
    const { hasDataFile, clusterSectors } = this.#file;
    let place = hasDataFile ? cluster * clusterSectors : this.#map.sectorAt(at);
    let isUntouched = false;
    if (!hasPlace && !hasDataFile) {
      const host = this.#refcounts.allocate();
      if (host === WAIT) return this.#starve(PieceKind.Write, slot, sector, count, memory);
      if (host < WAIT) return this.#sink.pieceDone(slot, count, WAIT - host);
      place = host * clusterSectors;
      isUntouched = this.#refcounts.lastWasUntouched;
    } else if (!this.#mayWrite(place)) return this.#sink.pieceDone(slot, count, Errno.EIO);
    const record = records.take(cluster, Change.Data);
    const isNew = !hasPlace && !hasDataFile;
    records.place[record] = place;
    records.slot[record] = slot;
    records.isNew[record] = isNew ? 1 : 0;
    records.dropsOld[record] = isNew ? 1 : 0;
    const first = sector - cluster * clusterSectors;
    this.#setRange(record, at, first, first + count, isNew);
    this.#pin(record, cluster);
    records.isOpen[record] = isUntouched && this.#isEmpty(at, cluster) ? 1 : 0;
    const needsCopy = records.isOpen[record] === 0 &&
      (records.headStart[record] < records.headEnd[record] ||
        records.tailStart[record] < records.tailEnd[record]);
    if (needsCopy) records.left[record]++;
    const { pieces } = this.#context;
    const piece = pieces.take(PieceKind.Write, slot, sector, count, memory);
    this.#writeData(record, piece);
    if (needsCopy) this.copier.start(record, isUntouched);
  }

  #pin(record: number, cluster: number): void {
    const entry = this.#map.cache.find(this.#map.sliceOf(cluster));
    assert(entry !== NONE, "A cluster changes whose entry is not in memory");
    this.#records.slice[record] = entry;
    this.#map.cache.pin(entry);
  }

  /** What of a cluster gets data: the range, and around it whole subclusters, or all of it. */
  #setRange(record: number, at: number, first: number, end: number, isNew: boolean): void {
    const records = this.#records;
    const { subclusterSectors, hasSubclusters } = this.#map.geometry;
    const { clusterSectors } = this.#file;
    const isWhole = !hasSubclusters || (isNew && this.#hasOldPlace(at));
    const firstSub = isWhole ? 0 : Math.floor(first / subclusterSectors);
    const endSub = isWhole ? this.#map.geometry.subclusters : Math.ceil(end / subclusterSectors);
    records.headStart[record] = firstSub * subclusterSectors;
    records.headEnd[record] = first;
    records.tailStart[record] = end;
    records.tailEnd[record] = Math.min(clusterSectors, endSub * subclusterSectors);
    let bits = 0;
    for (let sub = firstSub; sub < endSub; sub++) bits |= 1 << sub;
    records.subclusters[record] = bits;
  }

  #hasOldPlace(at: number): boolean {
    return this.#map.heldAt(at, 0) === Held.Compressed || this.#map.sectorAt(at) !== 0;
  }

  /** Whether all of a cluster reads as zeros, and has no place. Not with subclusters. */
  #isEmpty(at: number, cluster: number): boolean {
    if (this.#map.geometry.hasSubclusters || this.#hasOldPlace(at)) return false;
    if (this.#map.heldAt(at, 0) === Held.Zeros) return true;
    return !this.showsBelow(cluster * this.#file.clusterSectors);
  }

  /** Whether something below shows through at a sector. */
  showsBelow(sector: number): boolean {
    const { below } = this.copier;
    return below !== null && sector < below.sectors;
  }

  #dataDone(piece: number, errno: number): void {
    const { pieces } = this.#context;
    const record = pieces.entry[piece];
    pieces.append(this.#records.pieces, record, piece);
    this.#stepDone(record, errno);
  }

  #stepDone(record: number, errno: number): void {
    const records = this.#records;
    if (errno !== 0 && records.error[record] === 0) records.error[record] = errno;
    if (--records.left[record] > 0) return;
    const error = this.#isBroken ? Errno.EIO : records.error[record];
    if (error !== 0) return this.#committed(record, error);
    this.#makeReady(record);
  }

  #makeReady(record: number): void {
    this.#committer.add(record);
    this.#wantCommit();
  }

  #committed(record: number, errno: number): void {
    const records = this.#records;
    const { pieces } = this.#context;
    // The place was never named, and all writes to it have ended.
    if (errno !== 0 && records.isNew[record] === 1 && this.#drops.room > 0) {
      this.#drops.add(records.place[record] / this.#file.clusterSectors);
    }
    this.#map.cache.unpin(records.slice[record]);
    let ended = records.pieces.takeAll(record);
    let waiting = records.waiting.takeAll(record);
    records.give(record);
    while (ended !== NONE) {
      const next = pieces.next(ended);
      this.#end(ended, errno);
      ended = next;
    }
    while (waiting !== NONE) {
      const next = pieces.next(waiting);
      this.#waiting.resume(waiting);
      waiting = next;
    }
    this.#changed();
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

  // ---- zeros ----------------------------------------------------------------------------------

  /**
   * Makes sectors of one cluster zero, or, for `PieceKind.Discard`, frees them if that is all of the
   * cluster.
   */
  clear(kind: number, slot: number, sector: number, count: number): void {
    const { clusterSectors } = this.#file;
    const cluster = Math.floor(sector / clusterSectors);
    if (this.#mustStarve(kind, slot, sector, count, 0)) return;
    const record = this.#records.find(cluster);
    if (record !== NONE) {
      const { pieces } = this.#context;
      const piece = pieces.take(kind, slot, sector, count, 0);
      return pieces.append(this.#records.waiting, record, piece);
    }
    const first = sector - cluster * clusterSectors;
    const isWhole = first === 0 &&
      (count === clusterSectors || sector + count === this.#diskSectors);
    if (kind === PieceKind.Discard && !isWhole) return this.#sink.pieceDone(slot, count, 0);
    const slice = this.#map.sliceOf(cluster);
    const isThere = this.#map.sliceSector(slice) !== 0;
    if (!isThere && !this.showsBelow(sector)) return this.#sink.pieceDone(slot, count, 0);
    if (isThere) {
      const entry = this.#loader.entryFor(slice, this.#map.sliceSector(slice));
      if (this.#loader.mustWait(entry)) {
        return this.#loader.wait(this.#context.pieces.take(kind, slot, sector, count, 0), entry);
      }
      if (this.#isZero(this.#map.entryAt(entry, cluster), sector, first, first + count)) {
        return this.#sink.pieceDone(slot, count, 0);
      }
    }
    this.#clearHeld(kind, slot, sector, count, cluster, isWhole);
  }

  get #diskSectors(): number {
    return Math.ceil(this.#file.image.sizeBytes / 512);
  }

  #isZero(at: number, sector: number, first: number, end: number): boolean {
    const { subclusterSectors } = this.#map.geometry;
    const last = Math.ceil(end / subclusterSectors);
    const shows = this.showsBelow(sector);
    for (let sub = Math.floor(first / subclusterSectors); sub < last; sub++) {
      const held = this.#map.heldAt(at, sub);
      if (held === Held.Zeros || (held === Held.Nothing && !shows)) continue;
      return false;
    }
    return true;
  }

  #clearHeld(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    cluster: number,
    isWhole: boolean,
  ): void {
    const canMark = isWhole && !this.#keepsRaw && (this.#hasZeroEntries || !this.#hasParent);
    if (!canMark && kind === PieceKind.Discard) return this.#sink.pieceDone(slot, count, 0);
    if (!canMark) return this.#writeZeros(slot, sector, count);
    if (this.#records.used === MOST_RECORDS) return this.#starve(kind, slot, sector, count, 0);
    const at = this.#entryToChange(kind, slot, sector, count, 0, cluster);
    if (at < 0) return;
    const change = this.#hasParent ? Change.Zeros : Change.Nothing;
    const record = this.#records.take(cluster, change);
    this.#records.dropsOld[record] = this.#file.hasDataFile ? 0 : 1;
    this.#pin(record, cluster);
    const { pieces } = this.#context;
    pieces.append(this.#records.pieces, record, pieces.take(kind, slot, sector, count, 0));
    this.#makeReady(record);
  }

  #writeZeros(slot: number, sector: number, count: number): void {
    const { at, sectors: most } = this.#context.zeros;
    for (let done = 0; done < count; done += most) {
      this.write(slot, sector + done, Math.min(most, count - done), at);
    }
  }

  // ---- what waits for what --------------------------------------------------------------------

  #changed(): void {
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
    this.#changed();
  }

  #countsLoaded(errno: number): void {
    if (errno !== 0) {
      this.#drops.giveUpNext();
      this.#failAll(this.#starved.takeAll(0), errno);
    }
    this.#changed();
  }

  #tableCommitted(job: number, errno: number): void {
    const first = errno === 0 ? this.#tables.waiting.takeAll(job) : NONE;
    this.#tables.committed(job, errno);
    for (let piece = first; piece !== NONE;) {
      const next = this.#context.pieces.next(piece);
      this.#waiting.resume(piece);
      piece = next;
    }
  }

  #commitEnded(errno: number): void {
    this.#isStalled = errno !== 0;
    if (errno !== 0) {
      this.#failAll(this.#starved.takeAll(0), errno);
      this.#lastError = errno;
    }
    this.#changed();
  }

  runDeferred(): void {
    if (this.#context.faults.failed) return;
    this.#drops.run();
    if (this.#mayRetry) {
      this.#mayRetry = false;
      for (let piece = this.#starved.takeAll(0); piece !== NONE;) {
        const next = this.#context.pieces.next(piece);
        this.#waiting.resume(piece);
        piece = next;
      }
      this.#loader.retryStarved();
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
    this.#isStalled = false;
    this.#changed();
  }

  #checkIdle(): void {
    const done = this.#idle;
    if (done === null) return;
    // What cannot be written stays: references that nothing has.
    const isDone = this.#lastError !== 0 || (this.#committer.isIdle && this.#drops.isIdle);
    const isIdle = isDone && !this.#committer.busy && this.#tables.isIdle && this.#header.isIdle &&
      !this.#blockMaker.isBusy && this.#records.used === 0 && this.#countLoader.isIdle &&
      this.#loader.isIdle;
    if (!isIdle) return;
    this.#idle = null;
    done(this.#lastError);
  }

  /** Gives back what it holds; it must be idle. */
  release(): void {
    this.#committer.release();
    this.#blockMaker.release();
    this.#refcounts.release();
    this.#header.release();
    this.#buffers.release();
    this.#context.queue.release(OPERATIONS);
  }

  /** Puts an open image below. */
  putBelow(below: ImageDriver): void {
    this.copier.below = below;
  }
}
