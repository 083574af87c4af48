import { Arena } from "../../ffi/memory.ts";
import { RECORD_BYTES } from "./records.ts";

/** Records of a ring: 2 MiB. */
const RING_RECORDS = 65_536;
const NUMBERS = RECORD_BYTES / 8;
const WORDS = RECORD_BYTES / 4;
/** Times this, a number becomes one that a float of 32 bits has below it. */
const NEXT_BELOW = 1 - 2 ** -23;

/**
 * Records in memory of a fixed size, until they are sent. A record that finds it full is lost, and
 * counted: what waits to be sent is never changed. Nothing is allocated for a record.
 */
export class TraceRing {
  readonly #arena: Arena;
  readonly #numbers: Float64Array;
  readonly #singles: Float32Array;
  readonly #words: Int32Array;
  readonly #clock: Float64Array;
  readonly #size: number;
  #first = 0;
  #used = 0;
  readonly #lost = new Float64Array(1);

  /**
   * @param clock The time that the loop read last, milliseconds, at index 0.
   * @param size How many records it holds.
   */
  constructor(clock: Float64Array, size: number = RING_RECORDS) {
    this.#clock = clock;
    this.#size = size;
    this.#arena = new Arena(size * RECORD_BYTES);
    const { buffer, byteOffset } = this.#arena.bytes;
    this.#numbers = new Float64Array(buffer, byteOffset, size * NUMBERS);
    this.#singles = new Float32Array(buffer, byteOffset, size * WORDS);
    this.#words = new Int32Array(buffer, byteOffset, size * WORDS);
  }

  /**
   * Adds a record of something that ends now. Numbers that may be large are in arrays: the runtime
   * allocates memory for those that it passes to a function.
   */
  put(
    type: number,
    kind: number,
    slot: number,
    layer: number,
    count: number,
    errno: number,
    startMs: Float64Array,
    startAt: number,
    middleMs: Float64Array,
    middleAt: number,
    place: Float64Array,
    placeAt: number,
  ): void {
    if (this.#used === this.#size) {
      this.#lost[0]++;
      return;
    }
    let at = this.#first + this.#used;
    if (at >= this.#size) at -= this.#size;
    this.#used++;
    const start = startMs[startAt];
    this.#numbers[at * NUMBERS] = start;
    this.#numbers[at * NUMBERS + 1] = place[placeAt];
    const word = at * WORDS;
    this.#putSpan(word + 4, middleMs[middleAt] - start);
    this.#putSpan(word + 5, this.#clock[0] - start);
    this.#words[word + 6] = count | errno << 24;
    this.#words[word + 7] = type | kind << 4 | slot << 8 | layer << 16;
  }

  /** Rounded down: what ends when another thing begins must not end behind that. */
  #putSpan(at: number, spanMs: number): void {
    this.#singles[at] = spanMs;
    if (this.#singles[at] > spanMs) this.#singles[at] = spanMs * NEXT_BELOW;
  }

  /** Records that were lost. */
  get lost(): number {
    return this.#lost[0];
  }

  /** Where the oldest record is. */
  get address(): number {
    return this.#arena.address + this.#first * RECORD_BYTES;
  }

  /** How many records are at `address`, one behind the other. */
  get run(): number {
    return Math.min(this.#used, this.#size - this.#first);
  }

  /** The oldest records, as bytes; for tests. */
  get bytes(): Uint8Array {
    const at = this.#first * RECORD_BYTES;
    return this.#arena.bytes.subarray(at, at + this.run * RECORD_BYTES);
  }

  /** Gives the room of the oldest records back; no more than `run`. */
  drop(records: number): void {
    this.#used -= records;
    // An empty ring begins again at its start: what is written there next is in the processor's cache.
    this.#first = this.#used === 0 ? 0 : (this.#first + records) % this.#size;
  }

  /** Releases the memory. */
  release(): void {
    this.#arena.release();
  }
}
