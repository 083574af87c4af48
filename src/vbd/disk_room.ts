import { assert } from "../../ffi/assert.ts";
import type { DiskQueue } from "../queue/disk_queue.ts";
import { SLOTS } from "./slots.ts";

/** The room of the disk queue that the requests of a device hold while the image works on them. */
export class DiskRoom {
  readonly #queue: DiskQueue;
  /** Operations reserved by slot, and by all slots together. */
  readonly #operations = new Uint32Array(SLOTS);
  #held = 0;

  constructor(queue: DiskQueue) {
    this.#queue = queue;
  }

  /** Reserves room for a request's operations; false when there is not enough just now. */
  take(slot: number, operations: number): boolean {
    assert(this.#operations[slot] === 0, "A request reserves room of the disk queue once");
    if (!this.#queue.reserve(operations, this.#held)) return false;
    this.#operations[slot] = operations;
    this.#held += operations;
    return true;
  }

  /** Whether a request holds room. */
  holds(slot: number): boolean {
    return this.#operations[slot] > 0;
  }

  /** Gives the room of a request back. */
  give(slot: number): void {
    const operations = this.#operations[slot];
    assert(operations <= this.#held, "A request gives back no more room than was reserved");
    this.#operations[slot] = 0;
    this.#held -= operations;
    this.#queue.release(operations);
  }

  /** Gives the room of all requests back: nothing of the device is at the disk queue any more. */
  giveAll(): void {
    this.#queue.release(this.#held);
    this.#held = 0;
    this.#operations.fill(0);
  }
}
