import {
  DirectionWord,
  METRICS_VERSION,
  type MetricsPage,
  type MetricsPages,
  type MetricsSubject,
  MetricsWord,
  privatePage,
  privatePages,
  RingDirectionWord,
  RingWord,
} from "./metrics.ts";

/** The last kind of request whose sectors and times are counted. */
const WRITE = 1;
const FLUSH = 2;
const DISCARD = 3;

const HALF = 0x1_0000_0000;

/** Adds a number of 32 bits to a field of 64. Readers may see the low half without the carry. */
function add(words: Uint32Array, at: number, amount: number): void {
  const low = (words[at] + amount) >>> 0;
  words[at] = low;
  if (low < amount) words[at + 1]++;
}

/** Adds a time. A request may have waited for more than an hour for the end of a pause. */
function addTime(words: Uint32Array, at: number, tookUs: number): void {
  add(words, at, tookUs >>> 0);
  if (tookUs >= HALF) words[at + 1] += Math.floor(tookUs / HALF);
}

/** Counts a ring's requests as the kernel's backend does. */
class RingCounts {
  readonly #words: Uint32Array;
  /** The longest time of a read, and of a write, microseconds. */
  readonly #longestUs = new Float64Array(2);

  constructor(words: Uint32Array) {
    this.#words = words;
  }

  begin(kind: number): void {
    if (kind <= WRITE) {
      add(this.#words, RingWord.Reads + kind * RingDirectionWord.Count, 1);
    } else if (kind === FLUSH) add(this.#words, RingWord.Flushes, 1);
    else if (kind === DISCARD) add(this.#words, RingWord.Discards, 1);
  }

  /** A read or a write ends. */
  end(kind: number, sectors: number, tookUs: number): void {
    const words = this.#words;
    const at = RingWord.Reads + kind * RingDirectionWord.Count;
    add(words, at + RingDirectionWord.Completed, 1);
    add(words, at + RingDirectionWord.Sectors, sectors);
    addTime(words, at + RingDirectionWord.Time, tookUs);
    if (tookUs <= this.#longestUs[kind]) return;
    this.#longestUs[kind] = tookUs;
    words[at + RingDirectionWord.Longest] = tookUs >>> 0;
    words[at + RingDirectionWord.Longest + 1] = Math.floor(tookUs / HALF);
  }
}

/**
 * Counts requests in a page, where each has a number while it is under way. Nothing is allocated, and
 * no clock is read but the time that the loop read last.
 */
export class Meter {
  #page = privatePage();
  #words = this.#page.words;
  #ring: RingCounts | null = null;
  #outstanding = 0;
  /** By number: when it began, milliseconds. */
  readonly #cameMs: Float64Array;
  readonly #clock: Float64Array;

  /**
   * @param requests How many numbers there are.
   * @param clock The time that the loop read last, milliseconds, at index 0.
   */
  constructor(requests: number, clock: Float64Array) {
    this.#cameMs = new Float64Array(requests);
    this.#clock = clock;
  }

  /** Counts in a new page from now on, from zero, and closes the one before. */
  show(page: MetricsPage): void {
    const before = this.#page;
    this.#page = page;
    this.#words = page.words;
    this.#ring = page.ring === undefined ? null : new RingCounts(page.ring);
    this.#words[MetricsWord.Version] = METRICS_VERSION;
    this.#words[MetricsWord.Outstanding] = this.#outstanding;
    before.close();
  }

  /** Counts in private memory from now on; requests may be under way. */
  hide(): void {
    this.show(privatePage());
  }

  /**
   * A request begins.
   *
   * @param kind 0 for a read and 1 for a write, as in `RequestKind`, NBD_CMD_* and BLKTAP_OP_*; other
   * numbers for what moves no data; of a ring, those of `RequestKind`.
   */
  begin(number: number, kind: number): void {
    const words = this.#words;
    this.#cameMs[number] = this.#clock[0];
    words[MetricsWord.Outstanding] = ++this.#outstanding;
    if (this.#ring !== null) this.#ring.begin(kind);
    if (kind > WRITE) return;
    add(words, MetricsWord.Reads + kind * DirectionWord.Count + DirectionWord.Submitted, 1);
  }

  /** A request ends. Those that fail move no sectors. */
  end(number: number, kind: number, sectors: number, errno: number): void {
    const words = this.#words;
    words[MetricsWord.Outstanding] = --this.#outstanding;
    if (errno !== 0) add(words, MetricsWord.Errors, 1);
    if (kind > WRITE) return;
    const at = MetricsWord.Reads + kind * DirectionWord.Count;
    add(words, at + DirectionWord.Completed, 1);
    if (errno === 0) add(words, at + DirectionWord.Sectors, sectors);
    const tookUs = Math.round((this.#clock[0] - this.#cameMs[number]) * 1000);
    addTime(words, at + DirectionWord.Ticks, tookUs);
    if (this.#ring !== null) this.#ring.end(kind, errno === 0 ? sectors : 0, tookUs);
  }
}

/** Makes meters whose pages monitoring programs can read. */
export class Meters {
  readonly #pages: MetricsPages;
  readonly #clock: Float64Array;

  /** @param clock As for a `Meter`. */
  constructor(pages: MetricsPages, clock: Float64Array) {
    this.#pages = pages;
    this.#clock = clock;
  }

  /**
   * Counts what comes by one way, such as a guest's ring. The caller hides the meter at the end.
   *
   * @param requests How many requests there are at once; their numbers are below that.
   */
  open(subject: MetricsSubject, requests: number): Meter {
    const meter = this.make(requests);
    this.show(meter, subject);
    return meter;
  }

  /** Makes a meter that counts in private memory until it is shown. */
  make(requests: number): Meter {
    return new Meter(requests, this.#clock);
  }

  /** Counts in a new page from now on, from zero. */
  show(meter: Meter, subject: MetricsSubject): void {
    meter.show(this.#pages.open(subject));
  }
}

/** Makes meters in private memory that count no time. */
export const privateMeters: Meters = new Meters(privatePages, new Float64Array(1));
