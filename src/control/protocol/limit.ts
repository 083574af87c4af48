import { Errno, SystemError } from "../../../ffi/errno.ts";
import { areRateLimits, RATE_LIMIT_NAMES, type RateLimits } from "../../vbd/rate_limits.ts";
import { messageCookie, MessageType, startMessage, viewOf } from "./message.ts";

/** Limits as bytes: a u64 each, in the order of their names, then u32 burst (ms), 4 bytes of padding. */
export const LIMITS_BYTES = 8 * RATE_LIMIT_NAMES.length + 8;
const BURST_OFFSET = 8 * RATE_LIMIT_NAMES.length;
/** Where limits are in a message `limit` and its answer. */
const LIMITS_OFFSET = 16;
const BURST_BIT = 1 << RATE_LIMIT_NAMES.length;

/** Puts limits at an offset. */
export function putLimits(view: DataView, offsetBytes: number, limits: RateLimits): void {
  RATE_LIMIT_NAMES.forEach((name, i) =>
    view.setBigUint64(offsetBytes + 8 * i, BigInt(limits[name]), true)
  );
  view.setUint32(offsetBytes + BURST_OFFSET, limits.burstMs, true);
}

/** The limits at an offset. Throws `SystemError` (EINVAL) where there can be no such limits. */
export function limitsAt(view: DataView, offsetBytes: number): RateLimits {
  const number = (i: number): number => Number(view.getBigUint64(offsetBytes + 8 * i, true));
  const limits = {
    readIops: number(0),
    writeIops: number(1),
    totalIops: number(2),
    readBps: number(3),
    writeBps: number(4),
    totalBps: number(5),
    burstMs: view.getUint32(offsetBytes + BURST_OFFSET, true),
  };
  if (areRateLimits(limits)) return limits;
  throw new SystemError(Errno.EINVAL, "Cannot read the limits of the message: they are too high");
}

/** Changes of limits: those that are not given stay. */
export type LimitChanges = Partial<RateLimits>;

/** A `limit`, which without changes asks for the limits. */
export function encodeLimit(minor: number, changes: LimitChanges): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.LIMIT, minor);
  let given = 0;
  RATE_LIMIT_NAMES.forEach((name, i) => {
    const limit = changes[name];
    if (limit === undefined) return;
    given |= 1 << i;
    view.setBigUint64(LIMITS_OFFSET + 8 * i, BigInt(limit), true);
  });
  if (changes.burstMs !== undefined) {
    given |= BURST_BIT;
    view.setUint32(LIMITS_OFFSET + BURST_OFFSET, changes.burstMs, true);
  }
  view.setUint32(8, given, true);
  return message;
}

/**
 * The limits after a `limit` of a device that has these; null when it changes none. Throws
 * `SystemError` (EINVAL).
 */
export function decodeLimit(message: Uint8Array, present: RateLimits): RateLimits | null {
  const view = viewOf(message);
  const given = view.getUint32(8, true);
  if (given === 0) return null;
  const [whole, wholeView] = startMessage(MessageType.LIMIT, messageCookie(message));
  putLimits(wholeView, LIMITS_OFFSET, present);
  RATE_LIMIT_NAMES.forEach((_name, i) => {
    if ((given & (1 << i)) === 0) return;
    const at = LIMITS_OFFSET + 8 * i;
    whole.set(message.subarray(at, at + 8), at);
  });
  const burstAt = LIMITS_OFFSET + BURST_OFFSET;
  if ((given & BURST_BIT) !== 0) whole.set(message.subarray(burstAt, burstAt + 4), burstAt);
  return limitsAt(wholeView, LIMITS_OFFSET);
}

/** The answer to `limit`: the limits from now on. */
export function encodeLimitReply(cookie: number, limits: RateLimits): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.LIMIT_RSP, cookie);
  putLimits(view, LIMITS_OFFSET, limits);
  return message;
}

/** The limits in the answer to `limit`. Throws `SystemError` (EINVAL). */
export function decodeLimitReply(message: Uint8Array): RateLimits {
  return limitsAt(viewOf(message), LIMITS_OFFSET);
}
