/**
 * The ring that a guest's block device shares with a backend: layouts of Xen's io/blkif.h and
 * io/ring.h. It knows nothing of grants and event channels, see `xen.ts`.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { type Arena, PAGE_BYTES, SECTOR_BYTES } from "./memory.ts";

/** How requests lie in a ring: `enum blkif_protocol` of blktap's xen_blkif.h. */
export const BlkifProtocol = {
  /** The layout of this machine, which is that of x86-64. */
  Native: 1,
  /** `x86_32-abi`: 64-bit numbers are aligned to 4 bytes. */
  X86_32: 2,
  /** `x86_64-abi`. */
  X86_64: 3,
} as const;
/** One of `BlkifProtocol`. */
export type BlkifProtocol = (typeof BlkifProtocol)[keyof typeof BlkifProtocol];

/** The most pages of a ring, as a power of two: eight pages. */
export const MOST_RING_PAGE_ORDER = 3;

/** Operations of a request. */
export const BLKIF_OP_READ = 0;
export const BLKIF_OP_WRITE = 1;
export const BLKIF_OP_WRITE_BARRIER = 2;
export const BLKIF_OP_FLUSH_DISKCACHE = 3;
export const BLKIF_OP_DISCARD = 5;
export const BLKIF_OP_INDIRECT = 6;

/** Status of a response. */
export const BLKIF_RSP_OKAY = 0;
export const BLKIF_RSP_ERROR = -1;
export const BLKIF_RSP_EOPNOTSUPP = -2;

/** The most segments in the entry of a request. */
export const BLKIF_MAX_SEGMENTS_PER_REQUEST = 11;
/** Bytes of a segment, in an entry and in an indirect page. */
export const BLKIF_SEGMENT_BYTES = 8;
/** Sectors of a page: the sectors of a segment have numbers below. */
export const BLKIF_PAGE_SECTORS = PAGE_BYTES / SECTOR_BYTES;

// DEFINE_RING_TYPES of io/ring.h: u32 req_prod @0, req_event @4, rsp_prod @8, rsp_event @12, entries
// from @64. The bytes between have no use; SHARED_RING_INIT, with which a frontend begins, clears them.
const REQ_PROD_WORD = 0;
const REQ_EVENT_WORD = 1;
const RSP_PROD_WORD = 2;
const RSP_EVENT_WORD = 3;
const MARK_WORD = 14;
const ENTRIES_WORD = 16;

// struct blkif_request: u8 operation @0, u8 nr_segments @1, u16 handle @2, u64 id @8, u64
// sector_number @16, then { u32 gref; u8 first_sect @4, last_sect @5 }[11] @24.
// struct blkif_request_discard: u8 operation @0, u8 flag @1, id and sector as above, u64 nr_sectors @24.
// struct blkif_request_indirect: u8 operation @0, u8 indirect_op @1, u16 nr_segments @2, id and sector
// as above, u16 handle @24, u32 indirect_grefs[8] @28.
// With 64-bit numbers aligned to 4 bytes, the fields from `id` on are 4 bytes earlier.
const ID_WORD = 2;
const ENTRY_WORDS = 28;
/** Words after that of `id`. */
const SECTOR_AFTER = 2;
const SEGMENTS_AFTER = 4;
const INDIRECT_REFERENCES_AFTER = 5;

assert(
  ENTRY_WORDS === ID_WORD + SEGMENTS_AFTER + 2 * BLKIF_MAX_SEGMENTS_PER_REQUEST,
  "An entry of a guest's ring does not have room for its segments",
);

/** How far ahead of the requests an event is that never comes. */
const NO_EVENT_AHEAD = 2 ** 30;

/** The upper half of 2^53, the first number that is not a safe integer. */
const HIGH_END = 1 << 21;

/** Entries of a ring: `__RING_SIZE` of io/ring.h, the largest power of two that there is room for. */
function ringEntries(pages: number, protocol: BlkifProtocol): number {
  const words = pages * PAGE_BYTES / 4 - ENTRIES_WORD;
  return 2 ** Math.floor(Math.log2(words / entryWords(protocol)));
}

function entryWords(protocol: BlkifProtocol): number {
  return protocol === BlkifProtocol.X86_32 ? ENTRY_WORDS - 1 : ENTRY_WORDS;
}

/**
 * The ring in memory. The guest may write to it at any time. So `take` copies a request, and the
 * methods after it read the copy.
 */
export class BlkifRing {
  /** How many requests there can be at once. */
  readonly entries: number;
  readonly #words: Int32Array<ArrayBuffer>;
  readonly #entryWords: number;
  readonly #idWord: number;
  readonly #entry = new Int32Array(ENTRY_WORDS);

