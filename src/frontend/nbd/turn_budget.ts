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
  /** Requests taken since replies were last sent. */
  #taken = 0;
  /** Work of this turn, see `MOST_WORK`. */
  #work = 0;

  /** Whether more requests can be taken now. */
  get isLeft(): boolean {
    return this.#taken < MOST_REQUESTS && this.#work < MOST_WORK;
  }

  /** Notes a request; true when replies are to be sent before the next one. */
  takeRequest(): boolean {
    return ++this.#taken === MOST_REQUESTS;
  }

  /** Notes data; true when it is the one with which the work of the turn ends. */
  takeData(bytes: number): boolean {
    return this.#take(bytes >>> WORK_SHIFT);
  }

  /** As `takeData`, for the data of a request and its header. */
  takeHeaderAndData(bytes: number): boolean {
    return this.#take(1 + (bytes >>> WORK_SHIFT));
  }

  #take(work: number): boolean {
    const wasLeft = this.#work < MOST_WORK;
    this.#work += work;
    return wasLeft && this.#work >= MOST_WORK;
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
