/**
 * The event loop as the rest of the engine sees it: descriptors, timers, work at the end of a
 * turn, and the time. It knows nothing of disks; the engine knows time only through it, so that
 * the whole of it runs on a simulated clock.
 *
 * @module
 */

/** Who is told that a watched descriptor is ready. */
export interface FdHandler {
  /** @param events A union of EPOLL* bits. */
  ready(events: number): void;
}

/** Work that is done once at the end of every turn of the loop. */
export interface TurnWork {
  /** Returns true when it did something, so that the others look again before the loop waits. */
  endOfTurn(): boolean;
}

/** The event loop. */
export interface Scheduler {
  /** Milliseconds since an arbitrary start; never goes back. */
  nowMs(): number;
  /** What `nowMs` said last, at 0; it is asked at the start of each turn. Costs nothing to read. */
  readonly lastMs: Float64Array;
  /** Tells `handler` when `fd` is ready for `events` (EPOLL* bits). Throws `SystemError`. */
  watch(fd: number, events: number, handler: FdHandler): void;
  /** Changes the events that a watched descriptor is watched for. */
  rewatch(fd: number, events: number): void;
  /** Stops watching a descriptor; call it before closing it. */
  unwatch(fd: number): void;
  /** Calls back once, after `delayMs`; returns a timer's number. */
  addTimer(delayMs: number, callback: () => void): number;
  /** Forgets a timer; nothing happens when it has fired. */
  cancelTimer(timer: number): void;
  /**
   * Calls back, in a turn, with what a promise of the runtime comes to; it must not fail. The
   * runtime's own loop has a turn every few milliseconds until then.
   */
  settle<T>(promise: Promise<T>, callback: (value: T) => void): void;
  /** Counts a request that a client sent: how a loop waits for more goes by how many there are. */
  noteRequest(): void;
  /** Adds work for the end of every turn; what was added before comes before. */
  addTurnWork(work: TurnWork): void;
  /** Takes such work out again. */
  removeTurnWork(work: TurnWork): void;
}

/** Timers of a scheduler, soonest first. Few and slow ones: retries, time-outs, housekeeping. */
export class TimerQueue {
  readonly #timers: { timer: number; dueMs: number; callback: () => void }[] = [];
  #lastTimer = 0;

  /** Adds a timer and returns its number, above 0. */
  add(dueMs: number, callback: () => void): number {
    const timer = ++this.#lastTimer;
    let at = this.#timers.length;
    while (at > 0 && this.#timers[at - 1].dueMs > dueMs) at--;
    this.#timers.splice(at, 0, { timer, dueMs, callback });
    return timer;
  }

  /** Takes a timer out, if it is still there. */
  cancel(timer: number): void {
    const at = this.#timers.findIndex((entry) => entry.timer === timer);
    if (at >= 0) this.#timers.splice(at, 1);
  }

  /** When the soonest timer is due; Infinity without one. */
  nextDueMs(): number {
    return this.#timers.length === 0 ? Infinity : this.#timers[0].dueMs;
  }

  /** Calls back what is due by `nowMs`; returns how many. */
  fire(nowMs: number): number {
    let fired = 0;
    while (this.#timers.length > 0 && this.#timers[0].dueMs <= nowMs) {
      this.#timers.shift()?.callback();
      fired++;
    }
    return fired;
  }
}

/**
 * Does the end-of-turn work until nobody has any left. Whoever comes later in the list has a turn
 * only when all before have nothing to do, so that answers leave in one batch.
 */
export function finishTurn(works: readonly TurnWork[]): void {
  for (let i = 0; i < works.length;) {
    if (works[i].endOfTurn()) i = 0;
    else i++;
  }
}