  /** @param arena The memory in which the ring is mapped, from its first byte to its last. */
  constructor(arena: Arena, protocol: BlkifProtocol) {
    const { bytes } = arena;
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, arena.sizeBytes / 4);
    this.entries = ringEntries(arena.sizeBytes / PAGE_BYTES, protocol);
    this.#entryWords = entryWords(protocol);
    this.#idWord = protocol === BlkifProtocol.X86_32 ? ID_WORD - 1 : ID_WORD;
  }

  /** `req_prod`: how many requests the guest has added in all, modulo 2^32. */
  produced(): number {
    return Atomics.load(this.#words, REQ_PROD_WORD);
  }

  /** `rsp_prod`: how many responses the guest has got in all, modulo 2^32. */
  answered(): number {
    return Atomics.load(this.#words, RSP_PROD_WORD);
  }

  /** Sets `req_event`: the guest notifies when it adds the request after the first `taken` ones. */
  askForEvent(taken: number): void {
    Atomics.store(this.#words, REQ_EVENT_WORD, taken + 1 | 0);
  }

  /** Sets `req_event` so that the guest notifies of nothing: it is far from all that it adds. */
  askForNoEvent(taken: number): void {
    Atomics.store(this.#words, REQ_EVENT_WORD, taken + NO_EVENT_AHEAD | 0);
  }

  /**
   * Whether the one who served the ring last may have taken requests that have no answer. It asked for
   * an event behind the last request that it took, before it answered any of those.
   */
  get mayHaveLostRequests(): boolean {
    const isAllAnswered = this.produced() === this.answered();
    const event = Atomics.load(this.#words, REQ_EVENT_WORD);
    return !isAllAnswered && event !== (this.answered() + 1 | 0);
  }

  /** Low half of the mark. */
  get markLow(): number {
    return this.#words[MARK_WORD];
  }

  /** High half of the mark. */
  get markHigh(): number {
    return this.#words[MARK_WORD + 1];
  }

  /**
   * Writes a mark where no frontend looks. It tells this ring from others that a guest, or another guest
   * of the same number, had in the same pages: a frontend that begins anew clears it.
   */
  mark(low: number, high: number): void {
    this.#words[MARK_WORD] = low;
    Atomics.store(this.#words, MARK_WORD + 1, high);
  }

  #at(index: number): number {
    return ENTRIES_WORD + (index & (this.entries - 1)) * this.#entryWords;
  }

  /** Copies request `index`, which counts as `produced` does. */
  take(index: number): void {
    const start = this.#at(index);
    for (let i = 0; i < this.#entryWords; i++) this.#entry[i] = this.#words[start + i];
  }

  /** Writes the request that was taken last to 28 words. */
  save(words: Int32Array, at: number): void {
    for (let i = 0; i < ENTRY_WORDS; i++) words[at + i] = this.#entry[i];
  }

  /** Makes a request that was saved the one that was taken last. */
  load(words: Int32Array, at: number): void {
    for (let i = 0; i < ENTRY_WORDS; i++) this.#entry[i] = words[at + i];
  }

  /** The operation: a BLKIF_OP_*, or any other byte. */
  operation(): number {
    return this.#entry[0] & 0xff;
  }

  /** Low half of the guest's number of the request. */
  idLow(): number {
    return this.#entry[this.#idWord];
  }

  /** High half of the guest's number of the request. */
  idHigh(): number {
    return this.#entry[this.#idWord + 1];
  }

  /** The first sector; -1 when it is no safe integer. */
  sector(): number {
    return this.#number(this.#idWord + SECTOR_AFTER);
  }

  /** `nr_segments` of a read, a write or the like, unchecked: up to 255. */
  segments(): number {
    return this.#entry[0] >>> 8 & 0xff;
  }

  /** Grant reference of segment `index`. */
  reference(index: number): number {
    return this.#entry[this.#idWord + SEGMENTS_AFTER + 2 * index];
  }

  /** First and last sector of segment `index` in its page, as `segmentFirst` and `segmentLast`. */
  sectors(index: number): number {
    return this.#entry[this.#idWord + SEGMENTS_AFTER + 2 * index + 1];
  }

  /** `nr_sectors` of a discard; -1 when it is no safe integer. */
  discardSectors(): number {
    return this.#number(this.#idWord + SEGMENTS_AFTER);
  }

  /** `indirect_op` of an indirect request: BLKIF_OP_READ, BLKIF_OP_WRITE, or any other byte. */
  indirectOperation(): number {
    return this.#entry[0] >>> 8 & 0xff;
  }

  /** `nr_segments` of an indirect request, unchecked: up to 65535. */
  indirectSegments(): number {
    return this.#entry[0] >>> 16;
  }

  /** Grant reference of the first page of segments of an indirect request. */
  indirectReference(): number {
    return this.#entry[this.#idWord + INDIRECT_REFERENCES_AFTER];
  }

  #number(word: number): number {
    const high = this.#entry[word + 1];
    if (high < 0 || high >= HIGH_END) return -1;
    return high * 2 ** 32 + (this.#entry[word] >>> 0);
  }

  /**
   * Writes response `index`, which counts as `publish` does.
   *
   * @param status BLKIF_RSP_*.
   */
  answer(
    index: number,
    idLow: number,
    idHigh: number,
    operation: number,
    status: number,
  ): void {
    // struct blkif_response: u64 id @0, u8 operation @8, i16 status @10, with any alignment.
    const start = this.#at(index);
    this.#words[start] = idLow;
    this.#words[start + 1] = idHigh;
    this.#words[start + 2] = operation | (status & 0xffff) << 16;
  }

  /**
   * Sets `rsp_prod`: the guest may read the responses from `before` to `index`, modulo 2^32.
   *
   * @returns Whether the guest wants to be notified.
   */
  publish(before: number, index: number): boolean {
    Atomics.store(this.#words, RSP_PROD_WORD, index);
    const wanted = Atomics.load(this.#words, RSP_EVENT_WORD);
    // RING_PUSH_RESPONSES_AND_CHECK_NOTIFY: whether `rsp_event` is one of the new ones.
    return (index - wanted) >>> 0 < (index - before) >>> 0;
  }
}

/** The first sector in its page of a segment, from its second word: up to 255. */
export function segmentFirst(word: number): number {
  return word & 0xff;
}

/** The last sector in its page of a segment, from its second word: up to 255. */
export function segmentLast(word: number): number {
  return word >>> 8 & 0xff;
}
