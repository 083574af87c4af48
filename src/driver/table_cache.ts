import { assert } from "../../ffi/assert.ts";
import { Arena } from "../../ffi/memory.ts";
import { PieceLists } from "./pieces.ts";

const BUDGET_BYTES = 1 << 20;
const FEWEST_ENTRIES = 16;
const MOST_ENTRIES = 512;
const NONE = -1;

/**
 * Parts of an image's metadata, all of one size, as the disk has them, and the pieces that wait for them:
 * L2 tables, bitmaps. Entries in use are pinned. The clock algorithm replaces an entry that is not pinned and was not used lately.
 */
export class TableCache {
  readonly entries: number;
  /** The tables, one after the other. */
  readonly view: DataView<ArrayBuffer>;
  /** Which table an entry has; -1 for an entry that is free. */
  readonly table: Int32Array;
  /** Pieces that wait for the table to be read. */
  readonly forLoad: PieceLists;
  readonly #loading: Uint8Array;
  readonly #recent: Uint8Array;
  /** By sector of the cache. */
  readonly #uncertain: Uint8Array;
  readonly #pins: Int32Array;
  readonly #arena: Arena;
  readonly #tableBytes: number;
  readonly #entryOfTable: Int16Array;
  #hand = 0;

  /**
   * @param tables How many there are.
   * @param tableBytes Bytes of each, whole sectors.
   */
  constructor(tables: number, tableBytes: number) {
    const affordable = Math.floor(BUDGET_BYTES / tableBytes);
    this.entries = Math.min(MOST_ENTRIES, Math.max(FEWEST_ENTRIES, affordable));
    this.#tableBytes = tableBytes;
    this.#arena = new Arena(this.entries * tableBytes);
    this.view = this.#arena.view;
    this.table = new Int32Array(this.entries).fill(NONE);
    this.forLoad = new PieceLists(this.entries);
    this.#loading = new Uint8Array(this.entries);
    this.#recent = new Uint8Array(this.entries);
    this.#uncertain = new Uint8Array(this.entries * tableBytes / 512);
    this.#pins = new Int32Array(this.entries);
    this.#entryOfTable = new Int16Array(tables);
  }

  /** The entry of a table, or -1. */
  find(table: number): number {
    const entry = this.#entryOfTable[table] - 1;
    if (entry >= 0) this.#recent[entry] = 1;
    return entry;
  }

  /** Makes an entry, all zeros, for a table that has none; -1: all are in use. */
  claim(table: number): number {
    assert(this.#entryOfTable[table] === 0, "A table gets a second entry in the cache");
    const entry = this.#victim();
    if (entry === NONE) return NONE;
    if (this.table[entry] !== NONE) this.drop(entry);
    this.table[entry] = table;
    this.#recent[entry] = 1;
    this.#entryOfTable[table] = entry + 1;
    const first = entry * this.#tableBytes;
    this.#arena.bytes.fill(0, first, first + this.#tableBytes);
    this.#uncertain.fill(0, first / 512, (first + this.#tableBytes) / 512);
    return entry;
  }

  #victim(): number {
    for (let looked = 0; looked < 2 * this.entries; looked++) {
      const entry = this.#hand;
      this.#hand = entry + 1 === this.entries ? 0 : entry + 1;
      if (this.#pins[entry] > 0) continue;
      if (this.#recent[entry] === 0) return entry;
      this.#recent[entry] = 0;
    }
    return NONE;
  }

  /** Forgets an entry that nothing pins. */
  drop(entry: number): void {
    assert(this.table[entry] !== NONE, "An entry of the table cache is dropped twice");
    assert(this.#pins[entry] === 0, "An entry of the table cache is dropped while it is in use");
    assert(this.forLoad.isEmpty(entry), "A table is dropped while requests wait for it");
    this.#entryOfTable[this.table[entry]] = 0;
    this.table[entry] = NONE;
    this.#loading[entry] = 0;
  }

  /** Keeps an entry from being given up. */
  pin(entry: number): void {
    assert(this.table[entry] !== NONE, "An unused entry of the table cache is pinned");
    this.#pins[entry]++;
  }

  /** Takes one such hold back. */
  unpin(entry: number): void {
    assert(this.#pins[entry] > 0, "An entry of the table cache is unpinned more than pinned");
    this.#pins[entry]--;
  }

  /** Whether the table is being read. */
  isLoading(entry: number): boolean {
    return this.#loading[entry] !== 0;
  }

  /** The table is being read, or not any more. */
  setLoading(entry: number, isLoading: boolean): void {
    this.#loading[entry] = isLoading ? 1 : 0;
  }

  /**
   * A write of a sector of a table failed, or did not. After an error the file may have what was to be
   * written, until the sector is written or read again.
   */
  setUncertain(entry: number, sectorInTable: number, isUncertain: boolean): void {
    this.#uncertain[entry * this.#tableBytes / 512 + sectorInTable] = isUncertain ? 1 : 0;
  }

  /** Whether the file may have other entries of a table than the cache, from one to another. */
  isUncertain(entry: number, firstIndex: number, lastIndex: number): boolean {
    const last = Math.floor(this.at(entry, lastIndex) / 512);
    let sector = Math.floor(this.at(entry, firstIndex) / 512);
    while (sector < last && this.#uncertain[sector] === 0) sector++;
    return this.#uncertain[sector] !== 0;
  }

  /** Where in `view` an entry of a table is. */
  at(entry: number, index: number): number {
    return entry * this.#tableBytes + 8 * index;
  }

  /** Where in I/O memory a table is. */
  memoryOf(entry: number): number {
    return this.#arena.sector + entry * this.#tableBytes / 512;
  }

  /** Copies a sector of a table to memory of the same kind. */
  copySector(entry: number, sectorInTable: number, to: Arena, toBytes: number): void {
    const from = entry * this.#tableBytes + sectorInTable * 512;
    for (let i = 0; i < 512; i += 4) {
      to.view.setUint32(toBytes + i, this.view.getUint32(from + i));
    }
  }

  /** Unmaps the tables. */
  release(): void {
    this.#arena.release();
  }
}
