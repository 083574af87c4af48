import { assert } from "../../../ffi/assert.ts";
import type { Done } from "../../../ffi/errno.ts";
import { zeroSectors } from "../../../ffi/memory.ts";
import { BlockState, MIB, PAGE_BYTES } from "../../vhdx/format.ts";
import { sectorsOf, type VhdxImage } from "../../vhdx/image.ts";
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
import { FileRuns } from "../file_runs.ts";
import { failPiece } from "../fail_piece.ts";
import { PieceKind } from "../pieces.ts";
import { TableCache } from "../table_cache.ts";
import { TableLoader } from "../table_loader.ts";

const NONE = -1;
/** Bits of a page of a bitmap. */
const PAGE_BITS = 8 * PAGE_BYTES;
const MIB_SECTORS = MIB / SECTOR_BYTES;

/**
 * An open image. Cuts every request at the borders of blocks. Of a block that a differencing image has
 * in part, a bitmap says which sectors it has; bitmaps are read by pages.
 */
export class VhdxDisk implements ImageDriver {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly file: number;
  readonly parent: ImageSpec | null;
  readonly zeroSectors = REQUEST_SECTORS;
  readonly fillSectors = REQUEST_SECTORS;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #image: VhdxImage;
  readonly #disk: DiskFile;
  readonly #blockSectors: number;
  /** Sectors of 512 bytes that one bit, and one page of bits, is for. */
  readonly #bitSectors: number;
  readonly #pageSectors: number;
  readonly #pagesPerBitmap: number;
  /** Null in an image without bitmaps. */
  readonly #cache: TableCache | null;
  readonly #loader: TableLoader | null;
  /** Null where holes within blocks are not looked for. */
  readonly #runs: FileRuns | null;
  #below: ImageDriver | null = null;
  #isOpen = true;
  readonly #owner: IoOwner = {
    ioDone: (slot, sectors, errno) => this.#sink.pieceDone(slot, sectors, errno),
  };

  constructor(
    { spec, context, sink, image, file, parent }: {
      spec: ImageSpec;
      context: ImageContext;
      sink: RequestSink;
      image: VhdxImage;
      file: DiskFile;
      parent: ImageSpec | null;
    },
  ) {
    this.spec = spec;
    this.sectors = sectorsOf(image);
    this.file = file.file;
    this.parent = parent;
    this.#context = context;
    this.#sink = sink;
    this.#image = image;
    this.#disk = file;
    this.#blockSectors = image.blockBytes / SECTOR_BYTES;
    this.#bitSectors = image.logicalSectorBytes / SECTOR_BYTES;
    this.#pageSectors = PAGE_BITS * this.#bitSectors;
    this.#pagesPerBitmap = MIB / PAGE_BYTES;
    const pages = image.bitmaps.length * this.#pagesPerBitmap;
    this.#cache = pages === 0 ? null : new TableCache(pages, PAGE_BYTES);
    this.#loader = this.#cache === null ? null : this.#makeLoader(this.#cache);
    this.#runs = context.findsHoles === true ? new FileRuns(file) : null;
    registerFile(file, spec, context);
  }

  #makeLoader(cache: TableCache): TableLoader {
    return new TableLoader({
      context: this.#context,
      file: this.file,
      cache,
      tableSectors: PAGE_BYTES / SECTOR_BYTES,
      placeOf: (page) => this.#placeOf(page),
      loaded: (entry) => this.#applyLog(cache, entry),
      waiting: {
        resume: (piece) => this.#resume(piece),
        fail: (piece, errno) => this.#fail(piece, errno),
        entryFree: () => this.#loader?.retryStarved(),
      },
    });
  }

  /** The sector of the file at which a page of a bitmap lies. */
  #placeOf(page: number): number {
    const bitmap = Math.floor(page / this.#pagesPerBitmap);
    const inBitmap = page - bitmap * this.#pagesPerBitmap;
    return this.#image.bitmaps[bitmap] * MIB_SECTORS + inBitmap * (PAGE_BYTES / SECTOR_BYTES);
  }

  /** Puts what the log has in place of a page that was read. */
  #applyLog(cache: TableCache, entry: number): void {
    const { pages } = this.#image.replayed;
    if (pages.size === 0) return;
    const changed = pages.get(this.#placeOf(cache.table[entry]) / (PAGE_BYTES / SECTOR_BYTES));
    if (changed === undefined) return;
    for (let i = 0; i < PAGE_BYTES; i++) {
      cache.view.setUint8(cache.at(entry, 0) + i, changed === null ? 0 : changed[i]);
    }
  }

  putBelow(below: ImageDriver): void {
    this.#below = below;
  }

  operationsFor(sectors: number): number {
    // At worst each sector is a piece of its own, and pages of bitmaps are read.
    const here = sectors + 2 * (Math.floor(sectors / this.#pageSectors) + 2);
    return here + Math.max(0, (this.#below?.operationsFor(sectors) ?? 0) - sectors);
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    while (count > 0) {
      const block = Math.floor(sector / this.#blockSectors);
      const part = Math.min(count, (block + 1) * this.#blockSectors - sector);
      this.#readInBlock(slot, sector, part, memorySector, block);
      sector += part;
      count -= part;
      memorySector += part;
    }
  }

  #readInBlock(slot: number, sector: number, count: number, memory: number, block: number): void {
    switch (this.#image.states[block]) {
      case BlockState.Full:
        return this.#readData(slot, sector, count, memory, block);
      case BlockState.Partial:
        return this.#readPartial(slot, sector, count, memory, block);
      case BlockState.NotPresent:
        return this.#readBelow(slot, sector, count, memory);
      default:
        return this.#readZeros(slot, count, memory);
    }
  }

  #readData(slot: number, sector: number, count: number, memory: number, block: number): void {
    this.counts.readSectors += count;
    const place = this.#placeOfData(sector, block);
    this.#context.queue.read(this.file, place, count, memory, this.#owner, slot);
  }

  /** The sector of the file at which a sector of a block lies. */
  #placeOfData(sector: number, block: number): number {
    return this.#image.places[block] * MIB_SECTORS + sector - block * this.#blockSectors;
  }

  #readZeros(slot: number, count: number, memory: number): void {
    zeroSectors(memory, count);
    this.#sink.pieceDone(slot, count, 0);
  }

  #readBelow(slot: number, sector: number, count: number, memory: number): void {
    const below = this.#below;
    const there = below === null ? 0 : Math.max(0, Math.min(count, below.sectors - sector));
    if (below !== null && there > 0) below.read(slot, sector, there, memory);
    if (there < count) this.#readZeros(slot, count - there, memory + there);
  }

  /** Reads from a block of which the image has some sectors. */
  #readPartial(slot: number, sector: number, count: number, memory: number, block: number): void {
    while (count > 0) {
      const page = Math.floor(sector / this.#pageSectors);
      const part = Math.min(count, (page + 1) * this.#pageSectors - sector);
      const entry = this.#entryOf(page);
      if (entry === NONE) {
        this.#wait(PieceKind.Read, slot, sector, part, memory, page);
      } else this.#readRuns(slot, sector, part, memory, block, entry);
      sector += part;
      count -= part;
      memory += part;
    }
  }

  /** Where a page of a bitmap is in the cache; -1 when it has to be waited for. */
  #entryOf(page: number): number {
    assert(this.#loader !== null, "A block of a VHDX without bitmaps is there in part");
    // Without a bitmap in the file nothing of the block is there.
    const entry = this.#loader.entryFor(page);
    return this.#loader.mustWait(entry) ? NONE : entry;
  }

  #wait(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memory: number,
    page: number,
  ): void {
    const piece = this.#context.pieces.take(kind, slot, sector, count, memory);
    this.#loader?.wait(piece, this.#cache?.find(page) ?? NONE);
  }

  #readRuns(
    slot: number,
    sector: number,
    count: number,
    memory: number,
    block: number,
    entry: number,
  ): void {
    this.#cache?.pin(entry);
    while (count > 0) {
      const run = this.#runAt(entry, sector, count);
      const sectors = Math.abs(run);
      if (run > 0) this.#readData(slot, sector, sectors, memory, block);
      else this.#readBelow(slot, sector, sectors, memory);
      sector += sectors;
      count -= sectors;
      memory += sectors;
    }
    this.#cache?.unpin(entry);
  }

  /** How many sectors, at most `count`, are alike: positive when the image has them. */
  #runAt(entry: number, sector: number, count: number): number {
    const isThere = this.#bitOf(entry, sector);
    let end = (Math.floor(sector / this.#bitSectors) + 1) * this.#bitSectors;
    while (end < sector + count && this.#bitOf(entry, end) === isThere) end += this.#bitSectors;
    const run = Math.min(count, end - sector);
    return isThere ? run : -run;
  }

  #bitOf(entry: number, sector: number): boolean {
    const bit = Math.floor((sector % this.#pageSectors) / this.#bitSectors);
    const cache = this.#cache;
    if (cache === null) return false;
    return (cache.view.getUint8(cache.at(entry, 0) + (bit >> 3)) & (1 << (bit & 7))) !== 0;
  }

  #resume(piece: number): void {
    const { pieces } = this.#context;
    const isStatus = pieces.kind[piece] === PieceKind.Status;
    const slot = pieces.slot[piece];
    const sector = pieces.sector[piece];
    const count = pieces.count[piece];
    const memory = pieces.memory[piece];
    pieces.give(piece);
    if (isStatus) this.status(slot, sector, count);
    else this.read(slot, sector, count, memory);
  }

  #fail(piece: number, errno: number): void {
    failPiece(this.#context.pieces, this.#sink, piece, errno);
  }

  write(): void {
    assert(false, "A VHDX is written");
  }

  zero(): void {
    assert(false, "A VHDX is written");
  }

  fill(): void {
    assert(false, "A VHDX is written");
  }

  discard(): void {
    assert(false, "A VHDX is written");
  }

  /** There is nothing to bring to stable storage. */
  flush(slot: number): void {
    this.#sink.pieceDone(slot, 1, 0);
  }

  status(slot: number, sector: number, count: number): void {
    for (let wanted = true; wanted && count > 0;) {
      const block = Math.floor(sector / this.#blockSectors);
      let part = Math.min(count, (block + 1) * this.#blockSectors - sector);
      const state = this.#image.states[block];
      let isHere = state === BlockState.Full;
      if (state === BlockState.Partial) {
        const page = Math.floor(sector / this.#pageSectors);
        part = Math.min(part, (page + 1) * this.#pageSectors - sector);
        const entry = this.#entryOf(page);
        if (entry === NONE) return this.#wait(PieceKind.Status, slot, sector, count, 0, page);
        const run = this.#runAt(entry, sector, part);
        isHere = run > 0;
        part = Math.abs(run);
      }
      const isBelow = !isHere && (state === BlockState.NotPresent || state === BlockState.Partial);
      const below = isBelow && sector < (this.#below?.sectors ?? 0) ? this.#below : null;
      if (below !== null) return below.status(slot, sector, Math.min(part, below.sectors - sector));
      if (isHere && this.#runs !== null) {
        const run = this.#runs.at(this.#placeOfData(sector, block), part);
        isHere = run > 0;
        part = Math.abs(run);
      }
      wanted = this.#sink.extent(slot, part, isHere);
      sector += part;
      count -= part;
    }
    this.#sink.statusDone(slot, 0);
  }

  close(done: Done): void {
    this.abandon();
    done(null);
  }

  abandon(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#cache?.release();
    this.#image.close();
    this.#disk.close();
  }
}
