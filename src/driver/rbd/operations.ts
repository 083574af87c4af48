const NONE = -1;

/** The requests that librbd has, a fixed number, each with what its end needs. */
export class Operations {
  readonly kind: Uint8Array;
  readonly slot: Int32Array;
  readonly count: Uint32Array;
  /** How many are in use. */
  inUse = 0;
  readonly #next: Int32Array;
  #free = 0;

  /** @param most How many there can be at once. */
  constructor(most: number) {
    this.kind = new Uint8Array(most);
    this.slot = new Int32Array(most).fill(NONE);
    this.count = new Uint32Array(most);
    this.#next = Int32Array.from({ length: most }, (_, i) => i + 1 < most ? i + 1 : NONE);
  }

  /** Takes one; -1 when all are in use. */
  take(kind: number, slot: number, count: number): number {
    const operation = this.#free;
    if (operation === NONE) return NONE;
    this.#free = this.#next[operation];
    this.kind[operation] = kind;
    this.slot[operation] = slot;
    this.count[operation] = count;
    this.inUse++;
    return operation;
  }

  /** Gives one back. */
  give(operation: number): void {
    this.slot[operation] = NONE;
    this.#next[operation] = this.#free;
    this.#free = operation;
    this.inUse--;
  }

  /** Whether this is the number of one in use. */
  isInUse(operation: number): boolean {
    return operation < this.slot.length && this.slot[operation] !== NONE;
  }
}
