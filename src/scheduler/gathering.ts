/** For how long to let requests gather, microseconds; the loop runs again after about twice that. */
const GATHER_US = 30;
/** A turn with fewer requests costs mostly what every turn costs. */
const FEW_REQUESTS = 8;
/** How long it is tried, and the loop without it, before the two are compared. */
const TRIAL_US = 4000;
/** Fewer requests in such a time are not worth a trial: a client has only one or two under way. */
const LEAST_REQUESTS = TRIAL_US / 20;
/** Trials' worth of time for which what did well is kept up. */
const KEPT_TRIALS = 64;
/** The same for which what did not do well is left alone, the first time and at most. */
const LEAST_REST_TRIALS = 4;
const MOST_REST_TRIALS = 128;

/**
 * Whether a loop sleeps for a moment after a turn, so that requests gather. A client with many
 * requests under way hands on each as it gets an answer: a loop that is quicker than the client
 * takes one or two a turn, and spends its time on the calls that every turn makes. Network cards
 * hold back interrupts for the same reason.
 *
 * A client with few requests under way has to wait meanwhile. So it is tried for a while now and
 * then, and kept up only where as good as no fewer requests came in that time than without it.
 *
 * Whole numbers all: the runtime passes those on without allocating.
 */
export class Gathering {
  #isOn = false;
  #requests = 0;
  #turns = 0;
  #elapsedUs = 0;
  /** Trials' worth of time until the next comparison. */
  #left = 0;
  #nextRest = LEAST_REST_TRIALS;
  /** What came without it just before the trial under way; 0 when there is none. */
  #plainRequests = 0;
  #plainElapsedUs = 0;

  /**
   * For how long to sleep after a turn that took `requests`, microseconds; 0 for not at all.
   *
   * @param elapsedUs Time since the turn before ended.
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
    // It costs less processor time: that is worth a thirtieth.
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
