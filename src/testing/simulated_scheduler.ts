import { contain, type FaultOwner, type LastResort, THROW_ON } from "../scheduler/faults.ts";
import {
  type FdHandler,
  type Scheduler,
  TimerQueue,
  type TurnWork,
  TurnWorks,
} from "../scheduler/scheduler.ts";

/**
 * A loop with a clock of its own, which stands still until the next timer: what takes minutes on a
 * real machine takes microseconds, in the same order every time. It has no descriptors.
 */
export class SimulatedScheduler implements Scheduler {
  readonly #timers = new TimerQueue();
  readonly #works = new TurnWorks();
  readonly #lastResort: LastResort;
  readonly loop = this;
  readonly lastMs = new Float64Array(1);

  /** @param lastResort What is to become of faults that end nobody in particular. */
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

  /** One turn: end-of-turn work, then the clock moves to the next timer; false without one. */
  turn(): boolean {
    this.#works.finish(this);
    const dueMs = this.#timers.nextDueMs();
    if (dueMs === Infinity) return false;
    this.lastMs[0] = Math.max(this.lastMs[0], dueMs);
    this.#timers.fire(this.lastMs[0], this);
    this.#works.finish(this);
    return true;
  }

  /** Turns until `done` says so or nothing is left to happen; returns what `done` says last. */
  runUntil(done: () => boolean): boolean {
    while (!done()) {
      if (!this.turn()) return done();
    }
    return true;
  }
}
