/**
 * Sleeps of a few microseconds.
 *
 * @module
 */
import { openLibc, openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibc({
  // int nanosleep(const struct timespec *duration, struct timespec *rem)
  nanosleep: { parameters: ["buffer", "pointer"], result: "i32" },
});

const setUp = /* @__PURE__ */ openLibcLater({
  // int prctl(int option, unsigned long arg2)
  prctl: { parameters: ["i32", "u32"], result: "i32" },
});

const PR_SET_TIMERSLACK = 29;

/** Makes the calling thread sleep. The constructor sets the timer slack of the thread to 1 ns. */
export class ShortSleep {
  // struct timespec (time.h): time_t tv_sec @0, long tv_nsec @8.
  readonly #duration = new Uint32Array(4);

  constructor() {
    // The default slack lengthens sleeps by up to 50 µs.
    setUp.prctl(PR_SET_TIMERSLACK, 1);
  }

  /**
   * @param durationUs Less than a second.
   * @returns False when a signal ended the sleep early.
   */
  sleep(durationUs: number): boolean {
    this.#duration[2] = durationUs * 1000;
    return libc.nanosleep(this.#duration, null) === 0;
  }
}
