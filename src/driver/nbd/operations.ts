const NONE = -1;

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
  /** How many are in use, and how many of those read. */
  inUse = 0;
  reads = 0;
  readonly #next = new Int32Array(WINDOW);
  #free = 0;

  constructor() {
    for (let i = 0; i < WINDOW; i++) this.#next[i] = i + 1 < WINDOW ? i + 1 : NONE;
  }

  /** Takes a free operation; -1 when there is none. */
  take(piece: number, nowMs: number): number {
    const operation = this.#free;
    if (operation === NONE) return NONE;
    this.#free = this.#next[operation];
    this.piece[operation] = piece;
    this.error[operation] = 0;
    this.receivedBytes[operation] = 0;
    this.startMs[operation] = nowMs;
    this.inUse++;
    return operation;
  }

  /** Gives an operation back; returns the piece that it carried. */
  give(operation: number): number {
    const piece = this.piece[operation];
    this.piece[operation] = NONE;
    this.#next[operation] = this.#free;
    this.#free = operation;
    this.inUse--;
    return piece;
  }

  /** Whether a cookie is that of an operation in use. */
  isInUse(cookieHigh: number, cookieLow: number): boolean {
    return cookieHigh === 0 && cookieLow < WINDOW && this.piece[cookieLow] !== NONE;
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
