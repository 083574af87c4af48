import { SLOTS } from "../../vbd/slots.ts";

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
