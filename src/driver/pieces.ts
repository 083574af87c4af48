import { assertShared } from "../../ffi/assert.ts";

/** What a piece of a request is waiting to do. */
export const PieceKind = { Read: 0, Write: 1, Status: 2, Zero: 3, Discard: 4, Copy: 5 } as const;

const NONE = -1;

/**
 * Records of pieces of requests that wait, and lists of them. A record is a number, a list two:
 * where it starts and ends. All disks of a process share the records, and each has a table of its
 * own onto them; the queue's reservations bound how many are in use.
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
  /** By record: the table that took it; 0 for one that is free. */
  readonly #takenBy: Int32Array;
  /** The first free record, and how many tables there are. */
  readonly #shared: Int32Array;
  readonly #table: number;

  /**
   * @param records How many pieces can wait at once; or another table, whose records this one
   * shares.
   */
  constructor(records: number | PieceTable) {
    if (typeof records !== "number") {
      ({ kind: this.kind, slot: this.slot, sector: this.sector, count: this.count } = records);
      ({ memory: this.memory, entry: this.entry } = records);
      this.#next = records.#next;
      this.#takenBy = records.#takenBy;
      this.#shared = records.#shared;
      this.#table = ++this.#shared[1];
      return;
    }
    this.kind = new Uint8Array(records);
    this.slot = new Int32Array(records);
    this.sector = new Float64Array(records);
    this.count = new Uint32Array(records);
    this.memory = new Int32Array(records);
    this.entry = new Int32Array(records);
    this.#next = new Int32Array(records);
    this.#takenBy = new Int32Array(records);
    this.#shared = Int32Array.of(0, 1);
    this.#table = 1;
    for (let i = 0; i < records; i++) this.#next[i] = i + 1 < records ? i + 1 : NONE;
  }

  /** Takes a record. */
  take(kind: number, slot: number, sector: number, count: number, memorySector: number): number {
    const piece = this.#shared[0];
    assertShared(piece !== NONE, "The table of pieces is full: more than was reserved");
    this.#shared[0] = this.#next[piece];
    this.#takenBy[piece] = this.#table;
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
    assertShared(this.#takenBy[piece] === this.#table, "A piece is given back that is not taken");
    const next = this.#next[piece];
    this.#next[piece] = this.#shared[0];
    this.#shared[0] = piece;
    this.#takenBy[piece] = 0;
    return next;
  }

  /** Gives all records of this table back, after a fault of the disk. */
  giveAll(): void {
    for (let piece = 0; piece < this.#takenBy.length; piece++) {
      if (this.#takenBy[piece] === this.#table) this.give(piece);
    }
  }

  /** Puts a record at the end of list `list`. */
  append(lists: PieceLists, list: number, piece: number): void {
    this.#next[piece] = NONE;
    if (lists.last[list] === NONE) lists.first[list] = piece;
    else this.#next[lists.last[list]] = piece;
    lists.last[list] = piece;
  }

  /** Takes the first record out of list `list`; -1 when it is empty. */
  takeFirst(lists: PieceLists, list: number): number {
    const piece = lists.first[list];
    if (piece === NONE) return NONE;
    lists.first[list] = this.#next[piece];
    if (lists.first[list] === NONE) lists.last[list] = NONE;
    this.#next[piece] = NONE;
    return piece;
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
