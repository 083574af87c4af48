import { FreeNumbers } from "../free_numbers.ts";

const NONE = -1;

/** The latest request has this part of the mean of what requests take. */
const MEAN_OF = 32;

/** The most requests that a server has at once; others wait here. */
export const WINDOW = 128;

/**
 * The requests in flight at a server, a fixed number, by their cookies. The table of pieces has the
 * description of each.
 */
export class Operations {
  /** The piece that an operation carries; -1 for one that is free. */
  readonly piece = new Int32Array(WINDOW).fill(NONE);
  /** The first error that a chunk of the answer told. */
  readonly error = new Int32Array(WINDOW);
  /** Bytes of a read that have come. */
  readonly receivedBytes = new Float64Array(WINDOW);
  /** When they were handed to the server, milliseconds. */
  readonly startMs = new Float64Array(WINDOW);
  /** How long those that ended took of late, milliseconds. */
  readonly meanMs = new Float64Array(1);
  /** How many of those in use read. */
  reads = 0;
  readonly #numbers = new FreeNumbers(WINDOW);

  /** How many are in use. */
  get inUse(): number {
    return this.#numbers.inUse;
  }

  /** Takes a free operation; -1 when there is none. */
  take(piece: number, nowMs: number): number {
    const operation = this.#numbers.take();
    if (operation < 0) return operation;
    this.piece[operation] = piece;
    this.error[operation] = 0;
    this.receivedBytes[operation] = 0;
    this.startMs[operation] = nowMs;
    return operation;
  }

  /** An operation ends at the time that `clock` has at index 0. */
  noteEnd(operation: number, clock: Float64Array): void {
    const tookMs = clock[0] - this.startMs[operation];
    // The first one is all that is known.
    if (this.meanMs[0] === 0) this.meanMs[0] = tookMs;
    else this.meanMs[0] += (tookMs - this.meanMs[0]) / MEAN_OF;
  }

  /** Gives an operation back, which must be in use; returns the piece that it carried. */
  give(operation: number): number {
    const piece = this.piece[operation];
    this.piece[operation] = NONE;
    this.#numbers.give(operation);
    return piece;
  }

  /** Whether a cookie is that of an operation in use. */
  isInUse(cookieHigh: number, cookieLow: number): boolean {
    return cookieHigh === 0 && this.#numbers.isInUse(cookieLow);
  }

  /** When the one that has waited longest was handed to the server; Infinity when none waits. */
  get oldestMs(): number {
    let oldestMs = Infinity;
    for (let i = 0; i < WINDOW; i++) {
      if (this.piece[i] !== NONE) oldestMs = Math.min(oldestMs, this.startMs[i]);
    }
    return oldestMs;
  }
}
