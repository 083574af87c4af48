import type { Random } from "./random.ts";

/**
 * What of the changes that were not flushed outlasts a power cut. Each cut draws one of these:
 *
 * - each sector of each change by a coin, fair or not;
 * - each change as a whole by a coin;
 * - a change as a whole for all changes but one, or for one alone;
 * - all of them, or none.
 *
 * A coin for each sector alone would hardly ever leave a whole write on disk and the one before it
 * nowhere, which is what a wrong order of writes is found by.
 */
export class Survival {
  readonly #random: Random;
  readonly #style: number;
  readonly #share: number;

  constructor(random: Random) {
    this.#random = random;
    this.#style = random.below(6);
    this.#share = [0.1, 0.5, 0.9][random.below(3)];
  }

  /** Starts with the changes of one file: returns the share of the sectors of each that outlast. */
  sharesOf(changes: number): number[] {
    const one = this.#random.below(Math.max(1, changes));
    return Array.from({ length: changes }, (_, i) => this.#shareOf(i === one));
  }

  #shareOf(isTheOne: boolean): number {
    switch (this.#style) {
      case 0:
        return this.#random.chance(this.#share) ? 1 : 0;
      case 1:
        return isTheOne ? 0 : 1;
      case 2:
        return isTheOne ? 1 : 0;
      case 3:
        return this.#random.chance(0.5) ? 1 : 0;
      default:
        return this.#share;
    }
  }

  /** Whether a sector of a change with this share outlasts. */
  keeps(share: number): boolean {
    return share === 1 || (share > 0 && this.#random.chance(share));
  }

  /** Draws a whole number from 0 up to but not `end`. */
  below(end: number): number {
    return this.#random.below(end);
  }
}
