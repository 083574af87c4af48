import type { IoOwner } from "../queue/disk_queue.ts";
import type { ImageContext } from "./driver.ts";
import { PieceLists } from "./pieces.ts";
import type { TableCache } from "./table_cache.ts";

const NONE = -1;

/** What becomes of pieces that waited. Either gives the record back. */
export interface WaitingPieces {
  /** Does again, from the start, what a piece had to wait for. */
  resume(piece: number): void;
  /** Ends a piece with an error. */
  fail(piece: number, errno: number): void;
  /** A place in the cache may have become free. */
  entryFree(): void;
}

/** Reads tables of an image's metadata into a cache. Pieces wait here for a table, or for a place in the cache. */
export class TableLoader implements IoOwner {
  readonly #context: ImageContext;
  readonly #file: number;
  readonly #placeOf: (table: number) => number;
  readonly #loaded: ((entry: number) => void) | null;
  readonly #tableSectors: number;
  readonly #cache: TableCache;
  readonly #waiting: WaitingPieces;
  readonly #starved = new PieceLists(1);

  constructor(
    { context, file, placeOf, loaded = null, tableSectors, cache, waiting }: {
      context: ImageContext;
      file: number;
      /** The sector of the file at which a table begins. */
      placeOf: (table: number) => number;
      /** Called when a table has been read. */
      loaded?: ((entry: number) => void) | null;
      tableSectors: number;
      cache: TableCache;
      waiting: WaitingPieces;
    },
  ) {
    this.#context = context;
    this.#file = file;
    this.#placeOf = placeOf;
    this.#loaded = loaded;
    this.#tableSectors = tableSectors;
    this.#cache = cache;
    this.#waiting = waiting;
  }

  /** Whether pieces have to wait with this entry, or with none (-1). */
  mustWait(entry: number): boolean {
    return entry === NONE || this.#cache.isLoading(entry);
  }

  /** Lets a piece wait until it can be resumed. */
  wait(piece: number, entry: number): void {
    if (entry === NONE) this.#context.pieces.append(this.#starved, 0, piece);
    else this.#context.pieces.append(this.#cache.forLoad, entry, piece);
  }

  /** The entry of a table that is in the file, which may still be read; -1 when all are in use. */
  entryFor(table: number): number {
    const known = this.#cache.find(table);
    if (known !== NONE) return known;
    const entry = this.#cache.claim(table);
    if (entry === NONE) return NONE;
    this.#cache.setLoading(entry, true);
    this.#cache.pin(entry);
    const { queue } = this.#context;
    const at = this.#cache.memoryOf(entry);
    queue.read(this.#file, this.#placeOf(table), this.#tableSectors, at, this, entry);
    return entry;
  }

  ioDone(entry: number, _sectors: number, errno: number): void {
    const cache = this.#cache;
    cache.setLoading(entry, false);
    let piece = cache.forLoad.takeAll(entry);
    if (errno === 0) this.#loaded?.(entry);
    else {
      cache.unpin(entry);
      cache.drop(entry);
    }
    // The pieces may start other loads; a table that was read must outlast them.
    while (piece !== NONE) {
      const next = this.#context.pieces.next(piece);
      if (errno === 0) this.#waiting.resume(piece);
      else this.#waiting.fail(piece, errno);
      piece = next;
    }
    if (errno === 0) cache.unpin(entry);
    this.#waiting.entryFree();
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
