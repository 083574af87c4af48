/** Pause before the second attempt to connect again; the first follows the loss at once. */
const FIRST_MS = 250;
const LONGEST_MS = 4_000;
/** By how much a pause is made longer or shorter at random, so that many disks do not meet. */
const JITTER = 0.25;
/** A connection that lasted so long is no sign of a server that only ever hangs up. */
const STABLE_MS = 10_000;

/**
 * The time to wait before each attempt to connect again. It grows with each attempt, also while
 * attempts succeed and the connection is lost soon after.
 */
export class BackOff {
  readonly #random: () => number;
  #attempts = 0;
  #connectedMs = -Infinity;

  /** @param random From 0 to 1; for tests. */
  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  /** There is a connection. */
  connected(nowMs: number): void {
    this.#connectedMs = nowMs;
  }

  /** The connection was lost. */
  lost(nowMs: number): void {
    if (nowMs - this.#connectedMs >= STABLE_MS) this.#attempts = 0;
  }

  /** The pause before the next attempt. */
  nextMs(): number {
    const attempt = this.#attempts++;
    if (attempt === 0) return 0;
    const pauseMs = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(attempt - 1, 10));
    return pauseMs * (1 - JITTER + 2 * JITTER * this.#random());
  }
}
