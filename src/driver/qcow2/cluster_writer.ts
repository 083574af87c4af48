import { Errno } from "../../../ffi/errno.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import type { ImageContext, ImageCounts, ImageDriver, RequestSink } from "../driver.ts";
import { PieceKind } from "../pieces.ts";
import { type ClusterMap, Held } from "./cluster_map.ts";
import { Copier } from "./copier.ts";
import { CopyBuffers } from "./copy_buffers.ts";
import type { Decompressor } from "./decompressor.ts";
import { FlightOwners, type Flights } from "./flights.ts";
import { Metadata } from "./metadata.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { WAIT } from "./refcounts.ts";
import { Change, MOST_RECORDS, Records } from "./records.ts";
import type { SliceLoader, WaitingPieces } from "./slice_loader.ts";

const NONE = -1;

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
export class ClusterWriter {
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: Qcow2File;
  readonly #map: ClusterMap;
  readonly #counts: ImageCounts;
  readonly #waiting: WaitingPieces;
  readonly #hasParent: boolean;
  readonly #hasZeroEntries: boolean;
  readonly #flights: Flights;
  readonly #directOwners: FlightOwners;
  readonly #records = new Records();
  readonly #buffers: CopyBuffers;
  readonly #metadata: Metadata;
  /** Takes the ends of pieces of the image below. */
  readonly copier: Copier;
  readonly #dataOwner: IoOwner = { ioDone: (piece, _n, errno) => this.#dataDone(piece, errno) };

