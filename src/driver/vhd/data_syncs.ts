import { assert } from "../../../ffi/assert.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import type { ImageQueue } from "../driver.ts";
import type { PieceTable } from "../pieces.ts";
import type { BitmapCache } from "./bitmap_cache.ts";

const NONE = -1;
/** Operations that the syncs can have under way. */
export const DATA_SYNC_OPERATIONS = 1;

/** Where the ends of syncs are told. */
export interface DataSyncOwner {
  /** The data of this piece is on stable storage, or, with an errno, is not known to be. */
  dataSynced(piece: number, errno: number): void;
  /** A sync has ended; the next can start. */
  syncEnded(): void;
}

/**
 * Syncs data in front of the bits that show it. Without that, a power cut could keep a bit and not its
 * data: the sector would show what its room in the file held before, and no longer what the images
 * below hold. One sync serves all data that was written before it started.
 */
export class DataSyncs implements IoOwner {
  readonly #file: number;
  readonly #cache: BitmapCache;
  readonly #pieces: PieceTable;
  readonly #queue: ImageQueue;
  readonly #owner: DataSyncOwner;
  /** Entries of the cache with pieces in `forSync`, each once. */
  readonly #waiting: Int32Array;
  readonly #isWaiting: Uint8Array;
  #waitingCount = 0;
  /** Entries with pieces in `inSync`. */
  readonly #syncing: Int32Array;
  #syncingCount = 0;
  #busy = false;

  constructor(
    file: number,
    { cache, pieces, queue, owner }: {
      cache: BitmapCache;
      pieces: PieceTable;
      queue: ImageQueue;
      owner: DataSyncOwner;
    },
  ) {
    this.#file = file;
    this.#cache = cache;
    this.#pieces = pieces;
    this.#queue = queue;
    this.#owner = owner;
    this.#waiting = new Int32Array(cache.entries);
    this.#isWaiting = new Uint8Array(cache.entries);
    this.#syncing = new Int32Array(cache.entries);
  }

  /** Whether nothing is to be synced. */
  get isIdle(): boolean {
    return !this.#busy && this.#waitingCount === 0;
  }

  /** Adds a piece whose data has been written. */
  add(piece: number, entry: number): void {
    this.#pieces.append(this.#cache.forSync, entry, piece);
    if (this.#isWaiting[entry] === 1) return;
    this.#isWaiting[entry] = 1;
    this.#waiting[this.#waitingCount++] = entry;
  }

  /** Starts a sync for what was added, unless one is under way. */
  start(): void {
    if (this.#busy || this.#waitingCount === 0) return;
    const { forSync, inSync } = this.#cache;
    for (let i = 0; i < this.#waitingCount; i++) {
      const entry = this.#waiting[i];
      assert(inSync.isEmpty(entry), "A piece waits for two syncs");
      inSync.last[entry] = forSync.last[entry];
      inSync.first[entry] = forSync.takeAll(entry);
      this.#isWaiting[entry] = 0;
      this.#syncing[i] = entry;
    }
    this.#syncingCount = this.#waitingCount;
    this.#waitingCount = 0;
    this.#busy = true;
    this.#queue.sync(this.#file, this, 0);
  }

  ioDone(_token: number, _length: number, errno: number): void {
    this.#busy = false;
    const count = this.#syncingCount;
    this.#syncingCount = 0;
    for (let i = 0; i < count; i++) {
      for (let piece = this.#cache.inSync.takeAll(this.#syncing[i]); piece !== NONE;) {
        const next = this.#pieces.next(piece);
        this.#owner.dataSynced(piece, errno);
        piece = next;
      }
    }
    this.#owner.syncEnded();
  }
}
