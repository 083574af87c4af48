import { assert } from "../../ffi/assert.ts";

const NONE = -1;
/** In place of the next free number: this one is in use. */
const USED = -2;

/** Numbers from 0 on, a fixed number of them, each free or in use. */
export class FreeNumbers {
  /** How many are in use. */
  inUse = 0;
  readonly #next: Int32Array;
  #free = 0;

  /** @param most How many there are. */
  constructor(most: number) {
    this.#next = Int32Array.from({ length: most }, (_, i) => i + 1 < most ? i + 1 : NONE);
    if (most === 0) this.#free = NONE;
  }

  /** Takes a free number; -1 when all are in use. */
  take(): number {
    const number = this.#free;
    if (number === NONE) return NONE;
    this.#free = this.#next[number];
    this.#next[number] = USED;
    this.inUse++;
    return number;
  }

  /** Gives a number back, which must be in use. */
  give(number: number): void {
    assert(this.#next[number] === USED, "A number that is not in use is given back");
    this.#next[number] = this.#free;
    this.#free = number;
    this.inUse--;
  }

  /** Whether this is one of the numbers, and in use. */
  isInUse(number: number): boolean {
    return this.#next[number] === USED;
  }
}
