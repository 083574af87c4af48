import type { RateLimits } from "../../vbd/rate_limits.ts";
import { LIMITS_BYTES, limitsAt, putLimits } from "./limit.ts";
import { serveTextBytes } from "./serve.ts";
import { upgradeTextBytes } from "./upgrade.ts";
import {
  encodePathField,
  MESSAGE_BYTES,
  MESSAGE_STRING_BYTES,
  MessageType,
  messageType,
  startMessage,
  textAt,
  viewOf,
} from "./message.ts";

/** Bits of `Params.flags`. */
export const MessageFlag = {
  SHARED: 0x001,
  RDONLY: 0x002,
  ADD_CACHE: 0x004,
  VHD_INDEX: 0x008,
  ADD_LOG: 0x010,
  ADD_LCACHE: 0x020,
  REUSE_PRT: 0x040,
  SECONDARY: 0x080,
  STANDBY: 0x100,
  NO_O_DIRECT: 0x200,
  OPEN_ENCRYPTED: 0x400,
  /** Of a `snapshot`: the running image is renamed. */
  RENAME: 0x800,
  /** Of an `open`, not in the original: a number from 0 to 7, the choice of a block device. */
  DEVICE_MASK: 0x7_0000,
  /** Of an `open`, not in the original: a number from 0 to 3, the choice of a disk queue. */
  QUEUE_MASK: 0x18_0000,
  /** Of a `resume`, not in the original: the log of changed blocks stays. */
  KEEP_LOG: 0x20_0000,
  /** Of an `open`, not in the original: limits follow. */
  LIMITS: 0x100_0000,
  /** Of an `open`, not in the original: a number from 0 to 3, which errors are tried again. */
  RETRY_MASK: 0x3000_0000,
} as const;

/** The fields of `open`, `resume` and `snapshot`, as they are on the wire. */
export interface Params {
  /** A union of `MessageFlag` bits. */
  readonly flags: number;
  readonly minor: number;
  /** `type:/path`; empty in a `resume` that keeps the image. */
  readonly path: string;
  /** The minor whose image is the parent (flag `REUSE_PRT`); -1 for none. */
  readonly parentMinor: number;
  /** After how long a request fails; 0 for the default. */
  readonly requestTimeoutSeconds: number;
  /** `type:/path` of the secondary image (flag `SECONDARY`); empty for none. */
  readonly secondary: string;
}

/** A message with these fields. Throws `SystemError` (ENAMETOOLONG). */
export function encodeParams(
  type: number,
  cookie: number,
  params: Params,
): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(type, cookie);
  view.setUint32(8, params.flags, true);
  view.setUint32(12, params.minor, true);
  message.set(encodePathField(params.path), 20);
  view.setInt32(276, params.parentMinor, true);
  view.setUint16(280, params.requestTimeoutSeconds, true);
  message.set(encodePathField(params.secondary), 282);
  return message;
}

/** The fields of a message. Throws `SystemError` (EINVAL). */
export function decodeParams(message: Uint8Array): Params {
  const view = viewOf(message);
  return {
    flags: view.getUint32(8, true),
    minor: view.getUint32(12, true),
    path: textAt(message, 20),
    parentMinor: view.getInt32(276, true),
    requestTimeoutSeconds: view.getUint16(280, true),
    secondary: textAt(message, 282),
  };
}

/**
 * The bytes that follow an `open` or a `resume` on the socket: with flag `ADD_LOG` 256 bytes with a
 * path; then, behind an `open` with flag `LIMITS`, the limits (limit.ts), and with flag
 * `OPEN_ENCRYPTED` one byte with the length of a key. The key itself follows. It is not part of a
 * request here, because it belongs in memory for keys.
 */
export interface Trailer {
  readonly logPath: string | null;
  /** Limits of the device; none by default. */
  readonly limits?: RateLimits | null;
  /** The length of the key that follows; null without one. */
  readonly keyBytes: number | null;
}

/** The bytes of a trailer. Throws `SystemError` (ENAMETOOLONG). */
export function encodeTrailer(
  { logPath, limits = null, keyBytes }: Trailer,
): Uint8Array<ArrayBuffer> {
  const log = logPath === null ? new Uint8Array(0) : encodePathField(logPath);
  const keyAt = log.length + (limits === null ? 0 : LIMITS_BYTES);
  const trailer = new Uint8Array(keyAt + (keyBytes === null ? 0 : 1));
  trailer.set(log);
  if (limits !== null) putLimits(viewOf(trailer), log.length, limits);
  if (keyBytes !== null) trailer[keyAt] = keyBytes;
  return trailer;
}

/**
 * The length of a request in bytes, its trailer included and the key not, as far as the bytes that
 * have arrived tell. The caller asks again when so many have arrived.
 */
export function requestLength(bytes: Uint8Array): number {
  if (bytes.length < MESSAGE_BYTES) return MESSAGE_BYTES;
  const type = messageType(bytes);
  if (type === MessageType.SERVE || type === MessageType.UNSERVE) {
    return MESSAGE_BYTES + serveTextBytes(bytes);
  }
  if (type === MessageType.UPGRADE) return MESSAGE_BYTES + upgradeTextBytes(bytes);
  if (type !== MessageType.OPEN && type !== MessageType.RESUME) return MESSAGE_BYTES;
  const flags = viewOf(bytes).getUint32(8, true);
  let length = MESSAGE_BYTES;
  if ((flags & MessageFlag.ADD_LOG) !== 0) length += MESSAGE_STRING_BYTES;
  if (type !== MessageType.OPEN) return length;
  if ((flags & MessageFlag.LIMITS) !== 0) length += LIMITS_BYTES;
  if ((flags & MessageFlag.OPEN_ENCRYPTED) !== 0) length += 1;
  return length;
}

/** The most bytes that a request can have, without the key that follows. */
export const LONGEST_REQUEST_BYTES = MESSAGE_BYTES + MESSAGE_STRING_BYTES + LIMITS_BYTES + 1;

/** The path behind a whole request with flag `ADD_LOG`; null without the flag. */
export function logPath(request: Uint8Array): string | null {
  const hasPath = requestLength(request) > MESSAGE_BYTES &&
    (viewOf(request).getUint32(8, true) & MessageFlag.ADD_LOG) !== 0;
  return hasPath ? textAt(request, MESSAGE_BYTES) : null;
}

/** The limits behind a whole `open` with flag `LIMITS`; null without. Throws `SystemError` (EINVAL). */
export function requestLimits(request: Uint8Array): RateLimits | null {
  const flags = viewOf(request).getUint32(8, true);
  if (requestLength(request) <= MESSAGE_BYTES || (flags & MessageFlag.LIMITS) === 0) return null;
  const hasLog = (flags & MessageFlag.ADD_LOG) !== 0;
  return limitsAt(viewOf(request), MESSAGE_BYTES + (hasLog ? MESSAGE_STRING_BYTES : 0));
}

/** The length of the key that follows a whole request; null without one. */
export function keyLength(request: Uint8Array): number | null {
  const length = requestLength(request);
  const isKeyed = length > MESSAGE_BYTES &&
    (viewOf(request).getUint32(8, true) & MessageFlag.OPEN_ENCRYPTED) !== 0 &&
    messageType(request) === MessageType.OPEN;
  return isKeyed ? request[length - 1] : null;
}
