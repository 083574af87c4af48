import type { Done, SystemError } from "../../ffi/errno.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";

/** Whoever waits for the end of a pause, for a limited time. */
export class PauseWait {
  readonly #scheduler: Scheduler;
  #done: Done | null = null;
  #timer = 0;

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
  }

  /** Whether somebody waits: the pause is under way, and was not cancelled. */
  get isPending(): boolean {
    return this.#done !== null;
  }

  /** A pause begins. Calls `late` when it takes longer than `timeoutMs`. */
  begin(done: Done, timeoutMs: number, late: () => void): void {
    this.#done = done;
    if (timeoutMs !== Infinity) this.#timer = this.#scheduler.addTimer(timeoutMs, late);
  }

  /** Nobody waits any more. */
  end(error: SystemError | null): void {
    const done = this.#done;
    this.#done = null;
    this.#scheduler.cancelTimer(this.#timer);
    this.#timer = 0;
    done?.(error);
  }
}
