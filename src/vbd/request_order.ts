import { SlotQueue } from "./slot_queue.ts";
import { RequestKind, type RequestOwner, SLOTS, type SlotTable } from "./slots.ts";

/** By kind of request: whether it changes sectors. */
const CHANGES: readonly boolean[] = [false, true, false, true, true, false, true];

/**
 * Keeps requests of a client behind changes that another client made earlier.
 *
 * A client that loses its connection makes what has no answer again on a new one, and then writes newer
 * data to the same sectors. A change of the old connection that ended after that would put older data
 * over it. Which clients are one and the same is not known. So:
 *
 * - When a client comes, the changes of all others that are open are earlier ones.
 * - When a client goes, its open changes are earlier ones.
 * - A request of a client that came or began later waits for the earlier changes that it overlaps.
 *
 * A request waits only for those that began before it, so that no two wait for each other.
 */
export class RequestOrder {
  readonly #slots: SlotTable;
  readonly #resume: (slot: number) => void;
  readonly #clients = new WeakSet<RequestOwner>();
  /** By slot: the number of the request, in the order in which they began. */
  readonly #numbers = new Float64Array(SLOTS);
  readonly #lastNumber = new Float64Array(1);
  /** The slots of earlier changes, and whether a slot is among them. */
  readonly #earlier = new Int32Array(SLOTS);
  readonly #isEarlier = new Uint8Array(SLOTS);
  #count = 0;
  /** Requests that wait for them. */
  readonly #held = new SlotQueue();

  /** @param resume Takes a request back that need not wait any more, or may have to wait again. */
  constructor(slots: SlotTable, resume: (slot: number) => void) {
    this.#slots = slots;
    this.#resume = resume;
  }

  /** Whether there are earlier changes, so that `holds` has to be asked. */
  get isOn(): boolean {
    return this.#count > 0;
  }

  /** How many requests wait. */
  get size(): number {
    return this.#held.size;
  }

  /** A request begins. */
  begin(slot: number): void {
    this.#numbers[slot] = ++this.#lastNumber[0];
  }

  /** A client has come, and made no request yet. */
  ownerCame(owner: RequestOwner): void {
    this.#clients.add(owner);
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#slots.owner[slot] !== owner) this.#mark(slot);
    }
  }

  /** A client has gone. Its requests that wait are resumed, so that they end. */
  ownerWent(owner: RequestOwner): void {
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#slots.owner[slot] === owner) this.#mark(slot);
    }
    this.#resumeAll();
  }

  #mark(slot: number): void {
    const { kind, owner } = this.#slots;
    if (this.#isEarlier[slot] === 1 || !this.#slots.isOpen(slot) || !CHANGES[kind[slot]]) return;
    // Others than clients, such as a guest's ring, are not expected back on another connection.
    if (!this.#clients.has(owner[slot])) return;
    this.#isEarlier[slot] = 1;
    this.#earlier[this.#count++] = slot;
  }

  /** Holds a request back that overlaps an earlier change of another client; then true. */
  holds(slot: number): boolean {
    const { kind, owner, sector, count } = this.#slots;
    if (kind[slot] === RequestKind.Flush || !this.#clients.has(owner[slot])) return false;
    const end = sector[slot] + count[slot];
    for (let i = 0; i < this.#count; i++) {
      const other = this.#earlier[i];
      if (this.#numbers[other] >= this.#numbers[slot] || owner[other] === owner[slot]) continue;
      if (sector[other] >= end || sector[other] + count[other] <= sector[slot]) continue;
      this.#held.push(slot);
      return true;
    }
    return false;
  }

  /**
   * A step of a long request has ended, and others follow. While its client is there, they are as requests
   * that it makes now: others wait for what had begun only.
   */
  stepDone(slot: number): void {
    if (this.#slots.owner[slot].hasEnded !== true) this.end(slot);
  }

  /** A request has ended. Those that waited for it are resumed. */
  end(slot: number): void {
    if (this.#isEarlier[slot] === 0) return;
    this.#isEarlier[slot] = 0;
    this.#earlier[this.#earlier.indexOf(slot)] = this.#earlier[--this.#count];
    this.#resumeAll();
  }

  #resumeAll(): void {
    for (let left = this.#held.size; left > 0; left--) this.#resume(this.#held.shift());
  }

  /** Takes all requests that wait to another queue. */
  moveTo(queue: SlotQueue): void {
    while (this.#held.size > 0) queue.push(this.#held.shift());
  }

  /** Takes all requests out. */
  clear(): void {
    this.#held.clear();
  }
}
