/** The longest poll, microseconds: going to sleep and being woken costs as much. */
export const MOST_SPIN_US = 50;
const LEAST_SPIN_US = 2;
/** Turns that are shorter on average serve one or two requests. */
const SHORT_TURN_US = 30;
/** One turn counts a sixteenth in the average. */
const TURN_SHARE_BITS = 4;
/** After so many polls of full length in a row that found nothing, there are none for a while. */
const MOST_MISSES = 3;
const LEAST_REST_TURNS = 16;
const MOST_REST_TURNS = 1024;

/**
 * Decides how long a loop polls for events before it sleeps. Going to sleep and being woken costs
 * more than the few microseconds in which a client with one request at a time sends the next one.
 * Polls get longer as long as that helps. There are none where turns are long, because many requests
 * share a wake-up, and where answers take longer than the longest poll, as those of a real disk do.
 *
 * All times are whole microseconds: the runtime passes those on without allocating.
 */
export class Spin {
  #lengthUs = LEAST_SPIN_US;
  /** Average length of a turn, times 16. */
  #turnShares = 0;
  #misses = 0;
  /** Turns without a poll that are left, and how many there are the next time. */
  #restTurns = 0;
  #nextRestTurns = LEAST_REST_TURNS;

  /** How long to poll after a turn of `turnUs`; 0: not at all. */
  after(turnUs: number): number {
    this.#turnShares += turnUs - (this.#turnShares >> TURN_SHARE_BITS);
    if (this.#turnShares >> TURN_SHARE_BITS >= SHORT_TURN_US) return 0;
    if (this.#restTurns === 0) return this.#lengthUs;
    this.#restTurns--;
    return 0;
  }

  /** A poll of `lookedUs` ended: it found events, or they came after `elapsedUs` in all. */
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
