import { assert } from "../../../ffi/assert.ts";
import { type Done, Errno, type SystemError, systemError } from "../../../ffi/errno.ts";
import { copySectors, zeroSectors } from "../../../ffi/memory.ts";
import { Cluster, clusterSector, packedLength, packedOffset } from "../../qcow/format.ts";
import type { QcowImage } from "../../qcow/image.ts";
import type { DiskFile } from "../../queue/disk_files.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { registerFile } from "../aio.ts";
import {
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SECTORS,
  type RequestSink,
  SECTOR_BYTES,
} from "../driver.ts";
import { failPiece } from "../fail_piece.ts";
import { PieceKind, PieceLists } from "../pieces.ts";
import { Inflater, type InflaterOwner } from "./inflater.ts";
import { QcowFile } from "./qcow_file.ts";
import { QcowWriter } from "./qcow_writer.ts";
import { TableCache } from "../table_cache.ts";
import { TableLoader } from "../table_loader.ts";

const NONE = -1;

/**
 * An open image. Cuts every request at the borders of tables, and each part into runs of clusters that
 * are alike: in the file in one piece, compressed, or not in the image.
 */
export class QcowDisk implements ImageDriver, InflaterOwner {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly file: number;
  readonly parent: ImageSpec | null;
  readonly zeroSectors = REQUEST_SECTORS;
  readonly fillSectors = REQUEST_SECTORS;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  readonly sinkBelow: RequestSink | null;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: QcowFile;
  readonly #cache: TableCache;
  readonly #loader: TableLoader;
  readonly #inflater: Inflater;
  readonly #writer: QcowWriter | null;
  #below: ImageDriver | null = null;
  /** Pieces that found no place in the inflater, and writes that wait for the end of a batch. */
  readonly #packed = new PieceLists(1);
  /** How many sectors are alike from the last place that `#runAt` looked at. */
  #run = 0;
  #isOpen = true;
  #hasWarned = false;
  readonly #directOwner: IoOwner = {
    ioDone: (slot, sectors, errno) =>
      this.#sink.pieceDone(slot, sectors === 0 ? 1 : sectors, errno),
  };

  constructor(
    { spec, context, sink, image, file, parent }: {
      spec: ImageSpec;
      context: ImageContext;
      sink: RequestSink;
      image: QcowImage;
      file: DiskFile;
      parent: ImageSpec | null;
    },
  ) {
    this.spec = spec;
    this.sectors = image.sectors;
    this.file = file.file;
    this.parent = parent;
    this.#context = context;
    this.#sink = sink;
    this.#file = new QcowFile(image, file, spec);
    const { tableSectors } = this.#file;
    const cache = new TableCache(image.l1.length, tableSectors * SECTOR_BYTES);
    this.#cache = cache;
    const waiting = {
      resume: (piece: number) => this.#resume(piece),
      fail: (piece: number, errno: number) => this.#fail(piece, errno),
      entryFree: () => this.#resumeWaiting(),
    };
    this.#loader = new TableLoader({
      context,
      file: file.file,
      placeOf: (table) => image.l1[table],
      tableSectors,
      cache,
      waiting,
    });
    this.#inflater = new Inflater(context, { file: this.#file, owner: this });
    try {
      this.#writer = spec.readOnly ? null : new QcowWriter({
        context,
        sink,
        file: this.#file,
        cache,
        inflater: this.#inflater,
        counts: this.counts,
        free: () => this.#resumeWaiting(),
      });
    } catch (error) {
      this.#inflater.release();
      this.#cache.release();
      throw error;
    }
    this.sinkBelow = this.#writer;
    registerFile(file, spec, context);
  }

  putBelow(below: ImageDriver): void {
    this.#below = below;
    if (this.#writer !== null) this.#writer.below = below;
  }

  operationsFor(sectors: number): number {
    // At worst each sector is a piece of its own. Each table is read once. A write that adds clusters
    // reads and writes what surrounds it in the first and the last.
    const tables = Math.floor(sectors / this.#file.sectorsPerTable) + 2;
    const here = sectors + 2 * tables + 4;
    if (this.#below === null) return here;
    const { clusterSectors } = this.#file;
    const around = this.#writer === null ? 0 : 2 * this.#below.operationsFor(clusterSectors);
    return here + around + Math.max(0, this.#below.operationsFor(sectors) - sectors);
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.#move(PieceKind.Read, slot, sector, count, memorySector);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#move(PieceKind.Write, slot, sector, count, memorySector);
  }

  zero(slot: number, sector: number, count: number): void {
    this.#move(PieceKind.Zero, slot, sector, count, this.#context.zeros.at);
  }

  fill(slot: number, sector: number, count: number): void {
    this.write(slot, sector, count, this.#context.zeros.at);
  }

  /** The format has no way to say that a cluster is not used any more. */
  discard(slot: number, _sector: number, count: number): void {
    this.#sink.pieceDone(slot, count, 0);
  }

  flush(slot: number): void {
    this.#context.queue.sync(this.file, this.#directOwner, slot);
  }

  /** Reads, writes or zeroes, as `kind` says, table by table. */
  #move(kind: number, slot: number, sector: number, count: number, memorySector: number): void {
    const { sectorsPerTable } = this.#file;
    while (count > 0) {
      const table = Math.floor(sector / sectorsPerTable);
      const part = Math.min(count, (table + 1) * sectorsPerTable - sector);
      this.#moveInTable(kind, slot, sector, part, memorySector, table);
      sector += part;
      count -= part;
      memorySector += part;
    }
  }

  #moveInTable(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    table: number,
  ): void {
    if (this.#file.image.l1[table] === 0) {
      return this.#moveNone(kind, slot, sector, count, memorySector, table, NONE);
    }
    const entry = this.#loader.entryFor(table);
    if (this.#loader.mustWait(entry)) {
      const piece = this.#context.pieces.take(kind, slot, sector, count, memorySector);
      return this.#loader.wait(piece, entry);
    }
    // What ends below may make room that something else takes.
    this.#cache.pin(entry);
    while (count > 0) {
      const place = this.#runAt(entry, table, sector, count);
      const run = this.#run;
      if (place > 0) this.#moveData(kind, slot, run, memorySector, place);
      else if (place === Cluster.None) {
        this.#moveNone(kind, slot, sector, run, memorySector, table, entry);
      } else if (place === Cluster.Compressed) {
        this.#movePacked(kind, slot, sector, run, memorySector, table, entry);
      } else this.#endWrong(slot, run);
      sector += run;
      count -= run;
      memorySector += run;
    }
    this.#cache.unpin(entry);
  }

  /**
   * Looks up a sector: where it lies in the file, or one of `Cluster`. Puts into `#run` how many
   * sectors from there on, at most `count`, go on in the same way.
   */
  #runAt(entry: number, table: number, sector: number, count: number): number {
    const { clusterSectors, sectorsPerTable } = this.#file;
    const { view } = this.#cache;
    const inTable = sector - table * sectorsPerTable;
    const first = Math.floor(inTable / clusterSectors);
    const inCluster = inTable - first * clusterSectors;
    const place = clusterSector(view, this.#cache.at(entry, first));
    let run = clusterSectors - inCluster;
    let next = place > 0 ? place + clusterSectors : place;
    if (place >= 0) {
      for (let i = first + 1; run < count; i++) {
        if (clusterSector(view, this.#cache.at(entry, i)) !== next) break;
        run += clusterSectors;
        if (place > 0) next += clusterSectors;
      }
    }
    this.#run = Math.min(run, count);
    if (place <= 0) return place;
    const end = place + inCluster + this.#run;
    return this.#file.goesBeyond(place, end) ? Cluster.Wrong : place + inCluster;
  }

  /** Reads or writes sectors that lie in the file in one piece. */
  #moveData(kind: number, slot: number, count: number, memorySector: number, place: number): void {
    if (!this.#file.isData(place, count)) return this.#endWrong(slot, count);
    if (kind !== PieceKind.Read) {
      this.counts.writtenSectors += count;
      return this.#context.queue.write(
        this.file,
        place,
        count,
        memorySector,
        this.#directOwner,
        slot,
      );
    }
    this.counts.readSectors += count;
    const { endSector, tail } = this.#file;
    const there = Math.min(count, endSector - place);
    if (there > 0) {
      this.#context.queue.read(this.file, place, there, memorySector, this.#directOwner, slot);
    }
    const missing = count - Math.max(0, there);
    if (missing === 0) return;
    const at = memorySector + count - missing;
    zeroSectors(at, missing);
    if (tail !== null && there >= 0) copySectors(at, tail.sector, 1);
    this.#sink.pieceDone(slot, missing, 0);
  }

  /** Reads or writes sectors that the image does not hold. */
  #moveNone(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    table: number,
    entry: number,
  ): void {
    if (kind === PieceKind.Read) return this.#readBelow(slot, sector, count, memorySector);
    const isZero = kind === PieceKind.Zero && !this.#showsParentAt(sector);
    if (isZero && !this.#isUncertain(sector, count, table, entry)) {
      return this.#sink.pieceDone(slot, count, 0);
    }
    this.#allocate(kind, slot, sector, count, memorySector, table, entry);
  }

  /** Whether the file may hold sectors that memory has none of, after an error. */
  #isUncertain(sector: number, count: number, table: number, entry: number): boolean {
    if (entry === NONE) return this.#file.isUncertain(table);
    const { clusterSectors, sectorsPerTable } = this.#file;
    const inTable = sector - table * sectorsPerTable;
    const first = Math.floor(inTable / clusterSectors);
    const last = Math.floor((inTable + count - 1) / clusterSectors);
    return this.#cache.isUncertain(entry, first, last);
  }

  #allocate(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    table: number,
    entry: number,
  ): void {
    const writer = this.#writer;
    assert(writer !== null, "A QCOW that is open for reading is written");
    const errno = writer.allocate(slot, sector, count, memorySector, table, entry);
    if (errno === 0) return;
    if (errno > 0) return this.#sink.pieceDone(slot, count, errno);
    const piece = this.#context.pieces.take(kind, slot, sector, count, memorySector);
    this.#context.pieces.append(this.#packed, 0, piece);
  }

  #readBelow(slot: number, sector: number, count: number, memorySector: number): void {
    const below = this.#below;
    // A backing file may be smaller; what lies past its end is zero.
    const there = below === null ? 0 : Math.max(0, Math.min(count, below.sectors - sector));
    if (below !== null && there > 0) below.read(slot, sector, there, memorySector);
    if (there === count) return;
    zeroSectors(memorySector + there, count - there);
    this.#sink.pieceDone(slot, count - there, 0);
  }

  #showsParentAt(sector: number): boolean {
    return this.#below !== null && sector < this.#below.sectors;
  }

  /** Reads or writes within a compressed cluster. */
  #movePacked(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    table: number,
    entry: number,
  ): void {
    if (kind !== PieceKind.Read) {
      return this.#allocate(kind, slot, sector, count, memorySector, table, entry);
    }
    this.counts.readSectors += count;
    const { pieces } = this.#context;
    const piece = pieces.take(kind, slot, sector, count, memorySector);
    const errno = this.#unpack(piece, sector, table, entry);
    if (errno < NONE) this.#fail(piece, NONE - errno);
    else if (errno === NONE) pieces.append(this.#packed, 0, piece);
  }

  /** Starts to read the compressed cluster of a sector; see `Inflater.start`. */
  #unpack(token: number, sector: number, table: number, entry: number): number {
    const { clusterSectors, sectorsPerTable, image: { header } } = this.#file;
    const index = Math.floor((sector - table * sectorsPerTable) / clusterSectors);
    const at = this.#cache.at(entry, index);
    const { view } = this.#cache;
    const offset = packedOffset(view, at, header.clusterBits);
    return this.#inflater.start(token, offset, packedLength(view, at, header.clusterBits));
  }

  inflated(place: number, errno: number): void {
    const piece = this.#inflater.tokenOf(place);
    if (piece < 0) return this.#writer?.inflated(place, errno);
    const { pieces } = this.#context;
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    const sector = pieces.sector[piece];
    if (errno === 0) {
      const inCluster = sector % this.#file.clusterSectors;
      copySectors(pieces.memory[piece], this.#inflater.clusterAt(place) + inCluster, count);
    }
    pieces.give(piece);
    this.#inflater.free(place);
    this.#sink.pieceDone(slot, count, errno);
  }

  inflaterFree(): void {
    this.#resumeWaiting();
  }

  #resumeWaiting(): void {
    for (let piece = this.#packed.takeAll(0); piece !== NONE;) {
      const next = this.#context.pieces.next(piece);
      this.#resume(piece);
      piece = next;
    }
    this.#loader.retryStarved();
  }

  #endWrong(slot: number, count: number): void {
    if (!this.#hasWarned) {
      this.#context.log(`${this.#file.disk.path} is damaged: an entry of an L2 table is no place`);
    }
    this.#hasWarned = true;
    this.#sink.pieceDone(slot, count, Errno.EIO);
  }

  #fail(piece: number, errno: number): void {
    failPiece(this.#context.pieces, this.#sink, piece, errno);
  }

  #resume(piece: number): void {
    const { pieces } = this.#context;
    const kind = pieces.kind[piece];
    const slot = pieces.slot[piece];
    const sector = pieces.sector[piece];
    const count = pieces.count[piece];
    const memorySector = pieces.memory[piece];
    pieces.give(piece);
    if (kind === PieceKind.Status) this.status(slot, sector, count);
    else this.#move(kind, slot, sector, count, memorySector);
  }

  status(slot: number, sector: number, count: number): void {
    const { sectorsPerTable, image: { l1 } } = this.#file;
    for (let wanted = true; wanted && count > 0;) {
      const table = Math.floor(sector / sectorsPerTable);
      const part = Math.min(count, (table + 1) * sectorsPerTable - sector);
      let place: number = Cluster.None;
      let run = part;
      if (l1[table] !== 0) {
        const entry = this.#loader.entryFor(table);
        if (this.#loader.mustWait(entry)) {
          const piece = this.#context.pieces.take(PieceKind.Status, slot, sector, count, 0);
          return this.#loader.wait(piece, entry);
        }
        place = this.#runAt(entry, table, sector, part);
        run = this.#run;
      }
      const below = place === Cluster.None && this.#showsParentAt(sector) ? this.#below : null;
      if (below !== null) return below.status(slot, sector, Math.min(run, below.sectors - sector));
      wanted = this.#sink.extent(slot, run, place !== Cluster.None);
      sector += run;
      count -= run;
    }
    this.#sink.statusDone(slot, 0);
  }

  close(done: Done): void {
    if (this.#writer === null) this.#close(() => this.#file.close(), done);
    else this.#writer.whenIdle(() => this.#close(() => this.#file.finish(), done));
  }

  #close(how: () => void, done: Done): void {
    let failure: SystemError | null = null;
    this.#isOpen = false;
    try {
      how();
    } catch (error) {
      failure = systemError(error, `Cannot close ${this.spec.path}`);
    }
    this.#writer?.release();
    this.#inflater.release();
    this.#cache.release();
    done(failure);
  }

  abandon(): void {
    if (!this.#isOpen) return;
    this.#close(() => this.#file.close(), (error) => {
      if (error !== null) throw error;
    });
  }
}
