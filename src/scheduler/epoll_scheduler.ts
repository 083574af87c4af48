import { Epoll } from "../../ffi/epoll.ts";
import {
  type FdHandler,
  finishTurn,
  type Scheduler,
  TimerQueue,
  type TurnWork,
} from "./scheduler.ts";

const MOST_EVENTS = 64;
/** Longest time that the loop looks for more events before it lets the processor go. */
const MOST_SPIN_MS = 0.05;
const LEAST_SPIN_MS = 0.002;
/** A turn that took no longer served a request or two. */
const SHORT_TURN_MS = 0.03;
/** How long the loop runs at most before the runtime's own loop (signals) has a turn. */
const RUNTIME_TURN_MS = 500;
/** The same while somebody waits for the runtime. */
const AWAITED_TURN_MS = 2;

/**
 * The loop of a real process: epoll on the main thread. A wait that a signal interrupts, and half
 * a second gone by, give the runtime's own event loop a turn, in which signal listeners run.
 */
export class EpollScheduler implements Scheduler {
  readonly lastMs = new Float64Array(1);
  readonly #epoll = new Epoll(MOST_EVENTS);
  readonly #handlers: (FdHandler | undefined)[] = [];
  readonly #timers = new TimerQueue();
  #works: TurnWork[] = [];
  #running = false;
  /** Promises of the runtime that somebody waits for. */
  #awaited = 0;
  /** How long to look for events before waiting; adapts to how soon they come. */
  #spinMs = LEAST_SPIN_MS;
  /** When the last wait ended. */
  #wokenMs = 0;

  nowMs(): number {
    return this.lastMs[0] = performance.now();
  }

  watch(fd: number, events: number, handler: FdHandler): void {
    this.#epoll.add(fd, events);
    this.#handlers[fd] = handler;
  }

  rewatch(fd: number, events: number): void {
    this.#epoll.modify(fd, events);
  }

  unwatch(fd: number): void {
    this.#epoll.remove(fd);
    this.#handlers[fd] = undefined;
  }

  addTimer(delayMs: number, callback: () => void): number {
    return this.#timers.add(this.nowMs() + delayMs, callback);
  }

  cancelTimer(timer: number): void {
    this.#timers.cancel(timer);
  }

  settle<T>(promise: Promise<T>, callback: (value: T) => void): void {
    this.#awaited++;
    promise.then((value) => {
      this.#awaited--;
      // In a turn, so that the work at its end is done.
      this.addTimer(0, () => callback(value));
    });
  }

  addTurnWork(work: TurnWork): void {
    this.#works = [...this.#works, work];
  }

  removeTurnWork(work: TurnWork): void {
    this.#works = this.#works.filter((other) => other !== work);
  }

  /** Runs turns until `stop`. */
  async run(): Promise<void> {
    this.#running = true;
    let runtimeTurnMs = this.nowMs();
    while (this.#running) {
      const interrupted = !this.#turn(runtimeTurnMs + this.#runtimeTurnMs);
      if (interrupted || this.nowMs() >= runtimeTurnMs + this.#runtimeTurnMs) {
        await new Promise((resolve) => setTimeout(resolve, 0));
        runtimeTurnMs = this.nowMs();
      }
    }
  }

  get #runtimeTurnMs(): number {
    return this.#awaited > 0 ? AWAITED_TURN_MS : RUNTIME_TURN_MS;
  }

  /** Ends `run` after the turn under way. */
  stop(): void {
    this.#running = false;
  }

  /** One turn; false when a signal interrupted the wait. */
  #turn(latestMs: number): boolean {
    const untilMs = Math.min(this.#timers.nextDueMs(), latestMs);
    const count = this.#wait(untilMs);
    for (let i = 0; i < count; i++) {
      const handler = this.#handlers[this.#epoll.fdOf(i)];
      if (handler !== undefined) handler.ready(this.#epoll.eventsOf(i));
    }
    if (this.#timers.nextDueMs() !== Infinity) this.#timers.fire(this.nowMs());
    finishTurn(this.#works);
    return count >= 0;
  }

  /**
   * Waits for events. After a short turn the loop looks for a while first: going to sleep and being
   * woken costs more than the few microseconds in which a client with one request at a time comes
   * back. It looks for longer as long as that helps, and hardly at all when it does not. After a
   * long turn, with many requests, the wake-up is shared by many more and sleeping is cheaper.
   */
  #wait(untilMs: number): number {
    const startMs = this.nowMs();
    const wasShort = startMs - this.#wokenMs < SHORT_TURN_MS;
    const spinUntilMs = wasShort ? Math.min(untilMs, startMs + this.#spinMs) : 0;
    let count = 0;
    let nowMs = startMs;
    while (count === 0 && nowMs < spinUntilMs) {
      count = this.#epoll.wait(0);
      nowMs = this.nowMs();
    }
    if (count === 0) {
      count = this.#epoll.wait(Math.max(0, Math.ceil(untilMs - nowMs)));
      nowMs = this.nowMs();
    }
    this.#wokenMs = nowMs;
    // Woken within what a longer look would have found: try that next time.
    const soon = count > 0 && nowMs - startMs < 2 * MOST_SPIN_MS;
    if (wasShort) {
      this.#spinMs = soon
        ? Math.min(MOST_SPIN_MS, this.#spinMs * 2)
        : Math.max(LEAST_SPIN_MS, this.#spinMs / 2);
    }
    return count;
  }

  /** Closes the epoll instance; `run` must have ended. */
  close(): void {
    this.#epoll.close();
  }
}
