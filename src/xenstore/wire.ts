/**
 * The messages of xenstored: 16 bytes of header, in the byte order of the machine, and a payload, which
 * is at most 4096 bytes in a request (struct xsd_sockmsg in Xen's public io/xs_wire.h): u32 type @0, u32 request @4, u32
 * transaction @8, u32 length of the payload @12.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { decodeName, encodeName } from "../../ffi/names.ts";

/** Types of messages (enum xsd_sockmsg_type). */
export const XsType = {
  DIRECTORY: 1,
  READ: 2,
  GET_PERMS: 3,
  WATCH: 4,
  UNWATCH: 5,
  TRANSACTION_START: 6,
  TRANSACTION_END: 7,
  WRITE: 11,
  MKDIR: 12,
  RM: 13,
  WATCH_EVENT: 15,
  ERROR: 16,
  DIRECTORY_PART: 22,
} as const;

/** Bytes of a header. */
export const XS_HEADER_BYTES = 16;
/** The largest payload of a request (XENSTORE_PAYLOAD_MAX). */
export const XENSTORE_PAYLOAD_MAX = 4096;
/** The same of an answer: XenServer's oxenstored sends whole lists by its socket, however long. */
const XENSTORE_ANSWER_MAX = 1 << 20;

/** A message. */
export interface XsMessage {
  /** An `XsType`, or another number. */
  readonly type: number;
  /** What the client chose for the request; an answer has the same. */
  readonly request: number;
  /** The number of a transaction; 0 outside of transactions. */
  readonly transaction: number;
  readonly payload: Uint8Array;
}

/**
 * A message as bytes.
 *
 * @throws {SystemError} E2BIG when the payload is too long.
 */
export function encodeXsMessage(message: XsMessage): Uint8Array<ArrayBuffer> {
  const { type, request, transaction, payload } = message;
  if (payload.length > XENSTORE_PAYLOAD_MAX) {
    throw new SystemError(
      Errno.E2BIG,
      `Cannot send ${payload.length} bytes to xenstored (at most ${XENSTORE_PAYLOAD_MAX})`,
    );
  }
  const bytes = new Uint8Array(XS_HEADER_BYTES + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setUint32(4, request, true);
  view.setUint32(8, transaction, true);
  view.setUint32(12, payload.length, true);
  bytes.set(payload, XS_HEADER_BYTES);
  return bytes;
}

/**
 * Takes the first message out of received bytes.
 *
 * @returns The message and its length; null when it is not complete.
 * @throws {SystemError} EPROTO when its payload is longer than any answer.
 */
export function decodeXsMessage(
  bytes: Uint8Array,
): { readonly message: XsMessage; readonly lengthBytes: number } | null {
  if (bytes.length < XS_HEADER_BYTES) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const payloadBytes = view.getUint32(12, true);
  if (payloadBytes > XENSTORE_ANSWER_MAX) {
    throw new SystemError(
      Errno.EPROTO,
      `Cannot read from xenstored (a message has ${payloadBytes} bytes)`,
    );
  }
  const lengthBytes = XS_HEADER_BYTES + payloadBytes;
  if (bytes.length < lengthBytes) return null;
  const message = {
    type: view.getUint32(0, true),
    request: view.getUint32(4, true),
    transaction: view.getUint32(8, true),
    payload: bytes.slice(XS_HEADER_BYTES, lengthBytes),
  };
  return { message, lengthBytes };
}

/** Texts as a payload, each ended by a zero. */
export function encodeTexts(...texts: readonly string[]): Uint8Array<ArrayBuffer> {
  return encodeName(texts.map((text) => `${text}\0`).join(""));
}

/** The texts of a payload, each ended by a zero; the last one may lack it. */
export function decodeTexts(payload: Uint8Array): string[] {
  if (payload.length === 0) return [];
  const ended = payload[payload.length - 1] === 0;
  return decodeName(ended ? payload.subarray(0, -1) : payload).split("\0");
}

/** Error numbers by the names that xenstored sends (xsd_errors of io/xs_wire.h). */
const ERRORS: ReadonlyMap<string, number> = new Map<string, number>(Object.entries(Errno));

/** The error number of an error message: EPROTO for a name that there is not. */
export function errnoOfXsError(payload: Uint8Array): number {
  return ERRORS.get(decodeTexts(payload)[0] ?? "") ?? Errno.EPROTO;
}
