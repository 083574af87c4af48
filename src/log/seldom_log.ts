/** Says the time. */
interface Clock {
  /** Milliseconds since an arbitrary start. */
  nowMs(): number;
}

/** What was told of a kind of event. */
interface Told {
  atMs: number;
  /** Events since then that were not told of. */
  more: number;
}

/** Kinds that are remembered; beyond that all are told of anew. */
const MOST_KINDS = 64;

/** Lines about events that others can bring about as often as they like: each kind seldom. */
export class SeldomLog {
  readonly #clock: Clock;
  readonly #write: (message: string) => void;
  readonly #everyMs: number;
  readonly #told = new Map<string, Told>();

  /** @param everyMs How long after a line the next of its kind follows, at the earliest. */
  constructor(clock: Clock, write: (message: string) => void, everyMs: number) {
    this.#clock = clock;
    this.#write = write;
    this.#everyMs = everyMs;
  }

  /** Writes a line, with the number of those that were left out, or leaves this one out. */
  tell(kind: string, message: string): void {
    const nowMs = this.#clock.nowMs();
    const told = this.#told.get(kind);
    if (told !== undefined && nowMs < told.atMs + this.#everyMs) {
      told.more++;
      return;
    }
    if (this.#told.size >= MOST_KINDS) this.#told.clear();
    this.#told.set(kind, { atMs: nowMs, more: 0 });
    const more = told?.more ?? 0;
    this.#write(more === 0 ? message : `${message} (and ${more} times more before)`);
  }
}
