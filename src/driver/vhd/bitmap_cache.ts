import { assert } from "../../../ffi/assert.ts";
import { Arena } from "../../../ffi/memory.ts";
import { runEnd, testBit } from "../../vhd/format/bitmap.ts";
import { PieceLists } from "../pieces.ts";

/** What is going on with a block whose bitmap is in the cache. */
export const BlockFlag = {
  /** The bitmap is being read. */
  Loading: 1,
  /** The block was allocated, but the BAT on disk does not point at it yet. */
  Unpublished: 2,
  /** The bitmap is being written. */
  Writing: 4,
  /** Used since the clock's hand last passed. */
  Recent: 8,
  /**
   * The BAT on disk may point at the block, or is about to: the sync for that has started. It stays so
   * after an error, as a disk may have done what it reports as failed.
   */
  Publishing: 16,
  /** A write of the bitmap failed: the one on disk may have more bits. */
  Uncertain: 32,
} as const;

const BUDGET_BYTES = 256 * 1024;
const FEWEST_ENTRIES = 16;
const MOST_ENTRIES = 512;
const NONE = -1;

/**
 * The bitmaps of blocks in use, and the pieces that wait for them. Each bitmap has two states: the one
 * on disk, and the next one, which also has the bits of data that was written since. Entries in use
 * are pinned. The clock algorithm replaces an entry that is not pinned and was not used lately.
 */
export class BitmapCache {
  readonly entries: number;
  /** Bytes of one bitmap, whole sectors. */
  readonly bitmapBytes: number;
  /** Bitmaps as the disk has them, one after the other; bit `bitOf(entry)` is the first of one. */
  readonly onDisk: Uint8Array<ArrayBuffer>;
  /** Bitmaps as they are to be, alike. */
  readonly next: Uint8Array<ArrayBuffer>;
  readonly block: Int32Array;
  /** Sector of the file at which the block begins, with its bitmap. */
  readonly location: Float64Array;
  /** A union of `BlockFlag`s. */
  readonly flags: Uint8Array;
  /** Pieces that wait for the bitmap to be read. */
  readonly forLoad: PieceLists;
  /** Pieces whose data has been written, but not synced. */
  readonly forSync: PieceLists;
  /** Pieces whose data is being synced. */
  readonly inSync: PieceLists;
  /** Pieces whose data is on disk and whose bits are not. */
  readonly forBitmap: PieceLists;
  /** Pieces whose bits are being written. */
  readonly inBitmap: PieceLists;
  /** Pieces whose bits are on disk, in a block that the BAT does not point at yet. */
  readonly forPublish: PieceLists;
  readonly #pins: Int32Array;
  readonly #bitmapSectors: number;
  readonly #arena: Arena;
  readonly #entryOfBlock: Int16Array;
  #hand = 0;

  /**
   * @param blocks Blocks of the image.
   * @param bitmapBytes Bytes of a block's bitmap, whole sectors.
   */
  constructor(blocks: number, bitmapBytes: number) {
    const affordable = Math.floor(BUDGET_BYTES / bitmapBytes);
    this.entries = Math.min(MOST_ENTRIES, Math.max(FEWEST_ENTRIES, affordable));
    this.bitmapBytes = bitmapBytes;
    this.#bitmapSectors = bitmapBytes / 512;
    const half = this.entries * bitmapBytes;
    this.#arena = new Arena(2 * half);
    this.onDisk = this.#arena.bytes.subarray(0, half);
    this.next = this.#arena.bytes.subarray(half, 2 * half);
    this.block = new Int32Array(this.entries).fill(NONE);
    this.location = new Float64Array(this.entries);
    this.flags = new Uint8Array(this.entries);
    this.forLoad = new PieceLists(this.entries);
    this.forSync = new PieceLists(this.entries);
    this.inSync = new PieceLists(this.entries);
    this.forBitmap = new PieceLists(this.entries);
    this.inBitmap = new PieceLists(this.entries);
    this.forPublish = new PieceLists(this.entries);
    this.#pins = new Int32Array(this.entries);
    this.#entryOfBlock = new Int16Array(blocks);
  }

  /** The entry of a block, or -1. */
  find(block: number): number {
    const entry = this.#entryOfBlock[block] - 1;
    if (entry >= 0) this.flags[entry] |= BlockFlag.Recent;
    return entry;
  }

