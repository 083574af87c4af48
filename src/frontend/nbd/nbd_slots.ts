import type { SlotClaim } from "../../vbd/slot_shares.ts";
import { SLOT_BYTES, SLOTS } from "../../vbd/slots.ts";

const NONE = -1;

/**
 * What NBD has to remember of each slot of a device. A request longer than a slot's memory takes
 * several: its head, and the parts that follow.
 */
export class NbdSlots {
  /** The request's cookie, two halves as they came. */
  readonly cookieHigh = new Uint32Array(SLOTS);
  readonly cookieLow = new Uint32Array(SLOTS);
  /** NBD_CMD_* of the request. */
  readonly command = new Uint16Array(SLOTS);
  /** Where the request starts, bytes. */
  readonly offset = new Float64Array(SLOTS);
  /** Bytes of this part. */
  readonly length = new Uint32Array(SLOTS);
  readonly head = new Int32Array(SLOTS);
  readonly next = new Int32Array(SLOTS).fill(NONE);
  /** Of a head: parts that have not ended, bytes of all, the first error. */
  readonly partsLeft = new Uint32Array(SLOTS);
  readonly totalLength = new Uint32Array(SLOTS);
  /** Bytes that a read's answer announces; 0 for a piece whose answer continues another. */
  readonly announced = new Uint32Array(SLOTS);
  readonly error = new Int32Array(SLOTS);
}

/** Takes so many slots, one behind the other, for `dataBytes`; the claim must allow it. */
export function takeParts(
  slots: NbdSlots,
  claim: SlotClaim,
  parts: number,
  dataBytes: number,
): number {
  const head = claim.take();
  let left = dataBytes;
  for (let part = head;; part = slots.next[part]) {
    slots.head[part] = head;
    slots.length[part] = Math.min(left, SLOT_BYTES);
    left -= slots.length[part];
    slots.next[part] = left > 0 ? claim.take() : NONE;
    if (left === 0) break;
  }
  slots.partsLeft[head] = parts;
  return head;
}

/** Gives back a slot and those behind it. */
export function releaseParts(slots: NbdSlots, claim: SlotClaim, head: number): void {
  for (let slot = head; slot !== NONE;) {
    const next = slots.next[slot];
    slots.next[slot] = NONE;
    claim.give(slot);
    slot = next;
  }
}
