import { assert } from "../../ffi/assert.ts";
import { Errno } from "../../ffi/errno.ts";
import type { ImageDriver } from "../driver/driver.ts";
import { SLOT_BYTES, SLOTS, type SlotTable } from "./slots.ts";

const BYTES_PER_EXTENT = 8;
/** Longest step of a status request, sectors: others get their turn in between. */
const STEP_SECTORS = 1 << 22;

/** State of a status request; a union of bits. */
const StatusFlag = {
  /** The call that asks the image has not returned. */
  Asking: 1,
  /** The image has ended the request. */
  Ended: 2,
  /** The image has found an extent. */
  Found: 4,
  /** The answer has no room for another extent. */
  Full: 8,
} as const;

/**
 * Finds the extents of status requests. The answer is in the slot's memory: pairs of 32-bit
 * little-endian numbers, sectors, and 1 for data or 0 for a hole.
 */
export class ExtentSearch {
  readonly #slots: SlotTable;
  readonly #flags = new Uint8Array(SLOTS);
  readonly #counts = new Uint32Array(SLOTS);
  readonly #mostCounts = new Uint32Array(SLOTS);

  constructor(slots: SlotTable) {
    this.#slots = slots;
  }

  /** Says how many extents the next request of a slot wants at most. */
  limit(slot: number, most: number): void {
    this.#mostCounts[slot] = most;
  }

  /** A request begins: nothing has been found. */
  begin(slot: number): void {
    this.#counts[slot] = 0;
    this.#flags[slot] = StatusFlag.Ended;
  }

  /** How many extents a request found. */
  count(slot: number): number {
    return this.#counts[slot];
  }

  /** Asks the image for what the answer lacks. True when the step is over; else `end` says so. */
  run(slot: number, image: ImageDriver): boolean {
    const slots = this.#slots;
    const flags = this.#flags;
    const end = Math.min(slots.count[slot], slots.progress[slot] + STEP_SECTORS);
    do {
      const sector = slots.sector[slot] + slots.progress[slot];
      flags[slot] = StatusFlag.Asking;
      image.status(slot, sector, end - slots.progress[slot]);
      flags[slot] &= ~StatusFlag.Asking;
      if ((flags[slot] & StatusFlag.Ended) === 0) return false;
    } while (this.wantsMore(slot) && slots.progress[slot] < end);
    return true;
  }

  /** Adds an extent to the answer; false when the answer is full. */
  add(slot: number, sectors: number, isData: boolean): boolean {
    const { progress, count } = this.#slots;
    assert((this.#flags[slot] & StatusFlag.Ended) === 0, "An image finds extents when it is asked");
    assert(
      sectors > 0 && sectors <= count[slot] - progress[slot],
      "An extent lies within its request",
    );
    const isAdded = this.#put(slot, sectors, isData ? 1 : 0);
    if (isAdded) progress[slot] += sectors;
    this.#flags[slot] |= isAdded ? StatusFlag.Found : StatusFlag.Found | StatusFlag.Full;
    return isAdded;
  }

  /** Writes an extent behind the others, or makes the last one longer if it is of the same kind. */
  #put(slot: number, sectors: number, data: number): boolean {
    const { view } = this.#slots.arena;
    const count = this.#counts[slot];
    const last = slot * SLOT_BYTES + (count - 1) * BYTES_PER_EXTENT;
    if (count > 0 && view.getUint32(last + 4, true) === data) {
      view.setUint32(last, view.getUint32(last, true) + sectors, true);
      return true;
    }
    if (count === this.#mostCounts[slot]) return false;
    view.setUint32(last + BYTES_PER_EXTENT, sectors, true);
    view.setUint32(last + BYTES_PER_EXTENT + 4, data, true);
    this.#counts[slot] = count + 1;
    return true;
  }

  /** The image has ended a request. True when the step is over; else `run` is about to say so. */
  end(slot: number, errno: number): boolean {
    const { error } = this.#slots;
    const flags = this.#flags[slot];
    assert((flags & StatusFlag.Ended) === 0, "A status request ends once");
    this.#flags[slot] = flags | StatusFlag.Ended;
    // An image that finds nothing would be asked for ever.
    const found = errno === 0 && (flags & StatusFlag.Found) === 0 ? Errno.EIO : errno;
    if (found !== 0 && error[slot] === 0) error[slot] = found;
    return (flags & StatusFlag.Asking) === 0;
  }

  /** Whether the answer lacks extents, and has room for more. */
  wantsMore(slot: number): boolean {
    const { error, progress, count } = this.#slots;
    return error[slot] === 0 && (this.#flags[slot] & StatusFlag.Full) === 0 &&
      progress[slot] < count[slot];
  }
}
