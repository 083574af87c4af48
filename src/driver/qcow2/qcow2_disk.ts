import { assert } from "../../../ffi/assert.ts";
import { type Done, Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { copySectors, zeroSectors } from "../../../ffi/memory.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { registerFile } from "../aio.ts";
import {
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SECTORS,
  REQUEST_SLOTS,
  type RequestSink,
  SECTOR_BYTES,
} from "../driver.ts";
import { failPiece } from "../fail_piece.ts";
import { PieceKind } from "../pieces.ts";
import { ClusterMap, Held } from "./cluster_map.ts";
import { ClusterWriter } from "./cluster_writer.ts";
import { Decompressor } from "./decompressor.ts";
import { DeepReads } from "./deep_reads.ts";
import { FlightOwners, Flights } from "./flights.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { SliceLoader } from "./slice_loader.ts";

const MOST_ZERO_SECTORS = 1 << 20;
/** Clusters that one `zero` may change. */
const ZERO_CLUSTERS = 512;

/**
 * The most sectors of one `zero`. Where it has to write zeros, and writes those of a cluster in parts, the
 * first part fills the cluster from the image below: that of many clusters at once would take more
 * operations than there is room for.
 */
function mostZeroSectors(
  { clusterSectors, image: { header, dataFile } }: Qcow2File,
  hasParent: boolean,
  atOnce: number,
): number {
  const mayWrite = hasParent && (header.version < 3 || dataFile?.raw === true);
  if (mayWrite && clusterSectors > atOnce) return clusterSectors;
  return Math.min(MOST_ZERO_SECTORS, ZERO_CLUSTERS * clusterSectors);
}

/**
 * An open QCOW2 image. Cuts every request at the boundaries of clusters, and hands each part on: to
 * the file, to the image below, to the writer of clusters, or to the loader of L2 tables, where it
 * waits.
 */
export class Qcow2Disk implements ImageDriver {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly file: number;
  readonly parent: ImageSpec | null;
  readonly zeroSectors: number;
  readonly fillSectors: number;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: Qcow2File;
  readonly #map: ClusterMap;
  readonly #loader: SliceLoader;
  readonly #decompressor: Decompressor;
  readonly #writer: ClusterWriter | null;
  readonly #flights = new Flights();
  readonly #readOwners: FlightOwners;
  readonly #flushErrors = new Int32Array(REQUEST_SLOTS);
  readonly #flushesLeft = new Uint8Array(REQUEST_SLOTS);
  #below: ImageDriver | null = null;
  /** Of the first of the images of a chain that are only read; null for the others. */
  #deep: DeepReads<Qcow2Disk> | null = null;
  #isOpen = true;
  readonly #flushOwner: IoOwner = { ioDone: (slot, _n, errno) => this.#flushed(slot, errno) };

  constructor(
    { spec, context, sink, file, parent }: {
      spec: ImageSpec;
      context: ImageContext;
      sink: RequestSink;
      file: Qcow2File;
      parent: ImageSpec | null;
    },
  ) {
    this.spec = spec;
    this.parent = parent;
    this.file = file.disk.file;
    this.#context = context;
    this.#sink = sink;
    this.#file = file;
    this.sectors = Math.ceil(file.image.sizeBytes / SECTOR_BYTES);
    this.zeroSectors = mostZeroSectors(file, parent !== null, context.zeros.sectors);
    this.fillSectors = context.zeros.sectors;
    registerFile(file.disk, spec, context);
    if (file.hasDataFile) registerFile(file.data, spec, context);
    const flights = this.#flights;
    const waiting = {
      resume: (piece: number) => this.#resume(piece),
      fail: (piece: number, errno: number) => this.#fail(piece, errno),
    };
    this.#map = new ClusterMap(file.image);
    this.#loader = new SliceLoader({
      context,
      cache: this.#map.cache,
      file: file.disk.file,
      flights,
      waiting,
      isMissing: (slice) => file.isTableMissing(this.#map.tableOf(slice)),
    });
    this.#decompressor = new Decompressor({
      context,
      file,
      map: this.#map,
      flights,
      owner: {
        decompressed: (piece, memory) => this.#decompressed(piece, memory, 0),
        notDecompressed: (piece, errno) => this.#decompressed(piece, 0, errno),
      },
    });
    this.#decompressor.resume = (piece) => this.#resume(piece);
    this.#readOwners = new FlightOwners(flights, {
      ioDone: (slot, sectors, errno) => this.#sink.pieceDone(slot, sectors, errno),
    });
    if (spec.readOnly) {
      this.#deep = new DeepReads({ disk: this, map: this.#map, sectors: this.sectors });
    }
    try {
      this.#writer = spec.readOnly ? null : new ClusterWriter({
        context,
        sink,
        file,
        map: this.#map,
        loader: this.#loader,
        decompressor: this.#decompressor,
        flights,
        counts: this.counts,
        waiting,
        hasParent: parent !== null,
      });
    } catch (error) {
      this.#decompressor.release();
      this.#map.cache.release();
      throw error;
    }
  }

  get sinkBelow(): RequestSink | null {
    return this.#writer === null ? null : this.#writer.copier;
  }

  putBelow(below: ImageDriver): void {
    this.#below = below;
    const deep = below instanceof Qcow2Disk ? below.#deep : null;
    if (below instanceof Qcow2Disk && deep !== null && this.#deep?.takeBelow(deep)) {
      below.#deep = null;
    }
    this.#writer?.putBelow(below);
  }

  operationsFor(sectors: number): number {
    const { clusterSectors } = this.#file;
    const { subclusterSectors } = this.#map.geometry;
    const clusters = Math.floor(sectors / clusterSectors) + 2;
    const zeros = Math.ceil(sectors / this.#context.zeros.sectors);
    const moved = Math.min(sectors, REQUEST_SECTORS);
    const runs = Math.min(moved, Math.floor(moved / subclusterSectors) + 2);
    const own = Math.max(clusters + zeros, runs);
    const below = this.#below;
    if (below === null) return this.#writer === null ? own : own + 2;
    // Each run may be one that the image below cuts again, but all of them together are the sectors.
    const reads = Math.max(own, Math.min(moved, runs + below.operationsFor(moved)));
    if (this.#writer === null) return reads;
    // A write fills what surrounds its data in its first and its last cluster.
    const around = below.operationsFor(Math.min(clusterSectors, REQUEST_SECTORS));
    return reads + 2 * Math.max(1, around);
  }

  // ---- reads ----------------------------------------------------------------------------------

  read(slot: number, sector: number, count: number, memorySector: number): void {
    const { clusterSectors } = this.#file;
    while (count > 0) {
      const part = Math.min(count, clusterSectors - this.#map.inCluster(sector));
      const disk = this.#deep === null ? this : this.#deep.diskOf(sector, part);
      disk.#readCluster(slot, sector, part, memorySector);
      sector += part;
      count -= part;
      memorySector += part;
    }
  }

  #readCluster(slot: number, sector: number, count: number, memorySector: number): void {
    const map = this.#map;
    const cluster = map.clusterOf(sector);
    const slice = map.sliceOf(cluster);
    let entry = map.cache.find(slice);
    if (entry < 0) {
      const place = map.sliceSector(slice);
      if (place === 0) return this.#readBelow(slot, sector, count, memorySector);
      if (!map.hasSoundTable(slice)) return this.#refuse(slot, count);
      entry = this.#loader.entryFor(slice, place);
    }
    if (this.#loader.mustWait(entry)) {
      const piece = this.#context.pieces.take(PieceKind.Read, slot, sector, count, memorySector);
      return this.#loader.wait(piece, entry);
    }
    const at = map.entryAt(entry, cluster);
    if (map.geometry.hasSubclusters) return this.#readRuns(slot, sector, count, memorySector, at);
    this.#readRun(slot, sector, count, memorySector, at, map.heldAt(at, 0));
  }

  /** Reads sectors of the cluster whose entry is at a byte of the map's cache. */
  #readRuns(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    at: number,
  ): void {
    const { subclusterSectors } = this.#map.geometry;
    let inCluster = this.#map.inCluster(sector);
    const end = inCluster + count;
    const last = Math.ceil(end / subclusterSectors);
    while (inCluster < end) {
      const sub = Math.floor(inCluster / subclusterSectors);
      const held = this.#map.heldAt(at, sub);
      const runEnd = (sub + this.#map.runAt(at, sub, last)) * subclusterSectors;
      const run = Math.min(end, runEnd) - inCluster;
      this.#readRun(slot, sector, run, memorySector, at, held);
      inCluster += run;
      sector += run;
      memorySector += run;
    }
  }

  /** Reads sectors of one cluster, all of which the image has in the same way. */
  #readRun(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    at: number,
    held: number,
  ): void {
    if (held === Held.Nothing) return this.#readBelow(slot, sector, count, memorySector);
    if (held === Held.Data) {
      const isSound = this.#map.hasSoundPlace(at, this.#map.clusterOf(sector));
      if (!isSound) return this.#refuse(slot, count);
      return this.#readData(slot, at, this.#map.inCluster(sector), count, memorySector);
    }
    if (held === Held.Zeros) return this.#readZeros(slot, count, memorySector);
    const piece = this.#context.pieces.take(PieceKind.Read, slot, sector, count, memorySector);
    this.#decompressor.get(piece, at);
  }

  #readData(slot: number, at: number, first: number, count: number, memory: number): void {
    const start = this.#map.sectorAt(at) + first;
    const missing = Math.min(count, start + count - this.#file.endSector);
    if (missing > 0) {
      const there = count - missing;
      this.#file.readPastEnd(start + there, missing, memory + there);
      if (there > 0) this.#readData(slot, at, first, there, memory);
      return this.#sink.pieceDone(slot, missing, 0);
    }
    this.counts.readSectors += count;
    this.#context.queue.read(
      this.#file.data.file,
      start,
      count,
      memory,
      this.#flights.begin(this.#readOwners),
      slot,
    );
  }

  /** Ends a part of a request that needs an entry which leads to no cluster. */
  #refuse(slot: number, count: number): void {
    this.#context.log(`${this.spec.path} has an entry that leads to no cluster (EIO)`);
    this.#sink.pieceDone(slot, count, Errno.EIO);
  }

  #readZeros(slot: number, count: number, memorySector: number): void {
    zeroSectors(memorySector, count);
    this.#sink.pieceDone(slot, count, 0);
  }

  #readBelow(slot: number, sector: number, count: number, memorySector: number): void {
    const below = this.#below;
    // A parent may be smaller than its child; what lies past its end is zero.
    const there = below === null ? 0 : Math.max(0, Math.min(count, below.sectors - sector));
    if (below !== null && there > 0) below.read(slot, sector, there, memorySector);
    if (there < count) this.#readZeros(slot, count - there, memorySector + there);
  }

  #decompressed(piece: number, memory: number, errno: number): void {
    const { pieces } = this.#context;
    if (pieces.kind[piece] === PieceKind.Copy) {
      return this.#writer?.copier.decompressed(piece, memory, errno);
    }
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    if (errno === 0) {
      const inCluster = this.#map.inCluster(pieces.sector[piece]);
      copySectors(pieces.memory[piece], memory + inCluster, count);
      this.counts.readSectors += count;
    }
    pieces.give(piece);
    this.#sink.pieceDone(slot, count, errno);
  }

  // ---- what waited ----------------------------------------------------------------------------

  #fail(piece: number, errno: number): void {
    failPiece(this.#context.pieces, this.#sink, piece, errno);
  }

  #resume(piece: number): void {
    const { pieces } = this.#context;
    const kind = pieces.kind[piece];
    if (kind === PieceKind.Copy) return this.#writer?.copier.resume(piece);
    const slot = pieces.slot[piece];
    const sector = pieces.sector[piece];
    const count = pieces.count[piece];
    const memorySector = pieces.memory[piece];
    pieces.give(piece);
    if (kind === PieceKind.Status) this.status(slot, sector, count);
    else if (kind === PieceKind.Read) this.#readCluster(slot, sector, count, memorySector);
    else if (kind === PieceKind.Write) this.#own.write(slot, sector, count, memorySector);
    else this.#own.clear(kind, slot, sector, count);
  }

  get #own(): ClusterWriter {
    assert(this.#writer !== null, "A QCOW2 image that is open for reading is written");
    return this.#writer;
  }

  // ---- writes ---------------------------------------------------------------------------------

  write(slot: number, sector: number, count: number, memorySector: number): void {
    const { clusterSectors } = this.#file;
    const writer = this.#own;
    while (count > 0) {
      const part = Math.min(count, clusterSectors - this.#map.inCluster(sector));
      writer.write(slot, sector, part, memorySector);
      sector += part;
      count -= part;
      memorySector += part;
    }
  }

  fill(slot: number, sector: number, count: number): void {
    this.write(slot, sector, count, this.#context.zeros.at);
  }

  zero(slot: number, sector: number, count: number): void {
    this.#clear(PieceKind.Zero, slot, sector, count);
  }

  discard(slot: number, sector: number, count: number): void {
    this.#clear(PieceKind.Discard, slot, sector, count);
  }

  #clear(kind: number, slot: number, sector: number, count: number): void {
    const { clusterSectors } = this.#file;
    const writer = this.#own;
    while (count > 0) {
      const part = Math.min(count, clusterSectors - this.#map.inCluster(sector));
      writer.clear(kind, slot, sector, part);
      sector += part;
      count -= part;
    }
  }

  flush(slot: number): void {
    const { disk, data, hasDataFile } = this.#file;
    this.#flushErrors[slot] = 0;
    this.#flushesLeft[slot] = hasDataFile ? 2 : 1;
    this.#context.queue.sync(disk.file, this.#flushOwner, slot);
    if (hasDataFile) this.#context.queue.sync(data.file, this.#flushOwner, slot);
  }

  #flushed(slot: number, errno: number): void {
    if (errno !== 0) this.#flushErrors[slot] = errno;
    if (--this.#flushesLeft[slot] > 0) return;
    this.#sink.pieceDone(slot, 1, this.#flushErrors[slot]);
  }

  // ---- extents --------------------------------------------------------------------------------

  /** Reports the extents of this image and those past its parent's end; the parent reports the rest. */
  status(slot: number, sector: number, count: number): void {
    for (let wanted = true; wanted && count > 0;) {
      const run = this.#runHere(sector, count);
      if (run === 0) return this.#waitForStatus(slot, sector, count);
      const sectors = Math.abs(run);
      const below = this.#isHeld ? null : this.#below;
      if (below !== null && sector < below.sectors) {
        return below.status(slot, sector, Math.min(sectors, below.sectors - sector));
      }
      wanted = this.#sink.extent(slot, sectors, run > 0);
      sector += sectors;
      count -= sectors;
    }
    this.#sink.statusDone(slot, 0);
  }

  /** Whether the run that `#runHere` found last is this image's, be it data or zeros. */
  #isHeld = false;

  /**
   * How many sectors from `sector` on, at most `count` and within a slice, are alike: positive when
   * they hold data, negative when they do not. 0: the slice is not in memory.
   */
  #runHere(sector: number, count: number): number {
    const { clusterSectors } = this.#file;
    const slice = this.#map.sliceOf(this.#map.clusterOf(sector));
    const place = this.#map.sliceSector(slice);
    const end = Math.min(sector + count, (slice + 1) * this.#map.clustersPerSlice * clusterSectors);
    this.#isHeld = false;
    if (place === 0) return sector - end;
    const entry = this.#map.cache.find(slice);
    if (this.#loader.mustWait(entry)) return 0;
    const { subclusterSectors } = this.#map.geometry;
    const held = this.#heldAt(entry, sector);
    this.#isHeld = held !== Held.Nothing;
    const isData = held >= Held.Data;
    let at = sector;
    while (at < end) {
      const here = this.#heldAt(entry, at);
      if ((here >= Held.Data) !== isData || (here === Held.Nothing) === this.#isHeld) break;
      at += subclusterSectors - (at & (subclusterSectors - 1));
    }
    const run = Math.min(at, end) - sector;
    return isData ? run : -run;
  }

  #heldAt(entry: number, sector: number): number {
    const { clusterSectors } = this.#file;
    const cluster = Math.floor(sector / clusterSectors);
    const inCluster = sector - cluster * clusterSectors;
    const sub = Math.floor(inCluster / this.#map.geometry.subclusterSectors);
    return this.#map.heldAt(this.#map.entryAt(entry, cluster), sub);
  }

  #waitForStatus(slot: number, sector: number, count: number): void {
    const slice = this.#map.sliceOf(Math.floor(sector / this.#file.clusterSectors));
    if (!this.#map.hasSoundTable(slice)) return this.#sink.statusDone(slot, Errno.EIO);
    const entry = this.#loader.entryFor(slice, this.#map.sliceSector(slice));
    this.#loader.wait(this.#context.pieces.take(PieceKind.Status, slot, sector, count, 0), entry);
  }

  // ---- close ----------------------------------------------------------------------------------

  close(done: Done): void {
    if (this.#writer === null) return this.#close(() => this.#file.close(), 0, done);
    this.#writer.whenIdle((errno) => {
      if (!this.#file.hasDataFile) return this.#close(() => this.#file.finish(), errno, done);
      const owner: IoOwner = {
        ioDone: (_t, _n, failed) => this.#close(() => this.#file.finish(), errno || failed, done),
      };
      this.#context.queue.sync(this.#file.data.file, owner, 0);
    });
  }

  #close(how: () => void, errno: number, done: Done): void {
    const what = `Cannot close ${this.spec.path}`;
    let failure = errno === 0 ? null : new SystemError(errno, what);
    this.#isOpen = false;
    try {
      how();
    } catch (error) {
      failure ??= systemError(error, what);
    }
    this.#release();
    done(failure);
  }

  abandon(): void {
    if (!this.#isOpen) return;
    this.#close(() => this.#file.close(), 0, (error) => {
      if (error !== null) throw error;
    });
  }

  #release(): void {
    this.#writer?.release();
    this.#decompressor.release();
    this.#map.cache.release();
  }
}
