import { assert } from "../../../ffi/assert.ts";
import { type Done, errnoOf, type SystemError, systemError } from "../../../ffi/errno.ts";
import { zeroSectors } from "../../../ffi/memory.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { runEnd, testBit } from "../../vhd/format/bitmap.ts";
import { registerFile } from "../aio.ts";
import {
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SECTORS,
  type RequestSink,
  SECTOR_BYTES,
} from "../driver.ts";
import { PieceKind, PieceLists } from "../pieces.ts";
import { BitmapCache, BlockFlag } from "./bitmap_cache.ts";
import { HolePuncher } from "./hole_puncher.ts";
import type { SectorCipher } from "./sector_cipher.ts";
import type { VhdFile } from "./vhd_file.ts";
import { VhdWriter } from "./vhd_writer.ts";

const NONE = -1;
const ZERO_SECTORS = 1 << 20;

/**
 * An open dynamic or differencing VHD. Every request is cut at block boundaries; what a block's
 * bitmap does not have comes from the parent, or is zero.
 */
export class VhdDisk implements ImageDriver {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly file: number;
  readonly encrypted: boolean;
  readonly parent: ImageSpec | null;
  readonly zeroSectors: number;
  readonly fillSectors: number;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: VhdFile;
  readonly #cache: BitmapCache;
  readonly #writer: VhdWriter | null;
  /** Null for an image that is not encrypted. */
  readonly #cipher: SectorCipher | null;
  readonly #sectorsPerBlock: number;
  /** Pieces that found every entry of the cache in use. */
  readonly #starved = new PieceLists(1);
  #below: ImageDriver | null = null;
  readonly #holes: HolePuncher;
  #isOpen = true;
  readonly #directOwner: IoOwner = {
    ioDone: (slot, sectors, errno) =>
      this.#sink.pieceDone(slot, sectors === 0 ? 1 : sectors, errno),
  };
  readonly #cipherOwner: IoOwner = {
    ioDone: (piece, _length, errno) => this.#readEncrypted(piece, errno),
  };
  readonly #loadOwner: IoOwner = { ioDone: (entry, _length, errno) => this.#loaded(entry, errno) };

  constructor(
    { spec, context, sink, file, parent, cipher }: {
      spec: ImageSpec;
      context: ImageContext;
      sink: RequestSink;
      file: VhdFile;
      parent: ImageSpec | null;
      cipher: SectorCipher | null;
    },
  ) {
    this.spec = spec;
    this.file = file.disk.file;
    this.encrypted = cipher !== null;
    this.zeroSectors = cipher === null ? ZERO_SECTORS : REQUEST_SECTORS;
    this.fillSectors = cipher === null ? context.zeros.sectors : REQUEST_SECTORS;
    this.#cipher = cipher;
    this.parent = parent;
    this.#context = context;
    this.#sink = sink;
    this.#file = file;
    this.#holes = new HolePuncher(file, context);
    this.sectors = Math.floor(file.image.sizeBytes / SECTOR_BYTES);
    this.#sectorsPerBlock = file.sectorsPerBlock;
    this.#cache = new BitmapCache(file.bat.length, file.bitmapSectors * SECTOR_BYTES);
    this.#writer = spec.readOnly ? null : new VhdWriter({
      context,
      sink,
      file,
      cache: this.#cache,
      cipher,
      directOwner: this.#directOwner,
      unpinned: () => this.#feedStarved(),
    });
    registerFile(file.disk, context);
  }

  putBelow(below: ImageDriver): void {
    this.#below = below;
  }

  operationsFor(sectors: number): number {
    // At worst each sector that is read is a piece of its own, and each block has its bitmap read and
    // written. Longer requests read nothing: each writes to its blocks, so many zeros at a time.
    const blocks = Math.floor(sectors / this.#sectorsPerBlock) + 2;
    const writes = blocks + Math.ceil(sectors / this.#context.zeros.sectors);
    const pieces = sectors > REQUEST_SECTORS ? writes : Math.max(sectors, writes);
    const here = pieces + 2 * blocks;
    // Only reads go below, none of which is longer; a sector is read in one of the layers alone.
    if (this.#below === null || sectors > REQUEST_SECTORS) return here;
    return here + Math.max(0, this.#below.operationsFor(sectors) - pieces);
  }

  #blockOf(sector: number): number {
    return Math.floor(sector / this.#sectorsPerBlock);
  }

  #inBlock(sector: number): number {
    return sector - Math.floor(sector / this.#sectorsPerBlock) * this.#sectorsPerBlock;
  }

  #leftInBlock(sector: number, block: number, count: number): number {
    return Math.min(count, (block + 1) * this.#sectorsPerBlock - sector);
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.#move(PieceKind.Read, slot, sector, count, memorySector);
  }

  /** Reads, writes or zeroes, as `kind` says, block by block. */
  #move(kind: number, slot: number, sector: number, count: number, memorySector: number): void {
    while (count > 0) {
      const block = this.#blockOf(sector);
      const part = this.#leftInBlock(sector, block, count);
      if (kind === PieceKind.Read) this.#readInBlock(slot, sector, part, memorySector, block);
      else this.#writeInBlock(kind, slot, sector, part, memorySector, block);
      sector += part;
      count -= part;
      memorySector += part;
    }
  }

  #readInBlock(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    block: number,
  ): void {
    const location = this.#file.locationOf(block);
    if (location === NONE) return this.#readBelow(slot, sector, count, memorySector);
    if (this.#file.isFull(block)) {
      return this.#readData(slot, sector, count, memorySector, location);
    }
    const entry = this.#entryFor(block, location);
    if (entry === NONE || this.#cache.has(entry, BlockFlag.Loading)) {
      const piece = this.#context.pieces.take(PieceKind.Read, slot, sector, count, memorySector);
      this.#wait(piece, entry);
    } else this.#readRuns(slot, sector, count, memorySector, entry);
  }

  /** The block's entry in the cache, being loaded if it was not there; -1 when all are in use. */
  #entryFor(block: number, location: number): number {
    const known = this.#cache.find(block);
    if (known !== NONE) return known;
    const entry = this.#cache.claim(block, location);
    if (entry === NONE) return NONE;
    this.#cache.flags[entry] |= BlockFlag.Loading;
    this.#cache.pin(entry);
    this.#context.queue.read(
      this.#file.disk.file,
      location,
      this.#file.bitmapSectors,
      this.#cache.onDiskAt(entry),
      this.#loadOwner,
      entry,
    );
    return entry;
  }

  #wait(piece: number, entry: number): void {
    if (entry === NONE) this.#context.pieces.append(this.#starved, 0, piece);
    else this.#context.pieces.append(this.#cache.forLoad, entry, piece);
  }

  #readData(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    location: number,
  ): void {
    const start = location + this.#file.bitmapSectors + this.#inBlock(sector);
    const missing = Math.min(count, start + count - this.#file.endSector);
    if (missing > 0) {
      const there = count - missing;
      if (there > 0) this.#readData(slot, sector, there, memorySector, location);
      return this.#readMissing(slot, sector + there, missing, memorySector + there, start + there);
    }
    this.counts.readSectors += count;
    const encrypted = this.#cipher !== null;
    const token = encrypted
      ? this.#context.pieces.take(PieceKind.Read, slot, sector, count, memorySector)
      : slot;
    this.#context.queue.read(
      this.#file.disk.file,
      start,
      count,
      memorySector,
      encrypted ? this.#cipherOwner : this.#directOwner,
      token,
    );
  }

  /** Reads what the file ends in front of; `start` is where it would be. */
  #readMissing(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    start: number,
  ): void {
    this.#file.readPastEnd(start, count, memorySector);
    this.#cipher?.open(sector, count, memorySector);
    this.#sink.pieceDone(slot, count, 0);
  }

  #readEncrypted(piece: number, errno: number): void {
    const { pieces } = this.#context;
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    if (errno === 0) this.#cipher?.open(pieces.sector[piece], count, pieces.memory[piece]);
    pieces.give(piece);
    this.#sink.pieceDone(slot, count, errno);
  }

  /** Reads what the bitmap has from the file, and the rest from below. */
  #readRuns(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    entry: number,
  ): void {
    const bits = this.#cache.onDisk;
    let bit = this.#cache.bitOf(entry) + this.#inBlock(sector);
    const end = bit + count;
    while (bit < end) {
      const run = runEnd(bits, bit, end) - bit;
      if (testBit(bits, bit)) {
        this.#readData(slot, sector, run, memorySector, this.#cache.location[entry]);
      } else this.#readBelow(slot, sector, run, memorySector);
      bit += run;
      sector += run;
      memorySector += run;
    }
  }

  #readBelow(slot: number, sector: number, count: number, memorySector: number): void {
    const below = this.#below;
    // A parent may be smaller than its child; what lies past its end is zero.
    const there = below === null ? 0 : Math.max(0, Math.min(count, below.sectors - sector));
    if (below !== null && there > 0) below.read(slot, sector, there, memorySector);
    if (there === count) return;
    zeroSectors(memorySector + there, count - there);
    this.#sink.pieceDone(slot, count - there, 0);
  }

  #loaded(entry: number, errno: number): void {
    const { pieces } = this.#context;
    const cache = this.#cache;
    cache.flags[entry] &= ~BlockFlag.Loading;
    cache.unpin(entry);
    let piece = cache.forLoad.takeAll(entry);
    if (errno !== 0) cache.drop(entry);
    else {
      cache.settle(entry);
      if (cache.isFull(entry, this.#sectorsPerBlock)) this.#file.noteFull(cache.block[entry]);
      else this.#file.notePartial(cache.block[entry]);
      // The pieces may start other loads; this entry must outlast them.
      cache.pin(entry);
    }
    while (piece !== NONE) {
      const next = pieces.next(piece);
      if (errno === 0) this.#resume(piece);
      else this.#fail(piece, errno);
      piece = next;
    }
    if (errno === 0) cache.unpin(entry);
    this.#feedStarved();
  }

  #fail(piece: number, errno: number): void {
    const { pieces } = this.#context;
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    const isStatus = pieces.kind[piece] === PieceKind.Status;
    pieces.give(piece);
    if (isStatus) this.#sink.statusDone(slot, errno);
    else this.#sink.pieceDone(slot, count, errno);
  }

  /** Does again, from the start, what a piece had to wait for. */
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

  /** Entries may be free again: tries the pieces once more that found none. */
  #feedStarved(): void {
    let piece = this.#starved.takeAll(0);
    while (piece !== NONE) {
      const next = this.#context.pieces.next(piece);
      this.#resume(piece);
      piece = next;
    }
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#cipher?.begin(slot, sector);
    this.#move(PieceKind.Write, slot, sector, count, memorySector);
  }

  /** Writes to a block; zeros of `PieceKind.Zero` need not be written where the image has none. */
  #writeInBlock(
    kind: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    block: number,
  ): void {
    const writer = this.#writer;
    assert(writer !== null, "A VHD that is open for reading is written");
    const location = this.#file.locationOf(block);
    if (location !== NONE && this.#file.isFull(block)) {
      this.counts.writtenSectors += count;
      return writer.writeData(slot, sector, count, memorySector, location);
    }
    const entry = location !== NONE ? this.#entryFor(block, location) : this.#newEntryFor(block);
    if (entry === NONE || this.#cache.has(entry, BlockFlag.Loading)) {
      const piece = this.#context.pieces.take(kind, slot, sector, count, memorySector);
      return this.#wait(piece, entry);
    }
    if (entry < NONE) return this.#sink.pieceDone(slot, count, NONE - entry);
    if (kind === PieceKind.Zero && !this.#showsParentAt(sector)) {
      return this.#writeZeros(writer, slot, sector, count, entry);
    }
    this.counts.writtenSectors += count;
    writer.write(slot, sector, count, memorySector, entry);
  }

  /** Writes zeros from the first to the last sector of a range that hold data; others are zero. */
  #writeZeros(writer: VhdWriter, slot: number, sector: number, count: number, entry: number): void {
    const bits = this.#cache.onDisk;
    const start = this.#cache.bitOf(entry) + this.#inBlock(sector);
    const end = start + count;
    const first = testBit(bits, start) ? start : runEnd(bits, start, end);
    let last = end;
    while (last > first && !testBit(bits, last - 1)) last--;
    const skipped = count - (last - first);
    if (last > first) {
      this.counts.writtenSectors += last - first;
      writer.write(slot, sector + first - start, last - first, this.#context.zeros.at, entry);
    }
    if (skipped > 0) this.#sink.pieceDone(slot, skipped, 0);
  }

  /** Whether something below shows through at a sector that this image does not hold. */
  #showsParentAt(sector: number): boolean {
    return this.#below !== null && sector < this.#below.sectors;
  }

  /** The entry of a block that is not in the BAT; -1: it has to wait; below that: -1 - errno. */
  #newEntryFor(block: number): number {
    const known = this.#cache.find(block);
    if (known !== NONE) return known;
    if (this.#writer?.isNextPlaceTaken === true) return NONE;
    const entry = this.#cache.claim(block, NONE);
    if (entry === NONE) return NONE;
    try {
      this.#cache.location[entry] = this.#file.growByBlock(block);
    } catch (error) {
      this.#cache.drop(entry);
      return NONE - errnoOf(error);
    }
    this.#cache.flags[entry] |= BlockFlag.Unpublished;
    this.#cache.pin(entry);
    return entry;
  }

  zero(slot: number, sector: number, count: number): void {
    this.#cipher?.begin(slot, sector);
    while (count > 0) {
      const block = this.#blockOf(sector);
      const part = this.#leftInBlock(sector, block, count);
      this.#zeroInBlock(slot, sector, part, block);
      sector += part;
      count -= part;
    }
  }

  #zeroInBlock(slot: number, sector: number, count: number, block: number): void {
    const unused = this.#file.locationOf(block) === NONE && this.#cache.find(block) === NONE;
    if (unused && !this.#showsParentAt(sector)) return this.#sink.pieceDone(slot, count, 0);
    const { at, sectors: most } = this.#context.zeros;
    for (let done = 0; done < count; done += most) {
      this.#move(PieceKind.Zero, slot, sector + done, Math.min(most, count - done), at);
    }
  }

  fill(slot: number, sector: number, count: number): void {
    this.write(slot, sector, count, this.#context.zeros.at);
  }

  discard(slot: number, sector: number, count: number): void {
    this.#holes.punch(sector, count);
    this.#sink.pieceDone(slot, count, 0);
  }

  flush(slot: number): void {
    this.#context.queue.sync(this.#file.disk.file, this.#directOwner, slot);
  }

  /** Tells the extents of this image and those past its parent's end; the parent tells the rest. */
  status(slot: number, sector: number, count: number): void {
    for (let wanted = true; wanted && count > 0;) {
      const run = this.#runHere(sector, count);
      if (run === 0) return this.#waitForStatus(slot, sector, count);
      const sectors = Math.abs(run);
      const below = run < 0 && this.#showsParentAt(sector) ? this.#below : null;
      if (below !== null) {
        return below.status(slot, sector, Math.min(sectors, below.sectors - sector));
      }
      wanted = this.#sink.extent(slot, sectors, run > 0);
      sector += sectors;
      count -= sectors;
    }
    this.#sink.statusDone(slot, 0);
  }

  /**
   * How many sectors from `sector` on, at most `count` and within a block, are alike: positive when
   * this image holds them, negative when it does not. 0: the block's bitmap is not loaded.
   */
  #runHere(sector: number, count: number): number {
    const block = this.#blockOf(sector);
    const part = this.#leftInBlock(sector, block, count);
    const location = this.#file.locationOf(block);
    if (location === NONE) return -part;
    if (this.#file.isFull(block)) return part;
    const entry = this.#cache.find(block);
    if (entry === NONE || this.#cache.has(entry, BlockFlag.Loading)) return 0;
    const bit = this.#cache.bitOf(entry) + this.#inBlock(sector);
    const run = runEnd(this.#cache.onDisk, bit, bit + part) - bit;
    return testBit(this.#cache.onDisk, bit) ? run : -run;
  }

  #waitForStatus(slot: number, sector: number, count: number): void {
    const block = this.#blockOf(sector);
    const entry = this.#entryFor(block, this.#file.locationOf(block));
    this.#wait(this.#context.pieces.take(PieceKind.Status, slot, sector, count, 0), entry);
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
    this.#release();
    done(failure);
  }

  abandon(): void {
    if (!this.#isOpen) return;
    this.#close(() => this.#file.close(), (error) => {
      if (error !== null) throw error;
    });
  }

  #release(): void {
    this.#writer?.release();
    this.#cache.release();
    this.#cipher?.close();
  }
}
