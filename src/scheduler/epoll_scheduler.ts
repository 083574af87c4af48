import { Epoll } from "../../ffi/epoll.ts";
import { Errno } from "../../ffi/errno.ts";
import { ShortSleep } from "../../ffi/short_sleep.ts";
import { Gathering } from "./gathering.ts";
import {
  type FdHandler,
  finishTurn,
  type Scheduler,
  TimerQueue,
  type TurnWork,
} from "./scheduler.ts";
import { Spin } from "./spin.ts";

const MOST_EVENTS = 64;
/** How long the loop runs at most before the runtime's own loop (signals) has a turn, by default. */
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
  readonly #spin = new Spin();
  readonly #gathering = new Gathering();
  readonly #sleep = new ShortSleep();
  /** Requests that the turn took from clients. */
  #requests = 0;
  /** When the last turn ended. */
  #endedMs = 0;
  /** When the wait after it ended. */
  #wokenMs = 0;
  readonly #idleTurnMs: number;

  /** @param options.runtimeTurnMs After how long at most signal listeners get to run. */
  constructor({ runtimeTurnMs = RUNTIME_TURN_MS }: { runtimeTurnMs?: number } = {}) {
    this.#idleTurnMs = runtimeTurnMs;
  }

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

  noteRequest(): void {
    this.#requests++;
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
      if (interrupted || this.lastMs[0] >= runtimeTurnMs + this.#runtimeTurnMs) {
        await new Promise((resolve) => setTimeout(resolve, 0));
        runtimeTurnMs = this.nowMs();
      }
    }
  }

  get #runtimeTurnMs(): number {
    return this.#awaited > 0 ? AWAITED_TURN_MS : this.#idleTurnMs;
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

  /** Waits for events: asleep for a moment if requests gather then, or with a look at first. */
  #wait(untilMs: number): number {
    const nowMs = this.nowMs();
    const lookUs = this.#spin.after(wholeMicroseconds(nowMs - this.#wokenMs));
    const sinceLastUs = wholeMicroseconds(nowMs - this.#endedMs);
    const gatherUs = this.#gathering.after(this.#requests, sinceLastUs);
    this.#endedMs = nowMs;
    this.#requests = 0;
    if (gatherUs > 0 && !this.#sleep.sleep(gatherUs)) return -Errno.EINTR;
    const count = gatherUs > 0 || lookUs === 0
      ? this.#epoll.wait(Math.max(0, Math.ceil(untilMs - nowMs)))
      : this.#look(untilMs, lookUs);
    this.#wokenMs = this.nowMs();
    return count;
  }

  /** Takes a quick look for events before it sleeps. */
  #look(untilMs: number, lookUs: number): number {
    const startMs = this.lastMs[0];
    const lookUntilMs = Math.min(untilMs, startMs + lookUs / 1000);
    let count = 0;
    let nowMs = startMs;
    while (count === 0 && nowMs < lookUntilMs) {
      count = this.#epoll.wait(0);
      nowMs = this.nowMs();
    }
    const found = count > 0;
    if (count === 0) {
      count = this.#epoll.wait(Math.max(0, Math.ceil(untilMs - nowMs)));
      nowMs = this.nowMs();
    }
    this.#spin.note(found, lookUs, wholeMicroseconds(nowMs - startMs));
    return count;
  }

  /** Closes the epoll instance; `run` must have ended. */
  close(): void {
    this.#epoll.close();
  }
}

/** A time as a whole number, at most a second: longer ones are all alike here. */
function wholeMicroseconds(ms: number): number {
  return ms < 1000 ? (ms * 1000 + 0.5) | 0 : 1_000_000;
}
