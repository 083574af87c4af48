/**
 * The event loop as the rest of the engine sees it: descriptors, timers, work at the end of a
 * turn, and the time. It knows nothing of disks; the engine knows time only through it, so that
 * the whole of it runs on a simulated clock.
 *
 * Whatever a handler throws is contained: it ends the handler's owner (see `FaultOwner`), and the
 * loop goes on with the next handler.
 *
 * @module
 */
import { EVERYTHING, type FaultOwner } from "./faults.ts";

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
  /** The loop itself, also where this is a disk's view of it. */
  readonly loop: Scheduler;
  /** Milliseconds since an arbitrary start; never goes back. */
  nowMs(): number;
  /** What `nowMs` said last, at 0; it is asked at the start of each turn. Costs nothing to read. */
  readonly lastMs: Float64Array;
  /**
   * Tells `handler` when `fd` is ready for `events` (EPOLL* bits).
   *
   * @param owner Whom a fault of the handler ends.
   * @throws {SystemError}
   */
  watch(fd: number, events: number, handler: FdHandler, owner?: FaultOwner): void;
  /** Changes the events that a watched descriptor is watched for. */
  rewatch(fd: number, events: number): void;
  /** Stops watching a descriptor; call it before closing it. */
  unwatch(fd: number): void;
  /** Calls back once, after `delayMs`; returns a timer's number. */
  addTimer(delayMs: number, callback: () => void, owner?: FaultOwner): number;
  /** Forgets a timer; nothing happens when it has fired. */
  cancelTimer(timer: number): void;
  /**
   * Calls back, in a turn, with what a promise of the runtime comes to. The runtime's own loop has
   * a turn every few milliseconds until then. A promise that fails is a fault of the owner.
   */
  settle<T>(promise: Promise<T>, callback: (value: T) => void, owner?: FaultOwner): void;
  /** Counts a request that a client sent: how a loop waits for more goes by how many there are. */
  noteRequest(): void;
  /**
   * Adds work for the end of every turn; what was added before comes before. Work without an owner
   * is that of all disks.
   */
  addTurnWork(work: TurnWork, owner?: FaultOwner): void;
  /** Takes such work out again. */
  removeTurnWork(work: TurnWork): void;
  /** Something threw on behalf of `owner`: ends it, and nobody else. */
  contain(error: unknown, owner: FaultOwner | undefined): void;
}

/** A loop on which a fault of all that does not name an owner ends `owner`. */
export function ownedBy(owner: FaultOwner, scheduler: Scheduler): Scheduler {
  return new OwnedScheduler(owner, scheduler);
}

class OwnedScheduler implements Scheduler {
  readonly loop: Scheduler;
  readonly lastMs: Float64Array;
  readonly #owner: FaultOwner;
  readonly #scheduler: Scheduler;

  constructor(owner: FaultOwner, scheduler: Scheduler) {
    this.#owner = owner;
    this.#scheduler = scheduler;
    this.loop = scheduler.loop;
    this.lastMs = scheduler.lastMs;
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

/** Timers of a scheduler, soonest first. Few and slow ones: retries, time-outs, housekeeping. */
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

  /** Takes a timer out, if it is still there. */
  cancel(timer: number): void {
    const at = this.#timers.findIndex((entry) => entry.timer === timer);
    if (at >= 0) this.#timers.splice(at, 1);
  }

  /** When the soonest timer is due; Infinity without one. */
  nextDueMs(): number {
    return this.#timers.length === 0 ? Infinity : this.#timers[0].dueMs;
  }

  /** Calls back what is due by `nowMs`. */
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

  /** Adds work behind all other. */
  add(work: TurnWork, owner: FaultOwner = EVERYTHING): void {
    this.#works = [...this.#works, work];
    this.#owners = [...this.#owners, owner];
  }

  /** Takes work out. */
  remove(work: TurnWork): void {
    const kept = this.#works.map((other) => other !== work);
    this.#works = this.#works.filter((_, i) => kept[i]);
    this.#owners = this.#owners.filter((_, i) => kept[i]);
  }

  /**
   * Does the work until nobody has any left. Whoever comes later in the list has a turn only when
   * all before have nothing to do, so that answers leave in one batch.
   */
  finish(scheduler: Pick<Scheduler, "contain">): void {
    const works = this.#works;
    const owners = this.#owners;
    for (let i = 0; i < works.length;) {
      let any = false;
      try {
        any = works[i].endOfTurn();
      } catch (error) {
        scheduler.contain(error, owners[i]);
      }
      i = any ? 0 : i + 1;
    }
  }
}
