/**
 * The ring of the blktap2 driver in memory: layouts of linux-blktap.h and of Xen's io/ring.h on
 * x86-64. It knows nothing of the driver's devices and ioctls, see `blktap.ts`.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { type Arena, PAGE_BYTES, SECTOR_BYTES } from "./memory.ts";

/** Operations of a request. */
export const BLKTAP_OP_READ = 0;
export const BLKTAP_OP_WRITE = 1;
export const BLKTAP_OP_FLUSH = 2;
export const BLKTAP_OP_TRIM = 3;

/** Status of a response. */
export const BLKTAP_RSP_OKAY = 0;
export const BLKTAP_RSP_ERROR = -1;
export const BLKTAP_RSP_EOPNOTSUPP = -2;

/** Messages of the driver in the ring. Only the first drivers send PAUSE and RESUME. */
export const BLKTAP_RING_MESSAGE_PAUSE = 1;
export const BLKTAP_RING_MESSAGE_RESUME = 2;
export const BLKTAP_RING_MESSAGE_CLOSE = 3;

/** Entries of the ring. A request's number, its `id`, is below this. */
export const BLKTAP_RING_SIZE = 32;
/** The most segments of a request, each in a page of its own. */
export const BLKTAP_SEGMENT_MAX = 11;
/** Bytes to map: a page for the ring, then the pages of each request by number. */
export const BLKTAP_MAPPED_BYTES = (1 + BLKTAP_RING_SIZE * BLKTAP_SEGMENT_MAX) * PAGE_BYTES;
/** Sectors of a page. */
export const BLKTAP_PAGE_SECTORS = PAGE_BYTES / SECTOR_BYTES;

// struct blktap_sring (DEFINE_RING_TYPES of io/ring.h): u32 req_prod @0, req_event @4, rsp_prod @8,
// rsp_event @12, u8 message @16, entries from @64, of 112 bytes each.
const REQ_PROD_WORD = 0;
const RSP_PROD_WORD = 2;
const MESSAGE_BYTE = 16;
const ENTRIES_WORD = 16;
const ENTRY_WORDS = 28;
// struct blktap_ring_request (linux-blktap.h): u8 operation @0, u8 nr_segments @1, u64 id @8, u64
// sector_number @16; then struct blktap_segment { u32; u8 first_sect @4, last_sect @5 }[11] @24, or
// u64 nr_sectors @24.
const ID_WORD = 2;
const SECTOR_WORD = 4;
const NR_SECTORS_WORD = 6;
const SEGMENTS_WORD = 6;
const RING_HEADER_BYTES = 4 * ENTRIES_WORD;
const ENTRY_BYTES = 4 * ENTRY_WORDS;
const SEGMENT_BYTES = 8;

// __RING_SIZE of io/ring.h: the largest power of two of entries that a page has room for.
assert(
  RING_HEADER_BYTES + BLKTAP_RING_SIZE * ENTRY_BYTES <= PAGE_BYTES &&
    RING_HEADER_BYTES + 2 * BLKTAP_RING_SIZE * ENTRY_BYTES > PAGE_BYTES,
  "A blktap2 ring does not have the entries of a page",
);
assert(
  ENTRY_BYTES === 4 * SEGMENTS_WORD + SEGMENT_BYTES * BLKTAP_SEGMENT_MAX,
  "An entry of a blktap2 ring does not have room for its segments",
);

/** The upper half of 2^53, the first number that is not a safe integer. */
const HIGH_END = 1 << 21;

/**
 * The ring in memory. The driver may write to it at any time. So `take` copies a request, and the
 * methods after it read the copy.
 */
export class BlktapRing {
  readonly #words: Int32Array<ArrayBuffer>;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #entry = new Int32Array(ENTRY_WORDS);

  /** @param arena The memory in which the ring is mapped, from the first byte on. */
  constructor(arena: Arena) {
    this.#bytes = arena.bytes.subarray(0, PAGE_BYTES);
    this.#words = new Int32Array(arena.bytes.buffer, arena.bytes.byteOffset, PAGE_BYTES / 4);
  }

  /** `req_prod`: how many requests the driver has added in all, modulo 2^32. */
  produced(): number {
    return Atomics.load(this.#words, REQ_PROD_WORD);
  }

  /** The message of the driver, BLKTAP_RING_MESSAGE_*; 0 for none. */
  message(): number {
    return Atomics.load(this.#bytes, MESSAGE_BYTE);
  }

  /** Clears the message, as a driver does when it gets the reply. */
  clearMessage(): void {
    Atomics.store(this.#bytes, MESSAGE_BYTE, 0);
  }

  /** Copies request `index`, which counts as `produced` does. */
  take(index: number): void {
    const start = ENTRIES_WORD + (index & (BLKTAP_RING_SIZE - 1)) * ENTRY_WORDS;
    for (let i = 0; i < ENTRY_WORDS; i++) this.#entry[i] = this.#words[start + i];
  }

  /** The operation: a BLKTAP_OP_*, or any other byte. */
  operation(): number {
    return this.#entry[0] & 0xff;
  }

  /** `nr_segments`, unchecked: up to 255. */
  segments(): number {
    return this.#entry[0] >>> 8 & 0xff;
  }

  /** The request's number; -1 for one that is out of range. */
  id(): number {
    const low = this.#entry[ID_WORD];
    const inRange = low >= 0 && low < BLKTAP_RING_SIZE && this.#entry[ID_WORD + 1] === 0;
    return inRange ? low : -1;
  }

  /** The first sector; -1 when it is no safe integer. */
  sector(): number {
    return this.#number(SECTOR_WORD);
  }

  /** The number of sectors of a trim; -1 when it is no safe integer. */
  trimSectors(): number {
    return this.#number(NR_SECTORS_WORD);
  }

  #number(word: number): number {
    const high = this.#entry[word + 1];
    if (high < 0 || high >= HIGH_END) return -1;
    return high * 2 ** 32 + (this.#entry[word] >>> 0);
  }

  /** First sector of segment `index` in its page: up to 255. */
  firstSector(index: number): number {
    return this.#entry[SEGMENTS_WORD + 2 * index + 1] & 0xff;
  }

  /** Last sector of segment `index` in its page: up to 255. */
  lastSector(index: number): number {
    return this.#entry[SEGMENTS_WORD + 2 * index + 1] >>> 8 & 0xff;
  }

  /**
   * Writes response `index`, which counts as `publish` does.
   *
   * @param id Number of the request.
   * @param operation Operation of the request.
   * @param status BLKTAP_RSP_*.
   */
  answer(index: number, id: number, operation: number, status: number): void {
    // struct blktap_ring_response (linux-blktap.h): u64 id @0, u8 operation @8, i16 status @10.
    const start = ENTRIES_WORD + (index & (BLKTAP_RING_SIZE - 1)) * ENTRY_WORDS;
    this.#words[start] = id;
    this.#words[start + 1] = 0;
    this.#words[start + 2] = operation | (status & 0xffff) << 16;
  }

  /**
   * Writes response `index` to the request that was taken last, with its 64-bit number as it is.
   */
  answerTaken(index: number, status: number): void {
    const start = ENTRIES_WORD + (index & (BLKTAP_RING_SIZE - 1)) * ENTRY_WORDS;
    this.answer(index, this.#entry[ID_WORD], this.operation(), status);
    this.#words[start + 1] = this.#entry[ID_WORD + 1];
  }

  /** Sets `rsp_prod`: the driver may read the responses before `index`, modulo 2^32. */
  publish(index: number): void {
    Atomics.store(this.#words, RSP_PROD_WORD, index);
  }
}
