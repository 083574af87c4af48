import { assert } from "../../../ffi/assert.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { runEnd, setBits, testBit } from "../../vhd/format/bitmap.ts";
import { blockEnd } from "../../vhd/format/layout.ts";
import type { Deferred } from "../deferral.ts";
import type { ImageContext, RequestSink } from "../driver.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import { PieceKind, type PieceLists } from "../pieces.ts";
import { type BitmapCache, BlockFlag } from "./bitmap_cache.ts";
import { DATA_SYNC_OPERATIONS, type DataSyncOwner, DataSyncs } from "./data_syncs.ts";
import { Publisher, PUBLISHER_OPERATIONS, type PublisherOwner } from "./publisher.ts";
import type { SectorCipher } from "./sector_cipher.ts";
import type { VhdFile } from "./vhd_file.ts";

const NONE = -1;
/** Operations beside those of requests. */
const OPERATIONS = PUBLISHER_OPERATIONS + DATA_SYNC_OPERATIONS;

/**
 * Writes to blocks that are not known to be full. The order on disk:
 *
 * 1. the data;
 * 2. in a block that the BAT points at, or is about to, a sync: one for all data written until then;
 * 3. the bitmap with its bits, one write for all data that has come so far;
 * 4. for a new block, when data and bitmap are on stable storage, the BAT's sector that points at it.
 *
 * Only then does the request end. A failure at any step ends the requests that needed it; the
 * step is done again when they are tried again.
 */
