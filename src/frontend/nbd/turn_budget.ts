import type { ConnectionHost, ServedConnection } from "./connection_host.ts";

/**
 * The most requests that are started before replies are sent, even if more were received. So the
 * client processes the first replies while the others are prepared.
 */
const MOST_REQUESTS = 12;
/**
 * The most work of a client in one turn. A request counts as 1, and its data as 1 for each 8 KiB.
 * So it is 256 small requests or 2 MiB of data.
 */
const MOST_WORK = 256;
const WORK_SHIFT = 13;

/** How much of a client's requests is taken before others get their turn. */
export class TurnBudget {
  readonly #connection: ServedConnection;
  readonly #host: ConnectionHost;
  /** Requests taken since replies were last sent. */
  #taken = 0;
  /** Work of this turn, see `MOST_WORK`. */
  #work = 0;

  constructor(connection: ServedConnection, host: ConnectionHost) {
    this.#connection = connection;
    this.#host = host;
  }

  /** Whether more requests can be taken now. */
  get isLeft(): boolean {
    return this.#taken < MOST_REQUESTS && this.#work < MOST_WORK;
  }

  /** Notes a request, and data that it reads. Replies may be due before the next one. */
  takeRequest(dataBytes: number): void {
    this.#host.scheduler.noteRequest();
    if (++this.#taken === MOST_REQUESTS) this.#host.makeDue(this.#connection);
    this.#take(1 + (dataBytes >>> WORK_SHIFT));
  }

  /** Notes data. */
  takeData(bytes: number): void {
    this.#take(bytes >>> WORK_SHIFT);
  }

  /** Notes work. The client goes on in the next turn when that of this one ends with it. */
  #take(work: number): void {
    const wasLeft = this.#work < MOST_WORK;
    this.#work += work;
    if (wasLeft && this.#work >= MOST_WORK) this.#host.makeDueNextTurn(this.#connection);
  }

  /** Replies were sent. */
  repliesSent(): void {
    this.#taken = 0;
  }

  /** A new turn begins. */
  startTurn(): void {
    this.#work = 0;
  }
}
