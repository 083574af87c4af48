import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler, TurnWork } from "../scheduler/scheduler.ts";

/** Work that may be put off to the end of the turn. */
export interface Deferred {
  /** Whether it is in the list already; the list keeps this. */
  deferred: boolean;
  /** The disk or connection that a fault of the work ends. */
  readonly faults?: FaultOwner;
  /** Does the work. */
  runDeferred(): void;
}

/** A list that keeps its room when it is emptied. */
class DeferredList {
  readonly #members: (Deferred | null)[] = [];
  size = 0;

  push(work: Deferred): void {
    this.#members[this.size++] = work;
  }

  /** Does all work of the list. */
  run(scheduler: Pick<Scheduler, "contain">): void {
    for (let i = 0; i < this.size; i++) {
      const work = this.#members[i];
      if (work === null) continue;
      this.#members[i] = null;
      work.deferred = false;
      try {
        work.runDeferred();
      } catch (error) {
        scheduler.contain(error, work.faults);
      }
    }
    this.size = 0;
  }
}

/** Work for the end of the turn. Work that is added several times is done once. */
export class Deferral implements TurnWork {
  #waiting = new DeferredList();
  #running = new DeferredList();
  readonly #scheduler: Pick<Scheduler, "contain">;

  /** @param scheduler Told of faults. */
  constructor(scheduler: Pick<Scheduler, "contain">) {
    this.#scheduler = scheduler;
  }

  /** Puts work in the list. */
  add(work: Deferred): void {
    if (work.deferred) return;
    work.deferred = true;
    this.#waiting.push(work);
  }

  endOfTurn(): boolean {
    if (this.#waiting.size === 0) return false;
    const list = this.#waiting;
    this.#waiting = this.#running;
    this.#running = list;
    list.run(this.#scheduler);
    return true;
  }
}