export class VhdWriter implements Deferred, PublisherOwner, DataSyncOwner {
  deferred = false;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: VhdFile;
  readonly #cache: BitmapCache;
  /** Null for an image that is not encrypted. */
  readonly #cipher: SectorCipher | null;
  readonly #publisher: Publisher;
  readonly #dataSyncs: DataSyncs;
  readonly #directOwner: IoOwner;
  readonly #unpinned: () => void;
  readonly #sectorsPerBlock: number;
  readonly #dataOwner: IoOwner = { ioDone: (piece, _l, errno) => this.#dataDone(piece, errno) };
  readonly #bitmapOwner: IoOwner = {
    ioDone: (entry, _l, errno) => this.#bitmapDone(entry, errno),
  };
  /** Entries that wait for the end of the turn, each once. */
  readonly #due: Int32Array;
  readonly #isDue: Uint8Array;
  #dueCount = 0;
  #idle: (() => void) | null = null;

  /** Throws `SystemError` EBUSY when the process serves too many images. */
  constructor(
    { context, sink, file, cache, cipher, directOwner, unpinned }: {
      context: ImageContext;
      sink: RequestSink;
      file: VhdFile;
      cache: BitmapCache;
      cipher: SectorCipher | null;
      /** Takes the end of data writes that need nothing else. */
      directOwner: IoOwner;
      /** Called when entries of the cache may have become free. */
      unpinned: () => void;
    },
  ) {
    if (!context.queue.reserve(OPERATIONS)) {
      throw new SystemError(
        Errno.EBUSY,
        `Cannot serve ${file.image.path}: this tapdisk serves too many images (start another)`,
      );
    }
    this.#context = context;
    this.#sink = sink;
    this.#file = file;
    this.#cache = cache;
    this.#cipher = cipher;
    this.#directOwner = directOwner;
    this.#unpinned = unpinned;
    this.#sectorsPerBlock = file.sectorsPerBlock;
    const { queue, pieces } = context;
    this.#publisher = new Publisher(file, { cache, queue, owner: this });
    this.#dataSyncs = new DataSyncs(file.disk.file, { cache, pieces, queue, owner: this });
    this.#due = new Int32Array(cache.entries);
    this.#isDue = new Uint8Array(cache.entries);
  }

  /** Writes data of a block whose bits are all on disk. */
  writeData(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    location: number,
  ): void {
    const from = this.#sealed(slot, sector, count, memorySector);
    this.#start(sector, count, from, location, this.#directOwner, slot);
  }

  /** Where in I/O memory the data is in the form in which the file is to have it. */
  #sealed(slot: number, sector: number, count: number, memorySector: number): number {
    if (this.#cipher === null) return memorySector;
    return this.#cipher.seal(slot, sector, count, memorySector);
  }

  #start(
    sector: number,
    count: number,
    memorySector: number,
    location: number,
    owner: IoOwner,
    token: number,
  ): void {
    const inBlock = this.#file.inBlock(sector);
    this.#context.queue.write(
      this.#file.disk.file,
      location + this.#file.bitmapSectors + inBlock,
      count,
      memorySector,
      owner,
      token,
    );
  }

  /**
   * Whether a footer is being written where the next new block is to lie. The block waits then:
   * of two writes to one place that are under way, either may come last.
   */
  get isNextPlaceTaken(): boolean {
    const start = this.#file.nextBlockSector;
    return start >= 0 && this.#publisher.footerInTheWay(start, blockEnd(this.#file, start));
  }

  /** Writes sectors of a block whose bitmap is in the cache. */
  write(slot: number, sector: number, count: number, memorySector: number, entry: number): void {
    const location = this.#cache.location[entry];
    if (!this.#cache.has(entry, BlockFlag.Unpublished)) {
      const bit = this.#cache.bitOf(entry) + this.#file.inBlock(sector);
      const bits = this.#cache.onDisk;
      if (testBit(bits, bit) && runEnd(bits, bit, bit + count) === bit + count) {
        return this.writeData(slot, sector, count, memorySector, location);
      }
    }
    assert(
      !this.#publisher.footerInTheWay(location, blockEnd(this.#file, location)),
      "A block is written to where a footer is being written",
    );
    const { pieces } = this.#context;
    const piece = pieces.take(PieceKind.Write, slot, sector, count, memorySector);
    pieces.entry[piece] = entry;
    this.#cache.pin(entry);
    const from = this.#sealed(slot, sector, count, memorySector);
    this.#start(sector, count, from, location, this.#dataOwner, piece);
  }

  #dataDone(piece: number, errno: number): void {
    if (errno !== 0) return this.#end(piece, errno);
    const entry = this.#context.pieces.entry[piece];
    const cache = this.#cache;
    // The first sync for the BAT, if it has not started, also serves the data of a new block.
    const isHidden = cache.has(entry, BlockFlag.Unpublished) &&
      !cache.has(entry, BlockFlag.Publishing);
    if (isHidden) return this.#wantBitmap(piece, entry);
    this.#dataSyncs.add(piece, entry);
    this.#context.deferral.add(this);
  }

  dataSynced(piece: number, errno: number): void {
    if (errno !== 0) return this.#end(piece, errno);
    this.#wantBitmap(piece, this.#context.pieces.entry[piece]);
  }

  syncEnded(): void {
    this.#context.deferral.add(this);
    this.#unpinned();
  }

  #wantBitmap(piece: number, entry: number): void {
    this.#setBits(this.#cache.next, piece, entry);
    this.#context.pieces.append(this.#cache.forBitmap, entry, piece);
    this.#makeDue(entry);
  }

  #setBits(bits: Uint8Array, piece: number, entry: number): void {
    const { pieces } = this.#context;
    const inBlock = this.#file.inBlock(pieces.sector[piece]);
    setBits(bits, this.#cache.bitOf(entry) + inBlock, pieces.count[piece]);
  }

  #makeDue(entry: number): void {
    if (this.#isDue[entry] === 0) {
      this.#isDue[entry] = 1;
      this.#due[this.#dueCount++] = entry;
    }
    this.#context.deferral.add(this);
  }

  get faults(): FaultOwner {
    return this.#context.faults;
  }

  runDeferred(): void {
    if (this.#context.faults.failed) return;
    const count = this.#dueCount;
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const entry = this.#due[i];
      if (this.#advance(entry)) this.#isDue[entry] = 0;
      else this.#due[kept++] = entry;
    }
    this.#dueCount = kept;
    if (!this.#publisher.busy) this.#publisher.start();
    this.#dataSyncs.start();
    this.#checkIdle();
  }

  /** Does the next step for a block; false when it has to wait for the publisher. */
  #advance(entry: number): boolean {
    const cache = this.#cache;
    const needsBitmap = !cache.forBitmap.isEmpty(entry);
    if (needsBitmap && !cache.has(entry, BlockFlag.Writing)) this.#writeBitmap(entry);
    if (cache.forPublish.isEmpty(entry)) return true;
    if (!cache.has(entry, BlockFlag.Unpublished)) {
      this.#endAll(cache.forPublish, entry, 0);
      return true;
    }
    return !this.#publisher.busy && this.#publisher.add(entry);
  }

  #writeBitmap(entry: number): void {
    const cache = this.#cache;
    cache.inBitmap.last[entry] = cache.forBitmap.last[entry];
    cache.inBitmap.first[entry] = cache.forBitmap.takeAll(entry);
    cache.flags[entry] |= BlockFlag.Writing;
    this.#context.queue.write(
      this.#file.disk.file,
      cache.location[entry],
      this.#file.bitmapSectors,
      cache.nextAt(entry),
      this.#bitmapOwner,
      entry,
    );
  }

  #bitmapDone(entry: number, errno: number): void {
    const { pieces } = this.#context;
    const cache = this.#cache;
    cache.flags[entry] &= ~BlockFlag.Writing;
    cache.pin(entry);
    if (errno !== 0) {
      cache.flags[entry] |= BlockFlag.Uncertain;
      this.#forgetBits(entry);
      this.#endAll(cache.inBitmap, entry, errno);
    } else {
      cache.flags[entry] &= ~BlockFlag.Uncertain;
      const unpublished = cache.has(entry, BlockFlag.Unpublished);
      for (let piece = cache.inBitmap.takeAll(entry); piece !== NONE;) {
        const next = pieces.next(piece);
        this.#setBits(cache.onDisk, piece, entry);
        if (unpublished) pieces.append(cache.forPublish, entry, piece);
        else this.#end(piece, 0);
        piece = next;
      }
      this.#noteBitmap(entry);
    }
    if (!cache.forBitmap.isEmpty(entry) || !cache.forPublish.isEmpty(entry)) this.#makeDue(entry);
    cache.unpin(entry);
    this.#unpinned();
  }

  /** Takes the bits of writes that fail out of the bitmap that is to be written next. */
  #forgetBits(entry: number): void {
    const { pieces } = this.#context;
    this.#cache.settle(entry);
    for (let piece = this.#cache.forBitmap.first[entry]; piece !== NONE;) {
      this.#setBits(this.#cache.next, piece, entry);
      piece = pieces.next(piece);
    }
  }

  /** A block that has become full needs its bitmap no more, once the BAT points at it. */
  #noteBitmap(entry: number): void {
    const cache = this.#cache;
    if (cache.has(entry, BlockFlag.Unpublished)) return;
    if (cache.isFull(entry, this.#sectorsPerBlock)) this.#file.noteFull(cache.block[entry]);
  }

  published(entry: number, errno: number): void {
    const cache = this.#cache;
    cache.pin(entry);
    if (errno === 0) {
      cache.flags[entry] &= ~(BlockFlag.Publishing | BlockFlag.Unpublished);
      cache.unpin(entry);
      this.#noteBitmap(entry);
    }
    this.#endAll(cache.forPublish, entry, errno);
    cache.unpin(entry);
  }

  publisherIdle(): void {
    if (this.#dueCount > 0 || this.#idle !== null) this.#context.deferral.add(this);
    this.#unpinned();
  }

  #endAll(lists: PieceLists, entry: number, errno: number): void {
    for (let piece = lists.takeAll(entry); piece !== NONE;) {
      const next = this.#context.pieces.next(piece);
      this.#end(piece, errno);
      piece = next;
    }
  }

  #end(piece: number, errno: number): void {
    const { pieces } = this.#context;
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    this.#cache.unpin(pieces.entry[piece]);
    pieces.give(piece);
    this.#sink.pieceDone(slot, count, errno);
  }

  /** Calls back when nothing is under way any more; no request may be. */
  whenIdle(done: () => void): void {
    this.#idle = done;
    this.#checkIdle();
  }

  #checkIdle(): void {
    if (this.#idle === null || this.#publisher.busy || this.#dueCount > 0) return;
    if (!this.#dataSyncs.isIdle) return;
    const done = this.#idle;
    this.#idle = null;
    done();
  }

  /** Gives back what it holds; it must be idle. */
  release(): void {
    this.#publisher.release();
    this.#context.queue.release(OPERATIONS);
  }
}
