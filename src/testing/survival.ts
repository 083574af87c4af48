import type { Random } from "./random.ts";

/**
 * Chooses which unflushed changes survive a power cut. Each cut uses one of these rules:
 *
 * - each sector of each change survives with some probability;
 * - each change survives as a whole with some probability;
 * - all changes but one survive as a whole, or only one does;
 * - all changes survive, or none.
 *
 * With the first rule alone, a whole write would hardly ever survive while the write before it is
 * lost entirely. That case reveals a wrong order of writes.
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

  /**
   * Begins with the changes of one file: returns the share of sectors of each change that survives.
   */
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

  /** Whether a sector of a change with this share survives. */
  keeps(share: number): boolean {
    return share === 1 || (share > 0 && this.#random.chance(share));
  }

  /** Draws a whole number, at least 0 and less than `end`. */
  below(end: number): number {
    return this.#random.below(end);
  }
}
