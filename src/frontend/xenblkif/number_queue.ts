/** A queue of numbers of requests, with room for all of them. */
export class NumberQueue {
  readonly #numbers: Uint16Array;
  #start = 0;
  #size = 0;

  /** @param room How many there are at most. */
  constructor(room: number) {
    this.#numbers = new Uint16Array(room);
  }

  /** How many there are. */
  get size(): number {
    return this.#size;
  }

  /** The first one; there must be one. */
  get first(): number {
    return this.#numbers[this.#start];
  }

  /** Adds a number at the end. */
  push(number: number): void {
    this.#numbers[(this.#start + this.#size++) % this.#numbers.length] = number;
  }

  /** Removes the first one. */
  shift(): void {
    this.#start = (this.#start + 1) % this.#numbers.length;
    this.#size--;
  }
}
