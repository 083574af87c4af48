/** A source of time. */
interface Clock {
  /** Milliseconds since an arbitrary start. */
  nowMs(): number;
}

/** The last line about a kind of event. */
interface LastLine {
  atMs: number;
  /** Events since then that were left out. */
  more: number;
}

/** Kinds that are remembered; with more, all are forgotten, and logged again. */
const MOST_KINDS = 64;

/** Logs events that a peer can cause as often as it likes: at most one line per kind and period. */
export class SeldomLog {
  readonly #clock: Clock;
  readonly #write: (message: string) => void;
  readonly #everyMs: number;
  readonly #lastLines = new Map<string, LastLine>();

  /** @param everyMs The shortest time between two lines of a kind. */
  constructor(clock: Clock, write: (message: string) => void, everyMs: number) {
    this.#clock = clock;
    this.#write = write;
    this.#everyMs = everyMs;
  }

  /** Writes a line with the number of those that were left out, or leaves this one out. */
  write(kind: string, message: string): void {
    const nowMs = this.#clock.nowMs();
    const last = this.#lastLines.get(kind);
    if (last !== undefined && nowMs < last.atMs + this.#everyMs) {
      last.more++;
      return;
    }
    if (this.#lastLines.size >= MOST_KINDS) this.#lastLines.clear();
    this.#lastLines.set(kind, { atMs: nowMs, more: 0 });
    const more = last?.more ?? 0;
    this.#write(more === 0 ? message : `${message} (and ${more} times more before)`);
  }
}
