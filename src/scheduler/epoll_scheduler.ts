import { Epoll } from "../../ffi/epoll.ts";
import { Errno } from "../../ffi/errno.ts";
import { ShortSleep } from "../../ffi/short_sleep.ts";
import { Gathering } from "./gathering.ts";
import { contain, type FaultOwner, type LastResort, THROW_ON } from "./faults.ts";
import {
  type FdHandler,
  type Scheduler,
  TimerQueue,
  type TurnWork,
  TurnWorks,
} from "./scheduler.ts";
import { Spin } from "./spin.ts";

const MOST_EVENTS = 64;
/**
 * How often the work at the end of a turn begins again at most. I/O of files in memory ends within the call that
 * submits it: a copy of a whole image would be one turn, in which no signal and no timer is noticed.
 */
const MOST_ROUNDS = 16;
/** The longest time between two turns of the runtime's own loop, by default. */
const RUNTIME_TURN_MS = 500;
/** The same while a promise of the runtime is awaited. */
const AWAITED_TURN_MS = 2;

/**
 * The loop of a real process: epoll on the main thread. The runtime's own event loop, which calls
 * listeners of signals, has a turn when a signal interrupts a wait, and every half second.
 */
export class EpollScheduler implements Scheduler {
  readonly loop = this;
  readonly lastMs = new Float64Array(1);
  readonly turns = new Uint32Array(1);
  readonly #epoll = new Epoll(MOST_EVENTS);
  readonly #handlers: (FdHandler | undefined)[] = [];
  /** By descriptor: what a fault of its handler ends. */
  readonly #owners: (FaultOwner | undefined)[] = [];
  readonly #timers = new TimerQueue();
  readonly #works = new TurnWorks();
  readonly #lastResort: LastResort;
  #running = false;
  /** Promises of the runtime that are awaited. */
  #awaited = 0;
  readonly #spin = new Spin();
  readonly #gathering = new Gathering();
  readonly #sleep = new ShortSleep();
  /** Requests that clients sent in this turn. */
  #requests = 0;
  /** Whether the loop does not sleep after the turn. */
  #isAwake = false;
  /** When the last turn ended. */
  #endedMs = 0;
  /** When the wait after it ended. */
  #wokenMs = 0;
  readonly #idleTurnMs: number;

  /**
   * @param options.runtimeTurnMs The longest time until listeners of signals are called.
   * @param options.lastResort Is handed faults that end no owner.
   */
  constructor(
    { runtimeTurnMs = RUNTIME_TURN_MS, lastResort = THROW_ON }: {
      runtimeTurnMs?: number;
      lastResort?: LastResort;
    } = {},
  ) {
    this.#lastResort = lastResort;
    this.#idleTurnMs = runtimeTurnMs;
  }

  nowMs(): number {
    return this.lastMs[0] = performance.now();
  }

  watch(fd: number, events: number, handler: FdHandler, owner?: FaultOwner): void {
    this.#epoll.add(fd, events);
    this.#handlers[fd] = handler;
    this.#owners[fd] = owner;
  }

  rewatch(fd: number, events: number): void {
    this.#epoll.modify(fd, events);
  }

  unwatch(fd: number): void {
    this.#epoll.remove(fd);
    this.#handlers[fd] = undefined;
    this.#owners[fd] = undefined;
  }

  addTimer(delayMs: number, callback: () => void, owner?: FaultOwner): number {
    return this.#timers.add(this.nowMs() + delayMs, callback, owner);
  }

  cancelTimer(timer: number): void {
    this.#timers.cancel(timer);
  }

  settle<T>(promise: Promise<T>, callback: (value: T) => void, owner?: FaultOwner): void {
    this.#awaited++;
    // In a turn, so that the work at its end is done.
    const settled = (call: () => void): void => {
      this.#awaited--;
      this.addTimer(0, call, owner);
    };
    promise.then(
      (value) => settled(() => callback(value)),
      (error) => settled(() => this.contain(error, owner)),
    );
  }

  contain(error: unknown, owner: FaultOwner | undefined): void {
    contain(error, owner, this.#lastResort);
  }

  noteRequest(): void {
    this.#requests++;
  }

  stayAwake(): void {
    this.#isAwake = true;
  }

  addTurnWork(work: TurnWork, owner?: FaultOwner): void {
    this.#works.add(work, owner);
  }

  removeTurnWork(work: TurnWork): void {
    this.#works.remove(work);
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
    this.turns[0]++;
    for (let i = 0; i < count; i++) this.#dispatch(this.#epoll.fdOf(i), this.#epoll.eventsOf(i));
    if (this.#timers.nextDueMs() !== Infinity) this.#timers.fire(this.nowMs(), this);
    if (!this.#works.finish(this, MOST_ROUNDS)) this.#isAwake = true;
    return count >= 0;
  }

  #dispatch(fd: number, events: number): void {
    const handler = this.#handlers[fd];
    if (handler === undefined) return;
    const owner = this.#owners[fd];
    try {
      handler.ready(events);
    } catch (error) {
      this.contain(error, owner);
    }
  }

  /** Waits for events. It may sleep for a moment first, so that requests gather, or poll first. */
  #wait(untilMs: number): number {
    const nowMs = this.nowMs();
    const lookUs = this.#spin.after(wholeMicroseconds(nowMs - this.#wokenMs));
    const sinceLastUs = wholeMicroseconds(nowMs - this.#endedMs);
    const gatherUs = this.#gathering.after(this.#requests, sinceLastUs);
    this.#endedMs = nowMs;
    this.#requests = 0;
    if (this.#isAwake) {
      this.#isAwake = false;
      const polled = this.#epoll.wait(0);
      this.#wokenMs = this.nowMs();
      return polled;
    }
    if (gatherUs > 0 && !this.#sleep.sleep(gatherUs)) return -Errno.EINTR;
    const count = gatherUs > 0 || lookUs === 0
      ? this.#epoll.wait(Math.max(0, Math.ceil(untilMs - nowMs)))
      : this.#look(untilMs, lookUs);
    this.#wokenMs = this.nowMs();
    return count;
  }

  /** Polls for events for a moment before it sleeps. */
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

/** A time as a whole number, at most a second: longer times make no difference here. */
function wholeMicroseconds(ms: number): number {
  return ms < 1000 ? (ms * 1000 + 0.5) | 0 : 1_000_000;
}
