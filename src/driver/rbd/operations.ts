import { FreeNumbers } from "../free_numbers.ts";

/** The latest request has this part of the mean of what requests take. */
const MEAN_OF = 32;

/** The requests that librbd has, a fixed number, each with what its end needs. */
export class Operations {
  readonly kind: Uint8Array;
  readonly slot: Int32Array;
  readonly count: Uint32Array;
  readonly sector: Float64Array;
  /** When librbd got them, milliseconds. */
  readonly startMs: Float64Array;
  /** How long those that ended took of late, milliseconds. */
  readonly meanMs = new Float64Array(1);
  readonly #clock: Float64Array;
  readonly #numbers: FreeNumbers;

  /**
   * @param most How many there can be at once.
   * @param clock The time that the loop read last, milliseconds, at index 0.
   */
  constructor(most: number, clock: Float64Array) {
    this.#clock = clock;
    this.sector = new Float64Array(most);
    this.startMs = new Float64Array(most);
    this.kind = new Uint8Array(most);
    this.slot = new Int32Array(most);
    this.count = new Uint32Array(most);
    this.#numbers = new FreeNumbers(most);
  }

  /** How many are in use. */
  get inUse(): number {
    return this.#numbers.inUse;
  }

  /** Takes one; -1 when all are in use. */
  take(kind: number, slot: number, sector: number, count: number): number {
    const operation = this.#numbers.take();
    if (operation < 0) return operation;
    this.kind[operation] = kind;
    this.slot[operation] = slot;
    this.count[operation] = count;
    this.sector[operation] = sector;
    this.startMs[operation] = this.#clock[0];
    return operation;
  }

  /** When the oldest of those in use was handed over; Infinity without one. */
  get oldestMs(): number {
    let oldestMs = Infinity;
    for (let operation = 0; operation < this.startMs.length; operation++) {
      if (this.isInUse(operation)) oldestMs = Math.min(oldestMs, this.startMs[operation]);
    }
    return oldestMs;
  }

  /** Gives one back, which must be in use. */
  give(operation: number): void {
    const tookMs = this.#clock[0] - this.startMs[operation];
    // The first one is all that is known.
    if (this.meanMs[0] === 0) this.meanMs[0] = tookMs;
    else this.meanMs[0] += (tookMs - this.meanMs[0]) / MEAN_OF;
    this.#numbers.give(operation);
  }

  /** Whether this is the number of one in use. */
  isInUse(operation: number): boolean {
    return this.#numbers.isInUse(operation);
  }
}
