/**
 * The event loop: `src/scheduler`. It watches descriptors, fires timers, and does work at the end of
 * each turn. What a handler throws is contained: it ends the owner of the handler (see `FaultOwner`),
 * and the loop goes on with the next handler.
 *
 * It must not know disks, formats or clients. The folders above it must not read another clock: that
 * is why all of them run on a simulated one, too.
 *
 * @module
 */
import { EVERYTHING, type FaultOwner } from "./faults.ts";

/** Handles events of a watched descriptor. */
export interface FdHandler {
  /**
   * The descriptor is ready.
   *
   * @param events A union of EPOLL* bits.
   */
  ready(events: number): void;
}

/** Work that is done once at the end of every turn of the loop. */
export interface TurnWork {
  /** Returns true when it did something, so that the others look again before the loop waits. */
  endOfTurn(): boolean;
}

/** The event loop. */
export interface Scheduler {
  /** The loop itself; `ownedBy` makes views of it. */
  readonly loop: Scheduler;
  /** Milliseconds since an arbitrary start; never goes back. */
  nowMs(): number;
  /** What `nowMs` returned last, at index 0. Each turn begins with a call of it. */
  readonly lastMs: Float64Array;
  /** How many turns have begun, modulo 2^32, at index 0. */
  readonly turns: Uint32Array;
  /**
   * Calls `handler` when `fd` is ready for `events` (EPOLL* bits).
   *
   * @param owner What a fault of the handler ends.
   * @throws {SystemError} The descriptor cannot be watched.
   */
  watch(fd: number, events: number, handler: FdHandler, owner?: FaultOwner): void;
  /** Changes the events that a watched descriptor is watched for. */
  rewatch(fd: number, events: number): void;
  /** Stops watching a descriptor; call it before closing it. */
  unwatch(fd: number): void;
  /** Calls back once, after `delayMs` milliseconds; returns the timer's number, above 0. */
  addTimer(delayMs: number, callback: () => void, owner?: FaultOwner): number;
  /** Cancels a timer. Nothing happens when it has fired, or for 0. */
  cancelTimer(timer: number): void;
  /**
   * Calls back, in a turn, with the value of a promise of the runtime. The runtime's own loop has a
   * turn every few milliseconds until then. A promise that is rejected is a fault of the owner.
   */
  settle<T>(promise: Promise<T>, callback: (value: T) => void, owner?: FaultOwner): void;
  /** Counts a request of a client. The loop decides by their number how it waits for more. */
  noteRequest(): void;
  /** The loop does not sleep after this turn: a ring is polled. */
  stayAwake(): void;
  /**
   * Adds work for the end of every turn, behind the work that was added before. Work without an
   * owner belongs to all disks: a fault of it ends the process.
   */
  addTurnWork(work: TurnWork, owner?: FaultOwner): void;
  /** Removes work that `addTurnWork` added. */
  removeTurnWork(work: TurnWork): void;
  /** Ends the owner of a fault, and nothing else. */
  contain(error: unknown, owner: FaultOwner | undefined): void;
}

/** A view of a loop: what is added through it without an owner belongs to `owner`. */
export function ownedBy(owner: FaultOwner, scheduler: Scheduler): Scheduler {
  return new OwnedScheduler(owner, scheduler);
}

class OwnedScheduler implements Scheduler {
  readonly loop: Scheduler;
  readonly lastMs: Float64Array;
  readonly turns: Uint32Array;
  readonly #owner: FaultOwner;
  readonly #scheduler: Scheduler;

  constructor(owner: FaultOwner, scheduler: Scheduler) {
    this.#owner = owner;
    this.#scheduler = scheduler;
    this.loop = scheduler.loop;
    this.lastMs = scheduler.lastMs;
    this.turns = scheduler.turns;
  }

  nowMs(): number {
    return this.#scheduler.nowMs();
  }

  watch(fd: number, events: number, handler: FdHandler, owner = this.#owner): void {
    this.#scheduler.watch(fd, events, handler, owner);
  }

