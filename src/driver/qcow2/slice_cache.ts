import { assert } from "../../../ffi/assert.ts";
import { Arena } from "../../../ffi/memory.ts";
import { SECTOR_BYTES } from "../driver.ts";
import { PieceLists } from "../pieces.ts";

const NONE = -1;
/** A power of 2: the remainder of a number that is no small integer costs a call. */
const BUCKETS = 1024;
/** The most bytes of a slice: a part of a table that is read at once. */
export const MOST_SLICE_BYTES = 4096;

/**
 * Parts of metadata tables in memory, as the file has them, and the pieces that wait for them. A
 * slice is known by a number. Those in use are pinned; the clock algorithm replaces one that is not
 * and was not used lately.
 */
export class SliceCache {
  readonly entries: number;
  readonly sliceBytes: number;
  readonly sliceSectors: number;
  /** The slices, one after the other; `byteOf` says where one begins. */
  readonly view: DataView<ArrayBuffer>;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** By entry: the number of the slice, or -1. */
  readonly key: Float64Array;
  /** Pieces that wait for the slice to be read. */
  readonly forLoad: PieceLists;
  readonly #arena: Arena;
  readonly #isLoading: Uint8Array;
  readonly #isRecent: Uint8Array;
  /** By sector. */
  readonly #isUncertain: Uint8Array;
  readonly #pins: Int32Array;
  readonly #bucket = new Int16Array(BUCKETS).fill(NONE);
  readonly #nextInBucket: Int16Array;
  #hand = 0;

  /**
   * @param sliceBytes Bytes of a slice: whole sectors.
   * @param budgetBytes How much memory the slices may take.
   */
  constructor(sliceBytes: number, budgetBytes: number) {
    this.entries = Math.max(64, Math.min(32767, Math.floor(budgetBytes / sliceBytes)));
    this.sliceBytes = sliceBytes;
    this.sliceSectors = sliceBytes / SECTOR_BYTES;
    this.#arena = new Arena(this.entries * sliceBytes);
    this.view = this.#arena.view;
    this.bytes = this.#arena.bytes;
    this.key = new Float64Array(this.entries).fill(NONE);
    this.forLoad = new PieceLists(this.entries);
    this.#isLoading = new Uint8Array(this.entries);
    this.#isRecent = new Uint8Array(this.entries);
    this.#isUncertain = new Uint8Array(this.entries * this.sliceSectors);
    this.#pins = new Int32Array(this.entries);
    this.#nextInBucket = new Int16Array(this.entries);
  }

  /** The entry of a slice, or -1. It may still be read. */
  find(key: number): number {
    let entry = this.#bucket[key & (BUCKETS - 1)];
    while (entry !== NONE && this.key[entry] !== key) entry = this.#nextInBucket[entry];
    if (entry !== NONE) this.#isRecent[entry] = 1;
    return entry;
  }

  /** Makes an entry for a slice that has none, which is about to be read; -1: all are in use. */
  claim(key: number): number {
    assert(this.find(key) === NONE, "A slice of a table gets a second entry in its cache");
    const entry = this.#victim();
    if (entry === NONE) return NONE;
    if (this.key[entry] !== NONE) this.drop(entry);
    this.key[entry] = key;
    this.#nextInBucket[entry] = this.#bucket[key & (BUCKETS - 1)];
    this.#bucket[key & (BUCKETS - 1)] = entry;
    this.#isRecent[entry] = 1;
    this.#isLoading[entry] = 1;
    this.#pins[entry] = 1;
    const firstSector = entry * this.sliceSectors;
    this.#isUncertain.fill(0, firstSector, firstSector + this.sliceSectors);
    return entry;
  }

  #victim(): number {
    for (let looked = 0; looked < 2 * this.entries; looked++) {
      const entry = this.#hand;
      this.#hand = entry + 1 === this.entries ? 0 : entry + 1;
      if (this.#pins[entry] > 0) continue;
      if (this.#isRecent[entry] === 0) return entry;
      this.#isRecent[entry] = 0;
    }
    return NONE;
  }

  /** The slice has been read, or could not be. */
  loaded(entry: number): void {
    assert(this.#isLoading[entry] === 1, "A slice of a table is read twice");
    this.#isLoading[entry] = 0;
    this.unpin(entry);
  }

  isLoading(entry: number): boolean {
    return this.#isLoading[entry] === 1;
  }

  /** Forgets an entry that nothing pins. */
  drop(entry: number): void {
    const key = this.key[entry];
    assert(this.#pins[entry] === 0 && key !== NONE, "A slice of a table is dropped while in use");
    assert(this.forLoad.isEmpty(entry), "A slice of a table is dropped while requests wait");
    const bucket = key & (BUCKETS - 1);
    if (this.#bucket[bucket] === entry) this.#bucket[bucket] = this.#nextInBucket[entry];
    else {
      let before = this.#bucket[bucket];
      while (this.#nextInBucket[before] !== entry) before = this.#nextInBucket[before];
      this.#nextInBucket[before] = this.#nextInBucket[entry];
    }
    this.key[entry] = NONE;
  }

  /** Keeps an entry from being given up. */
  pin(entry: number): void {
    assert(this.key[entry] !== NONE, "An unused entry of a cache is pinned");
    this.#pins[entry]++;
  }

  /** Takes one such hold back. */
  unpin(entry: number): void {
    assert(this.#pins[entry] > 0, "An entry of a cache is unpinned more than pinned");
    this.#pins[entry]--;
  }

  /**
   * Whether the file may have other entries than the cache has at a byte of `view`: a write of the
   * sector failed. What was to be written may be there, and it may not.
   */
  isUncertain(at: number): boolean {
    return this.#isUncertain[Math.floor(at / SECTOR_BYTES)] === 1;
  }

  /** A write of a sector of the cache failed, or did not. */
  setUncertain(sector: number, isUncertain: boolean): void {
    this.#isUncertain[sector] = isUncertain ? 1 : 0;
  }

  /** Byte of `view` at which a slice begins. */
  byteOf(entry: number): number {
    return entry * this.sliceBytes;
  }

  /** Sector of I/O memory at which a slice begins. */
  memoryOf(entry: number): number {
    return this.#arena.sector + entry * this.sliceSectors;
  }

  /** Unmaps the slices. */
  release(): void {
    this.#arena.release();
  }
}