  /** Throws `SystemError` EBUSY when the process serves too many images. */
  constructor(parts: WriterParts) {
    const { context, file, map, flights } = parts;
    this.#context = context;
    this.#sink = parts.sink;
    this.#file = file;
    this.#map = map;
    this.#counts = parts.counts;
    this.#waiting = parts.waiting;
    this.#hasParent = parts.hasParent;
    this.#hasZeroEntries = file.image.header.version >= 3;
    this.#flights = flights;
    this.#directOwners = new FlightOwners(flights, {
      ioDone: (slot, sectors, errno) => this.#sink.pieceDone(slot, sectors, errno),
    });
    const records = this.#records;
    this.#buffers = new CopyBuffers(file.clusterSectors);
    try {
      this.#metadata = new Metadata({
        context,
        sink: parts.sink,
        file,
        map,
        loader: parts.loader,
        flights,
        records,
        buffers: this.#buffers,
        waiting: parts.waiting,
        owner: {
          committed: (record, errno) => this.#committed(record, errno),
          buffersFree: () => this.copier.buffersFree(),
        },
      });
    } catch (error) {
      this.#buffers.release();
      throw error;
    }
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
  }

  get #keepsRaw(): boolean {
    return this.#file.image.dataFile?.raw === true;
  }

  // ---- requests -------------------------------------------------------------------------------

  /** Writes sectors of one cluster. */
  write(slot: number, sector: number, count: number, memorySector: number): void {
    const { clusterSectors } = this.#file;
    const cluster = this.#map.clusterOf(sector);
    if (this.#metadata.mustStarve(PieceKind.Write, slot, sector, count, memorySector)) return;
    const record = this.#records.find(cluster);
    if (record !== NONE) return this.#join(record, slot, sector, count, memorySector);
    const at = this.#metadata.entryToChange(
      PieceKind.Write,
      slot,
      sector,
      count,
      memorySector,
      cluster,
    );
    if (at < 0) return;
    if (this.#map.isBlank(at)) {
      return this.#giveMemory(at, slot, sector, count, memorySector, cluster);
    }
    if (!this.#mayChange(at, cluster)) return this.#sink.pieceDone(slot, count, Errno.EIO);
    const first = sector - cluster * clusterSectors;
    if (this.#isInPlace(at, first, first + count)) {
      return this.#writeInPlace(at, slot, first, count, memorySector);
    }
    this.#giveMemory(at, slot, sector, count, memorySector, cluster);
  }

  /** The places of compressed clusters are looked at when they lose their references. */
  #mayChange(at: number, cluster: number): boolean {
    return this.#map.heldAt(at, 0) === Held.Compressed || this.#metadata.mayChange(at, cluster);
  }

  /**
   * Whether a range of a cluster has data at a place that only it refers to, and the file surely has
   * the entry.
   */
  #isInPlace(at: number, first: number, end: number): boolean {
    if (!this.#map.isOwn(at) || this.#map.cache.isUncertain(at)) return false;
    const { subclusterSectors } = this.#map.geometry;
    const last = Math.ceil(end / subclusterSectors);
    for (let sub = Math.floor(first / subclusterSectors); sub < last; sub++) {
      if (this.#map.heldAt(at, sub) !== Held.Data) return false;
    }
    return true;
  }

  #writeInPlace(at: number, slot: number, first: number, count: number, memory: number): void {
    this.#counts.writtenSectors += count;
    this.#context.queue.write(
      this.#file.data.file,
      this.#map.sectorAt(at) + first,
      count,
      memory,
      this.#flights.begin(this.#directOwners),
      slot,
    );
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
      return this.#metadata.starve(PieceKind.Write, slot, sector, count, memory);
    }
    const hasPlace = this.#map.heldAt(at, 0) !== Held.Compressed && this.#map.isOwn(at) &&
      this.#map.sectorAt(at) !== 0;
    const { hasDataFile, clusterSectors } = this.#file;
    let place = hasDataFile ? cluster * clusterSectors : this.#map.sectorAt(at);
    let isUntouched = false;
    let isReserved = false;
    if (!hasPlace && !hasDataFile) {
      const host = this.#metadata.refcounts.allocate();
      if (host === WAIT) return this.#metadata.starve(PieceKind.Write, slot, sector, count, memory);
      if (host < WAIT) return this.#sink.pieceDone(slot, count, WAIT - host);
      place = host * clusterSectors;
      isUntouched = this.#metadata.refcounts.lastWasUntouched;
      isReserved = this.#metadata.refcounts.lastWasReserved;
    }
    const record = records.take(cluster, Change.Data);
    const isNew = !hasPlace && !hasDataFile;
    records.place[record] = place;
    records.slot[record] = slot;
    records.isNew[record] = isNew ? 1 : 0;
    records.dropsOld[record] = isNew ? 1 : 0;
    const first = sector - cluster * clusterSectors;
    this.#setRange(record, at, first, first + count, isNew);
    this.#pin(record, at);
    records.isOpen[record] = isUntouched && this.#isEmpty(at, cluster) ? 1 : 0;
    records.isHole[record] = isReserved ? records.isOpen[record] : 0;
    const needsCopy = records.isOpen[record] === 0 &&
      (records.headStart[record] < records.headEnd[record] ||
        records.tailStart[record] < records.tailEnd[record]);
    if (needsCopy) records.left[record]++;
    const { pieces } = this.#context;
    const piece = pieces.take(PieceKind.Write, slot, sector, count, memory);
    this.#writeData(record, piece);
    if (needsCopy) this.copier.start(record, isUntouched);
  }

  /** Keeps the slice in memory that has a record's entry, which is at a byte of the map's cache. */
  #pin(record: number, at: number): void {
    const entry = this.#map.sliceAt(at);
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
    // A subcluster that has data at this place keeps it. Other writes to it may be under way, which
    // copying it onto itself would undo.
    const keepsHead = !isNew && this.#map.heldAt(at, firstSub) === Held.Data;
    const keepsTail = !isNew && this.#map.heldAt(at, endSub - 1) === Held.Data;
    records.headStart[record] = keepsHead ? first : firstSub * subclusterSectors;
    records.headEnd[record] = first;
    records.tailStart[record] = end;
    const tailEnd = Math.min(clusterSectors, endSub * subclusterSectors);
    // A data file may have no room behind the end of the disk.
    const diskEnd = this.#diskSectors - records.cluster[record] * clusterSectors;
    const mostEnd = this.#file.hasDataFile ? Math.min(tailEnd, diskEnd) : tailEnd;
    records.tailEnd[record] = keepsTail ? end : mostEnd;
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
    const error = this.#metadata.isBroken ? Errno.EIO : records.error[record];
    if (error !== 0) return this.#committed(record, error);
    this.#metadata.makeReady(record);
  }

  #committed(record: number, errno: number): void {
    const records = this.#records;
    const { pieces } = this.#context;
    // The place was never named, and all writes to it have ended.
    if (errno !== 0 && records.isNew[record] === 1 && this.#metadata.drops.hasSpareRoom) {
      this.#metadata.drops.add(records.place[record] / this.#file.clusterSectors);
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
    this.#metadata.changed();
  }

  #end(piece: number, errno: number): void {
    const { pieces } = this.#context;
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    pieces.give(piece);
    this.#sink.pieceDone(slot, count, errno);
  }

  // ---- zeros ----------------------------------------------------------------------------------

  /**
   * Makes sectors of one cluster zero, or, for `PieceKind.Discard`, frees them if that is all of the
   * cluster.
   */
  clear(kind: number, slot: number, sector: number, count: number): void {
    const { clusterSectors } = this.#file;
    const cluster = this.#map.clusterOf(sector);
    if (this.#metadata.mustStarve(kind, slot, sector, count, 0)) return;
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
      const entry = this.#metadata.loader.entryFor(slice, this.#map.sliceSector(slice));
      if (this.#metadata.loader.mustWait(entry)) {
        return this.#metadata.loader.wait(
          this.#context.pieces.take(kind, slot, sector, count, 0),
          entry,
        );
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

  /** Whether sectors of a cluster are zero, and surely in the file, too. */
  #isZero(at: number, sector: number, first: number, end: number): boolean {
    if (this.#map.cache.isUncertain(at)) return false;
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
    if (this.#records.used === MOST_RECORDS) {
      return this.#metadata.starve(kind, slot, sector, count, 0);
    }
    const at = this.#metadata.entryToChange(kind, slot, sector, count, 0, cluster);
    if (at < 0) return;
    if (!this.#mayChange(at, cluster)) return this.#sink.pieceDone(slot, count, Errno.EIO);
    const change = this.#hasParent ? Change.Zeros : Change.Nothing;
    const record = this.#records.take(cluster, change);
    this.#records.dropsOld[record] = this.#file.hasDataFile ? 0 : 1;
    this.#pin(record, at);
    const { pieces } = this.#context;
    pieces.append(this.#records.pieces, record, pieces.take(kind, slot, sector, count, 0));
    this.#metadata.makeReady(record);
  }

  #writeZeros(slot: number, sector: number, count: number): void {
    const { at, sectors: most } = this.#context.zeros;
    for (let done = 0; done < count; done += most) {
      this.write(slot, sector + done, Math.min(most, count - done), at);
    }
  }

  /** Calls back when nothing is under way any more, with the error of the last commit. */
  whenIdle(done: (errno: number) => void): void {
    this.#metadata.whenIdle(done);
  }

  /** Gives back what it holds; it must be idle. */
  release(): void {
    this.#metadata.release();
    this.#buffers.release();
  }

  /** Puts an open image below. */
  putBelow(below: ImageDriver): void {
    this.copier.below = below;
  }
}
