import { messageOf } from "../../ffi/errno.ts";

/** What needs bytes of a limiter. */
export interface Waiting {
  readonly needBytes: number;
}

/** Decides how many bytes may pass. */
export interface Limiter {
  /** A valve needs bytes, after none did. */
  begin(nowMs: number): void;
  /**
   * Takes bytes of a need; 0: nothing may pass now.
   *
   * @param pendingBytes Bytes that were granted and have not ended.
   */
  take(needBytes: number, nowMs: number, pendingBytes: number): number;
  /** When something may pass. */
  nextMs(nowMs: number): number;
  /** Lines about it, for the log. */
  describe(nowMs: number): string[];
}

/** Most of a need is granted in parts of this time, so that those that need bytes take turns. */
const PART_MS = 10;
const LEAST_PART_BYTES = 4096;

/**
 * A token bucket: so many bytes in a second, and after a pause up to `capBytes` at once. With a cap of
 * 0 it is a leaky bucket.
 *
 * It has the time that it is used up to. A pause before that is not longer ago than the cap allows;
 * while a valve waits nothing is forgotten, so that a timer that comes late costs no bytes.
 */
export class TokenBucket implements Limiter {
  readonly #rate: number;
  readonly #capBytes: number;
  readonly #partBytes: number;
  #usedToMs = -Infinity;

  /** @param rate Bytes in a second. */
  constructor(rate: number, capBytes: number) {
    this.#rate = rate;
    this.#capBytes = capBytes;
    this.#partBytes = Math.max(LEAST_PART_BYTES, Math.floor(rate * PART_MS / 1000));
  }

  begin(nowMs: number): void {
    this.#usedToMs = Math.max(this.#usedToMs, nowMs - this.#capBytes / this.#rate * 1000);
  }

  /** The cap is there at once: another limiter allowed all until now. */
  reset(): void {
    this.#usedToMs = -Infinity;
  }

  take(needBytes: number, nowMs: number): number {
    if (this.#usedToMs > nowMs) return 0;
    const bytes = Math.min(needBytes, this.#partBytes);
    this.#usedToMs += bytes / this.#rate * 1000;
    return bytes;
  }

  nextMs(): number {
    return this.#usedToMs;
  }

  describe(nowMs: number): string[] {
    const sinceMs = Math.max(this.#usedToMs, nowMs - this.#capBytes / this.#rate * 1000);
    const credit = Math.round((nowMs - sinceMs) * this.#rate / 1000);
    return [`token bucket: ${this.#rate} bytes a second, cap ${this.#capBytes}, credit ${credit}`];
  }
}

/** The memory of the machine, kB, as /proc/meminfo has it. */
export interface MemoryState {
  readonly total: number;
  /** Written to files and not yet on disk, or on the way there. */
  readonly dirty: number;
}

/** How a `MemoryLimiter` decides. */
export interface MemoryLimits {
  /** When so many percent of the memory are dirty, the bucket limits; and until so few are. */
  readonly highPercent: number;
  readonly lowPercent: number;
  /** How often the memory is looked at. */
  readonly periodMs: number;
}

/** Lets everything pass until too much of the memory waits to be written to disk. */
export class MemoryLimiter implements Limiter {
  readonly #limits: MemoryLimits;
  readonly #bucket: TokenBucket;
  readonly #look: () => MemoryState;
  #state: MemoryState;
  #lookedMs = -Infinity;
  /** Why the last look failed; empty if it did not. */
  #whyBlind = "";
  #congested = false;

  /** @param look Reads the state of the memory. */
  constructor(limits: MemoryLimits, bucket: TokenBucket, look: () => MemoryState) {
    this.#limits = limits;
    this.#bucket = bucket;
    this.#look = look;
    this.#state = look();
  }

  begin(nowMs: number): void {
    this.#bucket.begin(nowMs);
  }

  take(needBytes: number, nowMs: number, pendingBytes: number): number {
    if (nowMs - this.#lookedMs >= this.#limits.periodMs) {
      this.#lookedMs = nowMs;
      this.#lookAgain();
    }
    const { total, dirty } = this.#state;
    const pending = pendingBytes / 1024;
    const { highPercent, lowPercent } = this.#limits;
    const free = total * highPercent / 100 - dirty - pending;
    if (this.#congested) this.#congested = dirty + pending > total * lowPercent / 100;
    else if (free <= 0) {
      this.#congested = true;
      this.#bucket.reset();
      this.#bucket.begin(nowMs);
    }
    if (this.#congested) return this.#bucket.take(needBytes, nowMs);
    return Math.min(needBytes, Math.max(1, Math.floor(free * 1024)));
  }

  /** An error must not end the turns of those that wait: what was seen before counts until the next look. */
  #lookAgain(): void {
    try {
      this.#state = this.#look();
      this.#whyBlind = "";
    } catch (error) {
      this.#whyBlind = messageOf(error);
    }
  }

  nextMs(nowMs: number): number {
    return Math.min(this.#bucket.nextMs(), nowMs + this.#limits.periodMs);
  }

  describe(nowMs: number): string[] {
    const { highPercent, lowPercent, periodMs } = this.#limits;
    const { total, dirty } = this.#state;
    const blind = this.#whyBlind === "" ? "" : ` (as it was: ${this.#whyBlind})`;
    const state = (this.#congested ? "the rate is limited" : "all passes") + blind;
    return [
      `memory: ${dirty} kB of ${total} wait to be written, low/high ${lowPercent}/${highPercent} %, ` +
      `every ${periodMs} ms; ${state}`,
      ...this.#bucket.describe(nowMs),
    ];
  }
}
