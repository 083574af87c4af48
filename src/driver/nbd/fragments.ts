import { WINDOW } from "./operations.ts";

/** The most parts of an answer that may lie apart from each other at one time. */
const MOST_FRAGMENTS = 64;

/**
 * Which bytes of each read have come, for answers in several chunks. Chunks may come in any order,
 * but not overlap: an answer that is as long as the read is then all of it. Without that, a server
 * could leave a part of the memory as an earlier request left it.
 */
export class Fragments {
  readonly #starts = new Int32Array(WINDOW * MOST_FRAGMENTS);
  readonly #ends = new Int32Array(WINDOW * MOST_FRAGMENTS);
  readonly #counts = new Uint8Array(WINDOW);

  /** Forgets what came for an operation: a new one begins. */
  clear(operation: number): void {
    this.#counts[operation] = 0;
  }

  /**
   * Notes bytes of an operation's read. False when some of them came before, or when too many parts
   * lie apart.
   */
  add(operation: number, start: number, end: number): boolean {
    const first = operation * MOST_FRAGMENTS;
    const last = first + this.#counts[operation];
    let at = first;
    while (at < last && this.#ends[at] < start) at++;
    const joinsLeft = at < last && this.#ends[at] === start;
    const right = joinsLeft ? at + 1 : at;
    if (right < last && this.#starts[right] < end) return false;
    const joinsRight = right < last && this.#starts[right] === end;
    if (joinsLeft && joinsRight) {
      this.#ends[at] = this.#ends[right];
      this.#move(right + 1, last, right);
      this.#counts[operation]--;
    } else if (joinsLeft) this.#ends[at] = end;
    else if (joinsRight) this.#starts[right] = start;
    else return this.#insert(operation, at, start, end);
    return true;
  }

  #insert(operation: number, at: number, start: number, end: number): boolean {
    if (this.#counts[operation] === MOST_FRAGMENTS) return false;
    this.#move(at, operation * MOST_FRAGMENTS + this.#counts[operation]++, at + 1);
    this.#starts[at] = start;
    this.#ends[at] = end;
    return true;
  }

  #move(from: number, end: number, to: number): void {
    this.#starts.copyWithin(to, from, end);
    this.#ends.copyWithin(to, from, end);
  }
}
