/** How much work of several owners may run at once. */
export interface SharedLimits {
  /** Of all owners. */
  readonly most: number;
  /** Of each owner. */
  readonly mostOfEach: number;
  /** So much of `most` is kept for owners of which nothing runs. */
  readonly kept: number;
}

interface Waiting {
  readonly owner: string;
  readonly start: () => void;
}

/**
 * Runs work that takes time, so much of it at once; more waits for its turn. Work of an owner that takes
 * for ever holds up that of others as little as possible.
 */
export class SharedRoom {
  readonly #limits: SharedLimits;
  readonly #waiting: Waiting[] = [];
  readonly #runningOf = new Map<string, number>();
  #running = 0;

  constructor(limits: SharedLimits) {
    this.#limits = limits;
  }

  /** Runs work of an owner, as soon as there is room; ends as the work does. */
  async run<Result>(owner: string, work: () => Promise<Result>): Promise<Result> {
    if (this.#hasRoom(owner)) this.#count(owner, 1);
    else await new Promise<void>((start) => this.#waiting.push({ owner, start }));
    try {
      return await work();
    } finally {
      this.#count(owner, -1);
      this.#startNext();
    }
  }

  #hasRoom(owner: string): boolean {
    const { most, mostOfEach, kept } = this.#limits;
    const own = this.#runningOf.get(owner) ?? 0;
    return own === 0 ? this.#running < most : own < mostOfEach && this.#running < most - kept;
  }

  #count(owner: string, change: number): void {
    const own = (this.#runningOf.get(owner) ?? 0) + change;
    if (own > 0) this.#runningOf.set(owner, own);
    else this.#runningOf.delete(owner);
    this.#running += change;
  }

  /** Starts what has waited longest of that for which there is room. */
  #startNext(): void {
    const next = this.#waiting.findIndex(({ owner }) => this.#hasRoom(owner));
    if (next < 0) return;
    const [{ owner, start }] = this.#waiting.splice(next, 1);
    this.#count(owner, 1);
    start();
  }
}
