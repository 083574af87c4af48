import { contain, type FaultOwner, type LastResort, THROW_ON } from "../scheduler/faults.ts";
import {
  type FdHandler,
  type Scheduler,
  TimerQueue,
  type TurnWork,
  TurnWorks,
} from "../scheduler/scheduler.ts";

/**
 * A loop with its own clock, which advances only to the next timer: minutes on a real machine take
 * microseconds here, and the order is always the same. It has no descriptors.
 */
export class SimulatedScheduler implements Scheduler {
  readonly #timers = new TimerQueue();
  readonly #works = new TurnWorks();
  readonly #lastResort: LastResort;
  readonly loop = this;
  readonly lastMs = new Float64Array(1);

  /** @param lastResort Handles faults that belong to no owner. */
  constructor(lastResort: LastResort = THROW_ON) {
    this.#lastResort = lastResort;
  }

  nowMs(): number {
    return this.lastMs[0];
  }

  watch(fd: number, _events: number, _handler: FdHandler): void {
    throw new TypeError(`Cannot watch descriptor ${fd}: a simulated loop has none`);
  }

  rewatch(fd: number, events: number): void {
    this.watch(fd, events, { ready: () => {} });
  }

  unwatch(fd: number): void {
    this.rewatch(fd, 0);
  }

  addTimer(delayMs: number, callback: () => void, owner?: FaultOwner): number {
    return this.#timers.add(this.lastMs[0] + delayMs, callback, owner);
  }

  cancelTimer(timer: number): void {
    this.#timers.cancel(timer);
  }

  settle<T>(_promise: Promise<T>, _callback: (value: T) => void): void {
    throw new TypeError("Cannot wait for a promise: a simulated loop knows no other time");
  }

  noteRequest(): void {}

  addTurnWork(work: TurnWork, owner?: FaultOwner): void {
    this.#works.add(work, owner);
  }

  removeTurnWork(work: TurnWork): void {
    this.#works.remove(work);
  }

  contain(error: unknown, owner: FaultOwner | undefined): void {
    contain(error, owner, this.#lastResort);
  }

  /**
   * Runs one turn: end-of-turn work, then the clock advances to the next timer; false without a
   * timer.
   */
  turn(): boolean {
    this.#works.finish(this);
    const dueMs = this.#timers.nextDueMs();
    if (dueMs === Infinity) return false;
    this.lastMs[0] = Math.max(this.lastMs[0], dueMs);
    this.#timers.fire(this.lastMs[0], this);
    this.#works.finish(this);
    return true;
  }

  /**
   * Runs turns until `done` returns true or there is no timer left; returns the last result of
   * `done`.
   */
  runUntil(done: () => boolean): boolean {
    while (!done()) {
      if (!this.turn()) return done();
    }
    return true;
  }
}
