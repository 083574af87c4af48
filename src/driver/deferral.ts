import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler, TurnWork } from "../scheduler/scheduler.ts";

/** Something with work to do at the end of the turn. */
export interface Deferred {
  /** Whether it is in the list already; the list keeps this. */
  deferred: boolean;
  /** Whom a fault of the work ends. */
  readonly faults?: FaultOwner;
  /** Does the work. */
  runDeferred(): void;
}

/** A list that keeps its room when it is emptied. */
class DeferredList {
  readonly #members: (Deferred | null)[] = [];
  size = 0;

  push(who: Deferred): void {
    this.#members[this.size++] = who;
  }

  /** Lets each do its work. */
  run(scheduler: Pick<Scheduler, "contain">): void {
    for (let i = 0; i < this.size; i++) {
      const who = this.#members[i];
      if (who === null) continue;
      this.#members[i] = null;
      who.deferred = false;
      try {
        who.runDeferred();
      } catch (error) {
        scheduler.contain(error, who.faults);
      }
    }
    this.size = 0;
  }
}

/** Those who have something to do at the end of the turn, each once, however often it asked. */
export class Deferral implements TurnWork {
  #waiting = new DeferredList();
  #running = new DeferredList();
  readonly #scheduler: Pick<Scheduler, "contain">;

  /** @param scheduler Told of faults. */
  constructor(scheduler: Pick<Scheduler, "contain">) {
    this.#scheduler = scheduler;
  }

  /** Puts someone in the list. */
  add(who: Deferred): void {
    if (who.deferred) return;
    who.deferred = true;
    this.#waiting.push(who);
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
