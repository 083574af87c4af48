import type { SlotClaim } from "../../vbd/slot_shares.ts";
import { SLOT_BYTES, SLOTS } from "../../vbd/slots.ts";

const NONE = -1;
/** The most extents of a reply to a block status, for each meta context. */
export const MOST_EXTENTS = 8192;

/**
 * The state of NBD requests by slot. A request that is longer than the memory of a slot takes
 * several slots, its parts. The first is its head.
 */
export class NbdSlots {
  /** The cookie of the request, in two halves. */
  readonly cookieHigh = new Uint32Array(SLOTS);
  readonly cookieLow = new Uint32Array(SLOTS);
  /** NBD_CMD_* of the request. */
  readonly command = new Uint16Array(SLOTS);
  /** Offset of the request, bytes. */
  readonly offset = new Float64Array(SLOTS);
  /** Bytes of this part. */
  readonly length = new Uint32Array(SLOTS);
  readonly head = new Int32Array(SLOTS);
  readonly next = new Int32Array(SLOTS).fill(NONE);
  /** Of a head: parts that have not ended, bytes of the request, the first errno. */
  readonly partsLeft = new Uint32Array(SLOTS);
  readonly totalLength = new Uint32Array(SLOTS);
  /** Of a head: bytes that the reply to a read announces; 0 for a later piece of a long read. */
  readonly announced = new Uint32Array(SLOTS);
  readonly error = new Int32Array(SLOTS);
  /** Of a block status: the most extents of its reply. */
  readonly mostExtents = new Uint16Array(SLOTS);
}

/** The number of slots for `dataBytes`. */
export function partsOf(dataBytes: number): number {
  return Math.max(1, Math.ceil(dataBytes / SLOT_BYTES));
}

/** Takes `parts` slots for `dataBytes` and links them; `mayTake` must have allowed it. */
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

/** Releases a slot and the parts after it. */
export function releaseParts(slots: NbdSlots, claim: SlotClaim, head: number): void {
  for (let slot = head; slot !== NONE;) {
    const next = slots.next[slot];
    slots.next[slot] = NONE;
    claim.give(slot);
    slot = next;
  }
}

/** Sets up the request whose header is at offset `at`, in its head. */
export function putRequest(
  slots: NbdSlots,
  head: number,
  view: DataView,
  at: number,
  command: number,
): void {
  const length = view.getUint32(at + 24, false);
  const offset = view.getUint32(at + 16, false) * 0x1_0000_0000 + view.getUint32(at + 20, false);
  slots.cookieHigh[head] = view.getUint32(at + 8, false);
  slots.cookieLow[head] = view.getUint32(at + 12, false);
  slots.command[head] = command;
  slots.offset[head] = offset;
  slots.totalLength[head] = length;
  slots.announced[head] = length;
  slots.error[head] = 0;
}
