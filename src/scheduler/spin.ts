/** Longest time that is worth looking, microseconds: going to sleep and being woken costs as much. */
export const MOST_SPIN_US = 50;
const LEAST_SPIN_US = 2;
/** Turns that take no longer on average serve a request or two. */
const SHORT_TURN_US = 30;
/** By how much one turn counts in the average: a sixteenth. */
const TURN_SHARE_BITS = 4;
/** Looks of full length in a row that find nothing, before it is left for a while. */
const MOST_MISSES = 3;
const LEAST_REST_TURNS = 16;
const MOST_REST_TURNS = 1024;

/**
 * How long a loop looks for events before it waits for them. Going to sleep and being woken costs
 * more than the few microseconds in which a client with one request at a time comes back. The look
 * gets longer as long as that helps. It is left where turns are long, with many requests that share
 * a wake-up, and where answers take longer than is worth looking, as those of a real disk do.
 *
 * Whole microseconds all: the runtime passes those on without allocating.
 */
export class Spin {
  #lengthUs = LEAST_SPIN_US;
  /** Average length of a turn, times 16. */
  #turnShares = 0;
  #misses = 0;
  /** Turns for which it is left, and for how many the next time. */
  #restTurns = 0;
  #nextRestTurns = LEAST_REST_TURNS;

  /** How long to look after a turn that took `turnUs`. */
  after(turnUs: number): number {
    this.#turnShares += turnUs - (this.#turnShares >> TURN_SHARE_BITS);
    if (this.#turnShares >> TURN_SHARE_BITS >= SHORT_TURN_US) return 0;
    if (this.#restTurns === 0) return this.#lengthUs;
    this.#restTurns--;
    return 0;
  }

  /** A look of `lookedUs` is over: it found something, or events came after `elapsedUs` in all. */
  note(found: boolean, lookedUs: number, elapsedUs: number): void {
    if (found) {
      this.#misses = 0;
      this.#nextRestTurns = LEAST_REST_TURNS;
      this.#grow();
    } else if (elapsedUs >= 2 * MOST_SPIN_US && lookedUs < MOST_SPIN_US) {
      this.#lengthUs = Math.max(LEAST_SPIN_US, this.#lengthUs >> 1);
    } else if (lookedUs < MOST_SPIN_US) this.#grow();
    else if (++this.#misses === MOST_MISSES) this.#rest();
  }

  #grow(): void {
    this.#lengthUs = Math.min(MOST_SPIN_US, this.#lengthUs * 2);
  }

  #rest(): void {
    this.#misses = 0;
    this.#lengthUs = LEAST_SPIN_US;
    this.#restTurns = this.#nextRestTurns;
    this.#nextRestTurns = Math.min(MOST_REST_TURNS, this.#nextRestTurns * 2);
  }
}
