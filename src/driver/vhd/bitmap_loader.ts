import { errnoOf } from "../../../ffi/errno.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import type { ImageContext } from "../driver.ts";
import { PieceLists } from "../pieces.ts";
import { type BitmapCache, BlockFlag } from "./bitmap_cache.ts";
import type { VhdFile } from "./vhd_file.ts";

const NONE = -1;

/** What becomes of pieces that waited. Either gives the record back. */
export interface WaitingPieces {
  /** Does again, from the start, what a piece had to wait for. */
  resume(piece: number): void;
  /** Ends a piece with an error. */
  fail(piece: number, errno: number): void;
}

/**
 * Gives blocks their entries in the bitmap cache: reads the bitmaps of blocks that are there, finds
 * room in the file for new ones. Pieces wait here for a bitmap to be read, or for an entry.
 */
export class BitmapLoader {
  readonly #context: ImageContext;
  readonly #file: VhdFile;
  readonly #cache: BitmapCache;
  readonly #waiting: WaitingPieces;
  /** Pieces that found no entry. */
  readonly #starved = new PieceLists(1);
  readonly #loadOwner: IoOwner = { ioDone: (entry, _length, errno) => this.#loaded(entry, errno) };

  constructor(
    { context, file, cache, waiting }: {
      context: ImageContext;
      file: VhdFile;
      cache: BitmapCache;
      waiting: WaitingPieces;
    },
  ) {
    this.#context = context;
    this.#file = file;
    this.#cache = cache;
    this.#waiting = waiting;
  }

  /** Whether pieces have to wait with this entry, or with none (-1). */
  mustWait(entry: number): boolean {
    return entry === NONE || this.#cache.has(entry, BlockFlag.Loading);
  }

  /** Lets a piece wait until it can be resumed. */
  wait(piece: number, entry: number): void {
    if (entry === NONE) this.#context.pieces.append(this.#starved, 0, piece);
    else this.#context.pieces.append(this.#cache.forLoad, entry, piece);
  }

  /** The entry of an allocated block, whose bitmap may still be read; -1 when all are in use. */
  entryFor(block: number, location: number): number {
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

  /**
   * Finds room for a block that has neither an entry nor a place in the file.
   *
   * @returns Its entry; -1 when all are in use; below that: -1 - errno.
   */
  addBlock(block: number): number {
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

  #loaded(entry: number, errno: number): void {
    const { pieces } = this.#context;
    const cache = this.#cache;
    cache.flags[entry] &= ~BlockFlag.Loading;
    cache.unpin(entry);
    let piece = cache.forLoad.takeAll(entry);
    if (errno !== 0) cache.drop(entry);
    else {
      cache.settle(entry);
      if (cache.isFull(entry, this.#file.sectorsPerBlock)) this.#file.noteFull(cache.block[entry]);
      else this.#file.notePartial(cache.block[entry]);
      // The pieces may start other loads; this entry must outlast them.
      cache.pin(entry);
    }
    while (piece !== NONE) {
      const next = pieces.next(piece);
      if (errno === 0) this.#waiting.resume(piece);
      else this.#waiting.fail(piece, errno);
      piece = next;
    }
    if (errno === 0) cache.unpin(entry);
    this.retryStarved();
  }

  /** Entries may be free again: resumes the pieces that found none. */
  retryStarved(): void {
    let piece = this.#starved.takeAll(0);
    while (piece !== NONE) {
      const next = this.#context.pieces.next(piece);
      this.#waiting.resume(piece);
      piece = next;
    }
  }
}
