/**
 * Pseudo-random numbers from a seed (mulberry32). They are the same on every machine, so a
 * simulation can be repeated.
 */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** The next 31 bits, as a whole number. */
  bits(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) & 0x7fff_ffff;
  }

  /** The next number, at least 0 and less than 1. */
  next(): number {
    return this.bits() / 0x8000_0000;
  }

  /** The next whole number, at least 0 and less than `end`. */
  below(end: number): number {
    return this.bits() % end;
  }

  /** True with the given probability. */
  chance(probability: number): boolean {
    return this.next() < probability;
  }
}
