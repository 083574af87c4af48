import { contain, type FaultOwner, type LastResort, THROW_ON } from "../scheduler/faults.ts";
import {
  type FdHandler,
  type Scheduler,
  TimerQueue,
  type TurnWork,
  TurnWorks,
} from "../scheduler/scheduler.ts";

/** The first number of an event's descriptor: no real descriptor is as high. */
const FIRST_EVENT = 2 ** 30;
/** The descriptor can be read. */
const EPOLLIN = 1;
/** How long a turn takes whose loop does not sleep. */
const AWAKE_TURN_MS = 0.01;

/**
 * A loop with its own clock, which advances only to the next timer: minutes on a real machine take
 * microseconds here, and the order is always the same. Its only descriptors are events (`openEvent`).
 */
export class SimulatedScheduler implements Scheduler {
  readonly #timers = new TimerQueue();
  readonly #works = new TurnWorks();
  readonly #lastResort: LastResort;
  /** The events that are open, and who watches them. */
  readonly #events = new Map<number, { handler: FdHandler; owner?: FaultOwner } | null>();
  readonly #signalled = new Set<number>();
  #lastEvent = FIRST_EVENT;
  /** Whether the next turn comes at once. */
  #isAwake = false;
  readonly loop = this;
  readonly lastMs = new Float64Array(1);
  readonly turns = new Uint32Array(1);

  /** @param lastResort Handles faults that belong to no owner. */
  constructor(lastResort: LastResort = THROW_ON) {
    this.#lastResort = lastResort;
  }

  nowMs(): number {
    return this.lastMs[0];
  }

  /** Opens an event, as eventfd(2) does; returns its descriptor. */
  openEvent(): number {
    this.#events.set(++this.#lastEvent, null);
    return this.#lastEvent;
  }

  /** Signals an event: who watches it is called in the next turn, once for all signals. */
  signal(fd: number): void {
    if (this.#events.has(fd)) this.#signalled.add(fd);
  }

  /** Takes a signal back, as reading an eventfd does. */
  clearSignal(fd: number): void {
    this.#signalled.delete(fd);
  }

  closeEvent(fd: number): void {
    if (this.#events.get(fd) !== null) throw new TypeError(`Event ${fd} is closed and watched`);
    this.#events.delete(fd);
    this.#signalled.delete(fd);
  }

  watch(fd: number, _events: number, handler: FdHandler, owner?: FaultOwner): void {
    if (this.#events.get(fd) !== null) {
      throw new TypeError(`Cannot watch descriptor ${fd}: it is no event, or is watched`);
    }
    this.#events.set(fd, { handler, owner });
  }

  rewatch(fd: number, _events: number): void {
    throw new TypeError(`Cannot watch descriptor ${fd} for other events`);
  }

  unwatch(fd: number): void {
    if ((this.#events.get(fd) ?? null) === null) {
      throw new TypeError(`Cannot stop watching descriptor ${fd}: it is not watched`);
    }
    this.#events.set(fd, null);
  }

  /** Calls those who watch signalled events; false without one. */
  #callWatchers(): boolean {
    if (this.#signalled.size === 0) return false;
    const fds = [...this.#signalled];
    this.#signalled.clear();
    for (const fd of fds) {
      const watcher = this.#events.get(fd) ?? null;
      try {
        watcher?.handler.ready(EPOLLIN);
      } catch (error) {
        this.contain(error, watcher?.owner);
      }
    }
    return true;
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

  stayAwake(): void {
    this.#isAwake = true;
  }

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
   * Runs one turn: end-of-turn work, then events; without one the clock advances to the next
   * timer. False without a timer.
   */
  turn(): boolean {
    this.turns[0]++;
    this.#works.finish(this);
    if (this.#callWatchers()) {
      this.#works.finish(this);
      return true;
    }
    const dueMs = this.#timers.nextDueMs();
    if (this.#isAwake) {
      this.#isAwake = false;
      this.lastMs[0] = Math.min(this.lastMs[0] + AWAKE_TURN_MS, Math.max(dueMs, this.lastMs[0]));
      this.#timers.fire(this.lastMs[0], this);
      this.#works.finish(this);
      return true;
    }
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
