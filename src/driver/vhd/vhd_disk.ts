import { assert } from "../../../ffi/assert.ts";
import { type Done, type SystemError, systemError } from "../../../ffi/errno.ts";
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
import { FileRuns } from "../file_runs.ts";
import { failPiece } from "../fail_piece.ts";
import { PieceKind } from "../pieces.ts";
import { BitmapCache, BlockFlag } from "./bitmap_cache.ts";
import { BitmapLoader } from "./bitmap_loader.ts";
import { BlockReader } from "./block_reader.ts";
import { HolePuncher } from "./hole_puncher.ts";
import type { SectorCipher } from "./sector_cipher.ts";
import type { VhdFile } from "./vhd_file.ts";
import { VhdWriter } from "./vhd_writer.ts";

const NONE = -1;
const ZERO_SECTORS = 1 << 20;

/**
 * An open dynamic or differencing VHD. Cuts every request at the boundaries of blocks, and hands each
 * part on: to the reader or the writer of blocks, or to the loader of bitmaps, where it waits.
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
  readonly #loader: BitmapLoader;
  readonly #reader: BlockReader;
  readonly #holes: HolePuncher;
  /** Null where holes within blocks are not looked for. */
  readonly #runs: FileRuns | null;
  #isOpen = true;
  readonly #directOwner: IoOwner = {
    ioDone: (slot, sectors, errno) =>
      this.#sink.pieceDone(slot, sectors === 0 ? 1 : sectors, errno),
  };

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
    // Zeros of the file are none of an encrypted disk.
    const looks = context.findsHoles === true && spec.readOnly && cipher === null;
    this.#runs = looks ? new FileRuns(file.disk) : null;
    this.sectors = Math.floor(file.image.sizeBytes / SECTOR_BYTES);
    this.#sectorsPerBlock = file.sectorsPerBlock;
    this.#cache = new BitmapCache(file.bat.length, file.bitmapSectors * SECTOR_BYTES);
    const parts = {
      context,
      sink,
      file,
      cache: this.#cache,
      cipher,
      directOwner: this.#directOwner,
    };
    this.#reader = new BlockReader({ ...parts, counts: this.counts });
    this.#loader = new BitmapLoader({
      ...parts,
      waiting: {
        resume: (piece) => this.#resume(piece),
        fail: (piece, errno) => this.#fail(piece, errno),
      },
    });
    try {
      this.#writer = spec.readOnly ? null : new VhdWriter({
        ...parts,
        unpinned: () => this.#loader.retryStarved(),
      });
    } catch (error) {
      // Who opens the image closes the file and the cipher.
      this.#cache.release();
      throw error;
    }
    registerFile(file.disk, spec, context);
  }

  putBelow(below: ImageDriver): void {
    this.#reader.below = below;
  }

  operationsFor(sectors: number): number {
    // At worst each sector that is read is a piece of its own, and each block has its bitmap read and
    // written. Longer requests read nothing: each writes to its blocks, so many zeros at a time.
    const blocks = Math.floor(sectors / this.#sectorsPerBlock) + 2;
    const writes = blocks + Math.ceil(sectors / this.#context.zeros.sectors);
    const pieces = sectors > REQUEST_SECTORS ? writes : Math.max(sectors, writes);
    const here = pieces + 2 * blocks;
    // Only reads go below, none of which is longer; a sector is read in one of the layers alone.
    const { below } = this.#reader;
    if (below === null || sectors > REQUEST_SECTORS) return here;
    return here + Math.max(0, below.operationsFor(sectors) - pieces);
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.#move(PieceKind.Read, slot, sector, count, memorySector);
  }

  /** Reads, writes or zeroes, as `kind` says, block by block. */
  #move(kind: number, slot: number, sector: number, count: number, memorySector: number): void {
    while (count > 0) {
      const block = this.#file.blockOf(sector);
      const part = this.#file.leftInBlock(sector, block, count);
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
    if (location === NONE) return this.#reader.readBelow(slot, sector, count, memorySector);
    if (this.#file.isFull(block)) {
      return this.#reader.readData(slot, sector, count, memorySector, location);
    }
    const entry = this.#loader.entryFor(block, location);
    if (this.#loader.mustWait(entry)) {
      const piece = this.#context.pieces.take(PieceKind.Read, slot, sector, count, memorySector);
      this.#loader.wait(piece, entry);
    } else this.#reader.readRuns(slot, sector, count, memorySector, entry);
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
    const entry = this.#entryToWrite(writer, block, location);
    if (entry < NONE) return this.#sink.pieceDone(slot, count, NONE - entry);
    if (this.#loader.mustWait(entry)) {
      const piece = this.#context.pieces.take(kind, slot, sector, count, memorySector);
      return this.#loader.wait(piece, entry);
    }
    if (kind === PieceKind.Zero && !this.#reader.showsParentAt(sector)) {
      if (!this.#isUncertain(entry)) return this.#writeZeros(writer, slot, sector, count, entry);
    }
    this.counts.writtenSectors += count;
    writer.write(slot, sector, count, memorySector, entry);
  }

  /** Whether the file may hold sectors of a block that memory does not know of, after an error. */
  #isUncertain(entry: number): boolean {
    const block = this.#cache.block[entry];
    return this.#cache.has(entry, BlockFlag.Uncertain) || this.#file.isUncertain(block);
  }

  /** Writes zeros from the first to the last sector of a range that hold data; others are zero. */
  #writeZeros(writer: VhdWriter, slot: number, sector: number, count: number, entry: number): void {
    const bits = this.#cache.onDisk;
    const start = this.#cache.bitOf(entry) + this.#file.inBlock(sector);
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

  /** The entry of a block that is written; -1: it has to wait; below that: -1 - errno. */
  #entryToWrite(writer: VhdWriter, block: number, location: number): number {
    if (location !== NONE) return this.#loader.entryFor(block, location);
    const known = this.#cache.find(block);
    if (known !== NONE) return known;
    return writer.isNextPlaceTaken ? NONE : this.#loader.addBlock(block);
  }

  zero(slot: number, sector: number, count: number): void {
    this.#cipher?.begin(slot, sector);
    while (count > 0) {
      const block = this.#file.blockOf(sector);
      const part = this.#file.leftInBlock(sector, block, count);
      this.#zeroInBlock(slot, sector, part, block);
      sector += part;
      count -= part;
    }
  }

  #zeroInBlock(slot: number, sector: number, count: number, block: number): void {
    const unused = this.#file.locationOf(block) === NONE && this.#cache.find(block) === NONE &&
      !this.#file.isUncertain(block);
    if (unused && !this.#reader.showsParentAt(sector)) return this.#sink.pieceDone(slot, count, 0);
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

  /** Reports the extents of this image and those past its parent's end; the parent reports the rest. */
  status(slot: number, sector: number, count: number): void {
    for (let wanted = true; wanted && count > 0;) {
      const held = this.#runHere(sector, count);
      if (held === 0) return this.#waitForStatus(slot, sector, count);
      const below = held < 0 && this.#reader.showsParentAt(sector) ? this.#reader.below : null;
      if (below !== null) {
        return below.status(slot, sector, Math.min(-held, below.sectors - sector));
      }
      const run = held > 0 ? this.#runInFile(sector, held) : held;
      const sectors = Math.abs(run);
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
    const block = this.#file.blockOf(sector);
    const part = this.#file.leftInBlock(sector, block, count);
    const location = this.#file.locationOf(block);
    if (location === NONE) return -part;
    if (this.#file.isFull(block)) return part;
    const entry = this.#cache.find(block);
    if (this.#loader.mustWait(entry)) return 0;
    const bit = this.#cache.bitOf(entry) + this.#file.inBlock(sector);
    const run = runEnd(this.#cache.onDisk, bit, bit + part) - bit;
    return testBit(this.#cache.onDisk, bit) ? run : -run;
  }

  /** How many sectors that this image holds are alike: negative where they are a hole of the file. */
  #runInFile(sector: number, count: number): number {
    if (this.#runs === null) return count;
    const location = this.#file.locationOf(this.#file.blockOf(sector));
    return this.#runs.at(location + this.#file.bitmapSectors + this.#file.inBlock(sector), count);
  }

  #waitForStatus(slot: number, sector: number, count: number): void {
    const block = this.#file.blockOf(sector);
    const entry = this.#loader.entryFor(block, this.#file.locationOf(block));
    this.#loader.wait(this.#context.pieces.take(PieceKind.Status, slot, sector, count, 0), entry);
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
