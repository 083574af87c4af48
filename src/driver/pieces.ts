/** What a piece of a request is waiting to do. */
export const PieceKind = { Read: 0, Write: 1, Status: 2 } as const;

const NONE = -1;

/**
 * Records of pieces of requests that wait, and lists of them. A record is a number, a list two:
 * where it starts and ends. All drivers of a process share the table; the queue's reservations
 * bound how many are in use.
 */
export class PieceTable {
  readonly kind: Uint8Array;
  readonly slot: Int32Array;
  /** First sector of the piece in the image. */
  readonly sector: Float64Array;
  readonly count: Uint32Array;
  /** Sector of I/O memory at which the piece's memory begins. */
  readonly memory: Int32Array;
  /** Whatever the driver wants to remember of it, such as a cache entry. */
  readonly entry: Int32Array;
  readonly #next: Int32Array;
  #free = 0;

  /** @param capacity How many pieces can wait at once. */
  constructor(capacity: number) {
    this.kind = new Uint8Array(capacity);
    this.slot = new Int32Array(capacity);
    this.sector = new Float64Array(capacity);
    this.count = new Uint32Array(capacity);
    this.memory = new Int32Array(capacity);
    this.entry = new Int32Array(capacity);
    this.#next = new Int32Array(capacity);
    for (let i = 0; i < capacity; i++) this.#next[i] = i + 1 < capacity ? i + 1 : NONE;
  }

  /** Takes a record. */
  take(kind: number, slot: number, sector: number, count: number, memorySector: number): number {
    const piece = this.#free;
    if (piece === NONE) throw new Error("The table of pieces is full: more than was reserved");
    this.#free = this.#next[piece];
    this.kind[piece] = kind;
    this.slot[piece] = slot;
    this.sector[piece] = sector;
    this.count[piece] = count;
    this.memory[piece] = memorySector;
    this.#next[piece] = NONE;
    return piece;
  }

  /** Gives a record back; returns the one behind it in its list, or -1. */
  give(piece: number): number {
    const next = this.#next[piece];
    this.#next[piece] = this.#free;
    this.#free = piece;
    return next;
  }

  /** Puts a record at the end of list `list`. */
  append(lists: PieceLists, list: number, piece: number): void {
    this.#next[piece] = NONE;
    if (lists.last[list] === NONE) lists.first[list] = piece;
    else this.#next[lists.last[list]] = piece;
    lists.last[list] = piece;
  }

  /** The record behind one in its list; -1 at the end. */
  next(piece: number): number {
    return this.#next[piece];
  }
}

/** A number of lists of pieces. */
export class PieceLists {
  readonly first: Int32Array;
  readonly last: Int32Array;

  constructor(count: number) {
    this.first = new Int32Array(count).fill(NONE);
    this.last = new Int32Array(count).fill(NONE);
  }

  /** Empties a list and returns its first record; -1 when there was none. */
  takeAll(list: number): number {
    const first = this.first[list];
    this.first[list] = NONE;
    this.last[list] = NONE;
    return first;
  }

  /** Whether a list has no records. */
  isEmpty(list: number): boolean {
    return this.first[list] === NONE;
  }
}
