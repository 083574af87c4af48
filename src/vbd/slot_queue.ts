import { assert } from "../../ffi/assert.ts";
import { SLOTS } from "./slots.ts";

/** A queue of slots, first in, first out; a slot is in one at most. */
export class SlotQueue {
  readonly #slots = new Int32Array(SLOTS);
  #head = 0;
  #size = 0;

  /** How many slots wait. */
  get size(): number {
    return this.#size;
  }

  /** Puts a slot at the end. */
  push(slot: number): void {
    assert(this.#size < SLOTS, "A queue holds no more slots than a device has");
    this.#slots[(this.#head + this.#size++) % SLOTS] = slot;
  }

  /** Puts a slot back to where it was shifted from. */
  unshift(slot: number): void {
    assert(this.#size < SLOTS, "A queue holds no more slots than a device has");
    this.#head = (this.#head + SLOTS - 1) % SLOTS;
    this.#slots[this.#head] = slot;
    this.#size++;
  }

  /** Takes the first slot out; there must be one. */
  shift(): number {
    assert(this.#size > 0, "A slot is taken out of a queue that has one");
    const slot = this.#slots[this.#head];
    this.#head = (this.#head + 1) % SLOTS;
    this.#size--;
    return slot;
  }

  /** Takes all slots out. */
  clear(): void {
    this.#size = 0;
  }
}
