import { SLOTS } from "./slots.ts";

/**
 * How long slots wait for clients: for the data of a write to arrive, and for an answer to be taken. Only
 * slots that belong to a client are counted, and not those that a frontend always keeps.
 */
export class ClientTimes {
  readonly #clock: Float64Array;
  /** By slot: whether it waits for a client, and since when, milliseconds. */
  readonly #waits = new Uint8Array(SLOTS);
  readonly #sinceMs = new Float64Array(SLOTS);
  /** By slot: whether a client has it. */
  readonly #isTaken = new Uint8Array(SLOTS);
  readonly #totalMs = new Float64Array(1);

  /** @param clock The time that the loop read last, milliseconds, at index 0. */
  constructor(clock: Float64Array) {
    this.#clock = clock;
  }

  /** A client's slot is taken. */
  take(slot: number): void {
    this.#isTaken[slot] = 1;
    this.#wait(slot);
  }

  /** A request begins in a slot. */
  begin(slot: number): void {
    if (this.#waits[slot] === 0) return;
    this.#waits[slot] = 0;
    this.#totalMs[0] += this.#clock[0] - this.#sinceMs[slot];
  }

  /** The request in a slot has ended. */
  end(slot: number): void {
    if (this.#isTaken[slot] === 1) this.#wait(slot);
  }

  /** A client's slot is given back. */
  give(slot: number): void {
    this.begin(slot);
    this.#isTaken[slot] = 0;
  }

  #wait(slot: number): void {
    this.#waits[slot] = 1;
    this.#sinceMs[slot] = this.#clock[0];
  }

  /** How long all slots have waited, those included that wait now; milliseconds. */
  totalMs(): number {
    let totalMs = this.#totalMs[0];
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#waits[slot] === 1) totalMs += this.#clock[0] - this.#sinceMs[slot];
    }
    return totalMs;
  }

  /** How many slots wait for clients now. */
  waiting(): number {
    let waiting = 0;
    for (let slot = 0; slot < SLOTS; slot++) waiting += this.#waits[slot];
    return waiting;
  }
}
