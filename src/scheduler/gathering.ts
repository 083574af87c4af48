/** How long requests gather, microseconds; the loop runs again after about twice that. */
const GATHER_US = 30;
/** In a turn with fewer requests, most of the time is the fixed cost of a turn. */
const FEW_REQUESTS = 8;
/** How long the loop runs with gathering, and without it, before the two are compared. */
const TRIAL_US = 4000;
/** With fewer requests in such a time there is no trial: a client has only one or two in flight. */
const LEAST_REQUESTS = TRIAL_US / 20;
/** After a trial that did well, gathering stays on for this many times a trial's length. */
const KEPT_TRIALS = 64;
/** After a trial that did not, it stays off for this many times: at first, and at most. */
const LEAST_REST_TRIALS = 4;
const MOST_REST_TRIALS = 128;

/**
 * Decides whether a loop sleeps for a moment after a turn, so that requests gather. A client with
 * many requests in flight sends a new one for each answer. A loop that is quicker than the client
 * takes one or two requests a turn, and spends its time on the calls that every turn makes. Network
 * cards delay interrupts for the same reason.
 *
 * A client with few requests in flight has to wait meanwhile. So gathering is tried now and then, and
 * stays on only where about as many requests came in that time as without it.
 *
 * All numbers are whole: the runtime passes those on without allocating.
 */
export class Gathering {
  #isOn = false;
  #requests = 0;
  #turns = 0;
  #elapsedUs = 0;
  /** Trials' worth of time until the next comparison. */
  #left = 0;
  #nextRest = LEAST_REST_TRIALS;
  /** Requests without gathering, just before the trial under way; 0 when there is none. */
  #plainRequests = 0;
  #plainElapsedUs = 0;

  /**
   * How long to sleep after a turn with so many requests, microseconds; 0: not at all.
   *
   * @param elapsedUs Time since the end of the turn before.
   */
  after(requests: number, elapsedUs: number): number {
    this.#requests += requests;
    this.#turns++;
    this.#elapsedUs += elapsedUs;
    if (this.#elapsedUs >= TRIAL_US) this.#judge();
    return this.#isOn && requests > 0 && requests < FEW_REQUESTS ? GATHER_US : 0;
  }

  #judge(): void {
    const isBusy = this.#elapsedUs < 2 * TRIAL_US && this.#requests >= LEAST_REQUESTS;
    if (this.#plainRequests > 0) this.#compare();
    else if (!isBusy) this.#stop(0);
    else if (this.#left > 0) this.#left--;
    else if (this.#isOn) this.#isOn = false;
    else if (this.#requests < FEW_REQUESTS * this.#turns) this.#try();
    this.#requests = 0;
    this.#turns = 0;
    this.#elapsedUs = 0;
  }

  #try(): void {
    this.#isOn = true;
    this.#plainRequests = this.#requests;
    this.#plainElapsedUs = this.#elapsedUs;
  }

  #compare(): void {
    // Gathering saves processor time, which is worth a thirtieth of the requests.
    const isWorse = 31 * this.#requests * this.#plainElapsedUs <
      30 * this.#plainRequests * this.#elapsedUs;
    if (isWorse) {
      this.#stop(this.#nextRest);
      this.#nextRest = Math.min(MOST_REST_TRIALS, 2 * this.#nextRest);
      return;
    }
    this.#plainRequests = 0;
    this.#left = KEPT_TRIALS;
    this.#nextRest = LEAST_REST_TRIALS;
  }

  #stop(rest: number): void {
    this.#isOn = false;
    this.#plainRequests = 0;
    this.#left = rest;
  }
}
