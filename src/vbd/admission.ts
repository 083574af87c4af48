import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler, TurnWork } from "../scheduler/scheduler.ts";

/** A device whose requests wait for room in the disk queue. */
export interface AdmissionClient {
  /** What a fault of `admit` ends. */
  readonly faults: FaultOwner;
  /** Starts requests as long as there is room; false when it started none. */
  admit(): boolean;
  /** Whether requests wait. */
  readonly wantsAdmission: boolean;
}

/** Lets devices start their waiting requests as the disk queue gets room, one after the other. */
export class Admission implements TurnWork {
  #clients: AdmissionClient[] = [];
  readonly #scheduler: Pick<Scheduler, "contain">;

  /** @param scheduler Contains faults. */
  constructor(scheduler: Pick<Scheduler, "contain">) {
    this.#scheduler = scheduler;
  }

  /** Puts a device behind the others that wait. */
  add(client: AdmissionClient): void {
    if (!this.#clients.includes(client)) this.#clients.push(client);
  }

  endOfTurn(): boolean {
    if (this.#clients.length === 0) return false;
    let any = false;
    const clients = this.#clients;
    this.#clients = [];
    for (const client of clients) {
      try {
        if (client.admit()) any = true;
        if (client.wantsAdmission) this.add(client);
      } catch (error) {
        this.#scheduler.contain(error, client.faults);
      }
    }
    return any;
  }
}
