/** A token bucket: room for a burst of something, refilled with time. */
export class Bucket {
  #left: number;
  #sinceMs: number;
  readonly #burst: number;
  readonly #oneMoreMs: number;

  /** @param oneMoreMs The time after which one more is allowed. */
  constructor(burst: number, oneMoreMs: number, nowMs: number) {
    this.#burst = burst;
    this.#oneMoreMs = oneMoreMs;
    this.#left = burst;
    this.#sinceMs = nowMs;
  }

  /** Takes one; false when there is none now. */
  take(nowMs: number): boolean {
    const more = Math.max(0, Math.floor((nowMs - this.#sinceMs) / this.#oneMoreMs));
    this.#left = Math.min(this.#burst, this.#left + more);
    this.#sinceMs += more * this.#oneMoreMs;
    if (this.#left === 0) return false;
    this.#left--;
    return true;
  }
}
