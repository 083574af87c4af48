import type { TurnWork } from "../scheduler/scheduler.ts";

/** Something with work to do at the end of the turn. */
export interface Deferred {
  /** Whether it is in the list already; the list keeps this. */
  deferred: boolean;
  /** Does the work. */
  runDeferred(): void;
}

/** Those who have something to do at the end of the turn, each once, however often it asked. */
export class Deferral implements TurnWork {
  #waiting: Deferred[] = [];
  #running: Deferred[] = [];

  /** Puts someone in the list. */
  add(who: Deferred): void {
    if (who.deferred) return;
    who.deferred = true;
    this.#waiting.push(who);
  }

  endOfTurn(): boolean {
    if (this.#waiting.length === 0) return false;
    const list = this.#waiting;
    this.#waiting = this.#running;
    this.#running = list;
    for (let i = 0; i < list.length; i++) {
      list[i].deferred = false;
      list[i].runDeferred();
    }
    list.length = 0;
    return true;
  }
}
