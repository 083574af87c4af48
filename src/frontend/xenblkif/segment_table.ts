import {
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_PAGE_SECTORS,
  BLKIF_SEGMENT_BYTES,
  type BlkifRing,
  segmentFirst,
  segmentLast,
} from "../../../ffi/blkif_ring.ts";
import { Arena, SECTOR_BYTES } from "../../../ffi/memory.ts";
import { GrantCopies, type Grants } from "../../../ffi/xen.ts";

/** The most segments of a request, which move 1 MiB. */
export const MOST_SEGMENTS = 256;
/** Requests whose segments are read from the guest in one call. */
const MOST_TABLES = 32;
const TABLE_BYTES = MOST_SEGMENTS * BLKIF_SEGMENT_BYTES;
const TABLE_WORDS = TABLE_BYTES / 4;
const LAST_SECTOR = BLKIF_PAGE_SECTORS - 1;

/**
 * The segments of a ring's requests, by the requests' numbers: each is a part of a page of the guest.
 * They are copied once, from the ring or from a page of the guest, and then checked.
 */
export class SegmentTable {
  /** By number: sectors of all segments. */
  readonly sectors: Uint32Array;
  readonly #grants: Grants;
  readonly #copies: GrantCopies;
  /** Segments that were copied from pages of the guest, each request's after the other's. */
  readonly #tables = new Arena(MOST_TABLES * TABLE_BYTES);
  readonly #tableWords: Int32Array;
  /** By number: how many segments there are, and which is the next to start. */
  readonly #count: Uint16Array;
  readonly #next: Uint16Array;
  /** By number and segment. */
  readonly #references: Int32Array;
  readonly #first: Uint8Array;
  readonly #length: Uint8Array;
  /** The requests whose tables are to be read, and how many segments they have. */
  readonly #readers = new Uint16Array(MOST_TABLES);
  readonly #readCounts = new Uint16Array(MOST_TABLES);
  #readErrno = 0;

  constructor(entries: number, grants: Grants, domain: number) {
    this.#grants = grants;
    this.#copies = new GrantCopies(domain);
    const { bytes } = this.#tables;
    this.#tableWords = new Int32Array(bytes.buffer, bytes.byteOffset, MOST_TABLES * TABLE_WORDS);
    this.sectors = new Uint32Array(entries);
    this.#count = new Uint16Array(entries);
    this.#next = new Uint16Array(entries);
    this.#references = new Int32Array(entries * MOST_SEGMENTS);
    this.#first = new Uint8Array(entries * MOST_SEGMENTS);
    this.#length = new Uint8Array(entries * MOST_SEGMENTS);
  }

  /** A request begins without segments. */
  clear(number: number): void {
    this.#count[number] = 0;
    this.#next[number] = 0;
    this.sectors[number] = 0;
  }

  /** Copies and checks the segments of a request in the ring; false when they make no sense. */
  copy(number: number, ring: BlkifRing, count: number): boolean {
    if (count < 1 || count > BLKIF_MAX_SEGMENTS_PER_REQUEST) return false;
    for (let i = 0; i < count; i++) {
      if (!this.#put(number, i, ring.reference(i), ring.sectors(i))) return false;
    }
    this.#count[number] = count;
    return true;
  }

  #put(number: number, index: number, reference: number, range: number): boolean {
    const first = segmentFirst(range);
    const last = segmentLast(range);
    if (first > last || last > LAST_SECTOR) return false;
    const at = number * MOST_SEGMENTS + index;
    this.#references[at] = reference;
    this.#first[at] = first;
    this.#length[at] = last - first + 1;
    this.sectors[number] += last - first + 1;
    return true;
  }

  // ---- tables in pages of the guest -------------------------------------------------------

  /** Whether one more table can be read later. */
  get hasRoom(): boolean {
    return this.#copies.count < MOST_TABLES;
  }

  /** The segments of a request are in a page of the guest, which `readTables` reads. */
  readLater(number: number, reference: number, count: number): void {
    const index = this.#copies.count;
    this.#readers[index] = number;
    this.#readCounts[index] = count;
    const sector = this.#tables.sector + index * (TABLE_BYTES / SECTOR_BYTES);
    this.#copies.addFromGuest(reference, 0, sector, count * BLKIF_SEGMENT_BYTES);
  }

  /** Reads the tables of all requests that wait for that; returns how many. `wasRead` follows. */
  readTables(): number {
    const { count } = this.#copies;
    if (count === 0) return 0;
    this.#readErrno = this.#grants.copy(this.#copies);
    this.#copies.clear();
    return count;
  }

  /**
   * Checks the segments of a table that was read.
   *
   * @returns The number of its request; below 0, -1 - number: they cannot be read, or make no sense.
   */
  wasRead(index: number): number {
    const number = this.#readers[index];
    if (this.#readErrno !== 0 || this.#copies.status(index) !== 0) return -1 - number;
    const count = this.#readCounts[index];
    for (let i = 0; i < count; i++) {
      const at = index * TABLE_WORDS + 2 * i;
      const isSound = this.#put(number, i, this.#tableWords[at], this.#tableWords[at + 1]);
      if (!isSound) return -1 - number;
    }
    this.#count[number] = count;
    return number;
  }

  // ---- parts ------------------------------------------------------------------------------

  /** Whether a request has segments that no part has taken. */
  hasNext(number: number): boolean {
    return this.#next[number] < this.#count[number];
  }

  /** The first segment that no part has taken. */
  next(number: number): number {
    return this.#next[number];
  }

  /** Takes segments of at most so many sectors for a part; returns how many segments. */
  takePart(number: number, mostSectors: number): number {
    const start = this.#next[number];
    const base = number * MOST_SEGMENTS;
    let end = start;
    let left = mostSectors;
    while (end < this.#count[number] && this.#length[base + end] <= left) {
      left -= this.#length[base + end++];
    }
    this.#next[number] = end;
    return end - start;
  }

  reference(number: number, index: number): number {
    return this.#references[number * MOST_SEGMENTS + index];
  }

  firstSector(number: number, index: number): number {
    return this.#first[number * MOST_SEGMENTS + index];
  }

  lengthSectors(number: number, index: number): number {
    return this.#length[number * MOST_SEGMENTS + index];
  }

  /** Releases the memory. */
  release(): void {
    this.#copies.release();
    this.#tables.release();
  }
}