  /** Makes an entry for a block that has none, with both bitmaps zero; -1: all are in use. */
  claim(block: number, location: number): number {
    assert(this.#entryOfBlock[block] === 0, "A block gets a second entry in the bitmap cache");
    const entry = this.#victim();
    if (entry === NONE) return NONE;
    if (this.block[entry] !== NONE) this.drop(entry);
    this.block[entry] = block;
    this.location[entry] = location;
    this.flags[entry] = BlockFlag.Recent;
    this.#entryOfBlock[block] = entry + 1;
    const first = entry * this.bitmapBytes;
    this.onDisk.fill(0, first, first + this.bitmapBytes);
    this.next.fill(0, first, first + this.bitmapBytes);
    return entry;
  }

  #victim(): number {
    for (let looked = 0; looked < 2 * this.entries; looked++) {
      const entry = this.#hand;
      this.#hand = entry + 1 === this.entries ? 0 : entry + 1;
      if (this.#pins[entry] > 0) continue;
      if ((this.flags[entry] & BlockFlag.Recent) === 0) return entry;
      this.flags[entry] &= ~BlockFlag.Recent;
    }
    return this.#givenUp();
  }

  /**
   * A new block without requests that the BAT does not point at, because all writes to it failed. Its
   * room in the file is lost; -1: there is none.
   */
  #givenUp(): number {
    for (let entry = 0; entry < this.entries; entry++) {
      if (this.#pins[entry] !== 1 || !this.has(entry, BlockFlag.Unpublished)) continue;
      this.#pins[entry] = 0;
      return entry;
    }
    return NONE;
  }

  /** Forgets an entry that nothing pins. */
  drop(entry: number): void {
    assert(this.block[entry] !== NONE, "An entry of the bitmap cache is dropped twice");
    assert(this.#pins[entry] === 0, "An entry of the bitmap cache is dropped while it is in use");
    assert(
      this.forLoad.isEmpty(entry) && this.forSync.isEmpty(entry) &&
        this.inSync.isEmpty(entry) && this.forBitmap.isEmpty(entry) &&
        this.inBitmap.isEmpty(entry) && this.forPublish.isEmpty(entry),
      "An entry of the bitmap cache is dropped while requests wait for it",
    );
    this.#entryOfBlock[this.block[entry]] = 0;
    this.block[entry] = NONE;
    this.flags[entry] = 0;
  }

  /** Keeps an entry from being given up. */
  pin(entry: number): void {
    assert(this.block[entry] !== NONE, "An unused entry of the bitmap cache is pinned");
    this.#pins[entry]++;
  }

  /** Takes one such hold back. */
  unpin(entry: number): void {
    assert(this.#pins[entry] > 0, "An entry of the bitmap cache is unpinned more than pinned");
    this.#pins[entry]--;
  }

  /** Whether a flag of an entry is set. */
  has(entry: number, flag: number): boolean {
    return (this.flags[entry] & flag) !== 0;
  }

  /** Index in `onDisk` and `next` of the bit of a block's first sector. */
  bitOf(entry: number): number {
    return entry * this.bitmapBytes * 8;
  }

  /** Whether the disk has the bits of all of a block's sectors. */
  isFull(entry: number, sectorsPerBlock: number): boolean {
    const first = this.bitOf(entry);
    const end = first + sectorsPerBlock;
    // Blocks are mostly filled from the front: the last bit decides soonest.
    if (!testBit(this.onDisk, end - 1) || !testBit(this.onDisk, first)) return false;
    return runEnd(this.onDisk, first, end) === end;
  }

  /** Where in I/O memory the bitmap is as the disk has it. */
  onDiskAt(entry: number): number {
    return this.#arena.sector + entry * this.#bitmapSectors;
  }

  /** Where in I/O memory the bitmap is as it is to be. */
  nextAt(entry: number): number {
    return this.#arena.sector + (this.entries + entry) * this.#bitmapSectors;
  }

  /** After loading: what is to be is what is. */
  settle(entry: number): void {
    const first = entry * this.bitmapBytes;
    const next = this.entries * this.bitmapBytes + first;
    this.#arena.bytes.copyWithin(next, first, first + this.bitmapBytes);
  }

  /** Unmaps the bitmaps. */
  release(): void {
    this.#arena.release();
  }
}
