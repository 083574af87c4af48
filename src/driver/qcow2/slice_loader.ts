import { Errno } from "../../../ffi/errno.ts";
import type { ImageContext } from "../driver.ts";
import { PieceLists } from "../pieces.ts";
import { FlightOwners, type Flights } from "./flights.ts";
import type { SliceCache } from "./slice_cache.ts";

const NONE = -1;
/** Reads of slices beyond those that requests wait for. */
export const LOADER_OPERATIONS = 4;

/** What becomes of pieces that waited. Either gives the record back. */
export interface WaitingPieces {
  /** Does again, from the start, what a piece had to wait for. */
  resume(piece: number): void;
  /** Ends a piece with an error. */
  fail(piece: number, errno: number): void;
}

/** Reads slices of tables into a cache. Pieces wait here for a slice, or for an entry of the cache. */
export class SliceLoader {
  readonly #context: ImageContext;
  readonly #cache: SliceCache;
  readonly #file: number;
  readonly #flights: Flights;
  readonly #waiting: WaitingPieces;
  /** Whether a slice cannot be read, although there are bytes at its place. */
  readonly #isMissing: (key: number) => boolean;
  /** Called when a slice has been read that no piece may wait for. */
  readonly #loaded: (errno: number) => void;
  readonly #starved = new PieceLists(1);
  readonly #owners: FlightOwners;
  #underWay = 0;

  constructor(
    { context, cache, file, flights, waiting, isMissing = () => false, loaded = () => {} }: {
      context: ImageContext;
      cache: SliceCache;
      file: number;
      flights: Flights;
      waiting: WaitingPieces;
      isMissing?: (key: number) => boolean;
      loaded?: (errno: number) => void;
    },
  ) {
    this.#context = context;
    this.#cache = cache;
    this.#file = file;
    this.#flights = flights;
    this.#waiting = waiting;
    this.#isMissing = isMissing;
    this.#loaded = loaded;
    this.#owners = new FlightOwners(flights, {
      ioDone: (entry, _sectors, errno) => this.#done(entry, errno),
    });
  }

  /** The entry of a slice that begins at a sector of the file; it may still be read. -1: none is free. */
  entryFor(key: number, sector: number): number {
    const known = this.#cache.find(key);
    if (known !== NONE) return known;
    const entry = this.#cache.claim(key);
    if (entry === NONE) return NONE;
    this.#underWay++;
    this.#context.queue.read(
      this.#file,
      sector,
      this.#cache.sliceSectors,
      this.#cache.memoryOf(entry),
      this.#flights.begin(this.#owners),
      entry,
    );
    return entry;
  }

  /** Whether no slice is being read. */
  get isIdle(): boolean {
    return this.#underWay === 0;
  }

  /** Whether pieces have to wait with this entry, or with none (-1). */
  mustWait(entry: number): boolean {
    return entry === NONE || this.#cache.isLoading(entry);
  }

  /** Lets a piece wait until it can be resumed. */
  wait(piece: number, entry: number): void {
    const { pieces } = this.#context;
    if (entry === NONE) pieces.append(this.#starved, 0, piece);
    else pieces.append(this.#cache.forLoad, entry, piece);
  }

  #done(entry: number, result: number): void {
    const { pieces } = this.#context;
    const cache = this.#cache;
    const errno = result === 0 && this.#isMissing(cache.key[entry]) ? Errno.EIO : result;
    this.#underWay--;
    cache.loaded(entry);
    let piece = cache.forLoad.takeAll(entry);
    if (errno !== 0) cache.drop(entry);
    // The pieces may start other loads; this entry must outlast them.
    else cache.pin(entry);
    while (piece !== NONE) {
      const next = pieces.next(piece);
      if (errno === 0) this.#waiting.resume(piece);
      else this.#waiting.fail(piece, errno);
      piece = next;
    }
    if (errno === 0) cache.unpin(entry);
    this.#loaded(errno);
    this.retryStarved();
  }

  /** Entries may be free again: resumes the pieces that found none. */
  retryStarved(): void {
    for (let piece = this.#starved.takeAll(0); piece !== NONE;) {
      const next = this.#context.pieces.next(piece);
      this.#waiting.resume(piece);
      piece = next;
    }
  }
}