  rewatch(fd: number, events: number): void {
    this.#scheduler.rewatch(fd, events);
  }

  unwatch(fd: number): void {
    this.#scheduler.unwatch(fd);
  }

  addTimer(delayMs: number, callback: () => void, owner = this.#owner): number {
    return this.#scheduler.addTimer(delayMs, callback, owner);
  }

  cancelTimer(timer: number): void {
    this.#scheduler.cancelTimer(timer);
  }

  settle<T>(promise: Promise<T>, callback: (value: T) => void, owner = this.#owner): void {
    this.#scheduler.settle(promise, callback, owner);
  }

  noteRequest(): void {
    this.#scheduler.noteRequest();
  }

  stayAwake(): void {
    this.#scheduler.stayAwake();
  }

  addTurnWork(work: TurnWork, owner = this.#owner): void {
    this.#scheduler.addTurnWork(work, owner);
  }

  removeTurnWork(work: TurnWork): void {
    this.#scheduler.removeTurnWork(work);
  }

  contain(error: unknown, owner: FaultOwner | undefined): void {
    this.#scheduler.contain(error, owner ?? this.#owner);
  }
}

interface Timer {
  readonly timer: number;
  readonly dueMs: number;
  readonly callback: () => void;
  readonly owner: FaultOwner | undefined;
}

/** Timers of a scheduler, soonest first. They are few and slow: retries, time-outs, housekeeping. */
export class TimerQueue {
  readonly #timers: Timer[] = [];
  #lastTimer = 0;

  /** Adds a timer and returns its number, above 0. */
  add(dueMs: number, callback: () => void, owner?: FaultOwner): number {
    const timer = ++this.#lastTimer;
    let at = this.#timers.length;
    while (at > 0 && this.#timers[at - 1].dueMs > dueMs) at--;
    this.#timers.splice(at, 0, { timer, dueMs, callback, owner });
    return timer;
  }

  /** Removes a timer, if it is still there. */
  cancel(timer: number): void {
    const at = this.#timers.findIndex((entry) => entry.timer === timer);
    if (at >= 0) this.#timers.splice(at, 1);
  }

  /** When the soonest timer is due; Infinity without one. */
  nextDueMs(): number {
    return this.#timers.length === 0 ? Infinity : this.#timers[0].dueMs;
  }

  /** Fires the timers that are due at `nowMs`. */
  fire(nowMs: number, scheduler: Pick<Scheduler, "contain">): void {
    while (this.#timers.length > 0 && this.#timers[0].dueMs <= nowMs) {
      const timer = this.#timers.shift();
      try {
        timer?.callback();
      } catch (error) {
        scheduler.contain(error, timer?.owner);
      }
    }
  }
}

/** The work at the end of a turn, in order. */
export class TurnWorks {
  #works: TurnWork[] = [];
  #owners: FaultOwner[] = [];

  /** Adds work at the end. */
  add(work: TurnWork, owner: FaultOwner = EVERYTHING): void {
    this.#works = [...this.#works, work];
    this.#owners = [...this.#owners, owner];
  }

  /** Removes work. */
  remove(work: TurnWork): void {
    const kept = this.#works.map((other) => other !== work);
    this.#works = this.#works.filter((_, i) => kept[i]);
    this.#owners = this.#owners.filter((_, i) => kept[i]);
  }

  /**
   * Does the work until none is left. Later work in the list is done only when all before it has
   * nothing to do, so that answers leave in one batch.
   *
   * @param mostRounds How often the work begins from the front at most.
   * @returns Whether none is left.
   */
  finish(scheduler: Pick<Scheduler, "contain">, mostRounds = Infinity): boolean {
    const works = this.#works;
    const owners = this.#owners;
    let rounds = 0;
    for (let i = 0; i < works.length;) {
      let any = false;
      try {
        any = works[i].endOfTurn();
      } catch (error) {
        scheduler.contain(error, owners[i]);
      }
      if (any && ++rounds >= mostRounds) return false;
      i = any ? 0 : i + 1;
    }
    return true;
  }
}
