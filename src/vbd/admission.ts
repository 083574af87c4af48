import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler, TurnWork } from "../scheduler/scheduler.ts";

/** A device whose requests wait. */
export interface AdmissionClient {
  /** What a fault of `admit` ends. */
  readonly faults: FaultOwner;
  /** Starts requests as long as there is room; false when it started none. */
  admit(): boolean;
  /** Whether requests wait. */
  readonly wantsAdmission: boolean;
}

/** Devices, in a list that keeps its room when it is emptied. */
class ClientList {
  readonly clients: (AdmissionClient | null)[] = [];
  size = 0;

  /** Puts a device at the end, unless it is in the list. */
  add(client: AdmissionClient): void {
    for (let i = 0; i < this.size; i++) if (this.clients[i] === client) return;
    this.clients[this.size++] = client;
  }
}

/**
 * Lets devices start their waiting requests as the disk queue gets room, and as the limits of a device
 * allow, one device after the other.
 */
export class Admission implements TurnWork {
  #waiting = new ClientList();
  #running = new ClientList();
  readonly #scheduler: Pick<Scheduler, "contain">;

  /** @param scheduler Contains faults. */
  constructor(scheduler: Pick<Scheduler, "contain">) {
    this.#scheduler = scheduler;
  }

  /** Puts a device behind the others that wait. */
  add(client: AdmissionClient): void {
    this.#waiting.add(client);
  }

  endOfTurn(): boolean {
    if (this.#waiting.size === 0) return false;
    const list = this.#waiting;
    this.#waiting = this.#running;
    this.#running = list;
    let any = false;
    for (let i = 0; i < list.size; i++) {
      const client = list.clients[i];
      list.clients[i] = null;
      if (client !== null && this.#admit(client)) any = true;
    }
    list.size = 0;
    return any;
  }

  #admit(client: AdmissionClient): boolean {
    try {
      const any = client.admit();
      if (client.wantsAdmission) this.add(client);
      return any;
    } catch (error) {
      this.#scheduler.contain(error, client.faults);
      return false;
    }
  }
}
