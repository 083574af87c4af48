/**
 * Sleeping for microseconds.
 *
 * @module
 */
import { openLibc } from "./libc.ts";

const libc = openLibc({
  // int nanosleep(const struct timespec *duration, struct timespec *rem)
  nanosleep: { parameters: ["buffer", "pointer"], result: "i32" },
  // int prctl(int option, unsigned long arg2)
  prctl: { parameters: ["i32", "u32"], result: "i32" },
});

const PR_SET_TIMERSLACK = 29;

/** Sleeps that the calling thread makes; the thread's timers are exact from then on. */
export class ShortSleep {
  // struct timespec: time_t tv_sec @0, long tv_nsec @8.
  readonly #duration = new Uint32Array(4);

  constructor() {
    // The kernel lets sleeps take 50 µs longer otherwise.
    libc.prctl(PR_SET_TIMERSLACK, 1);
  }

  /** Sleeps for `durationUs`, less than a second; false when a signal ended it early. */
  sleep(durationUs: number): boolean {
    this.#duration[2] = durationUs * 1000;
    return libc.nanosleep(this.#duration, null) === 0;
  }
}
