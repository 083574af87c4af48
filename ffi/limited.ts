/** Runs work that takes time, so much of it at once; more waits for its turn. */
export class Limited {
  readonly #most: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  /** @param most How many may run at once. */
  constructor(most: number) {
    this.#most = most;
  }

  /** Runs work, as soon as there is room; ends as the work does. */
  async run<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#running < this.#most) this.#running++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      // The next one takes over the room.
      if (next === undefined) this.#running--;
      else next();
    }
  }
}
