import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { ServeRequest } from "../../frontend/nbd/ports.ts";
import { parseServerTls } from "../../tls/tls.ts";
import {
  encodePathField,
  MESSAGE_BYTES,
  MessageType,
  startMessage,
  textAt,
  viewOf,
} from "./message.ts";

/** The most bytes of text behind a `serve` or an `unserve`. */
export const MOST_SERVE_BYTES = 8192;
/** The longest name of an export (doc/proto.md of the NBD project). */
export const LONGEST_EXPORT_NAME_BYTES = 4096;
/** The most clients of an export: as many as a disk serves at all. */
export const MOST_EXPORT_CLIENTS = 512;
const MOST_ADDRESSES = 16;
const ADDRESS_AT = 12;

/** Which exports of a disk end; all without. */
export interface UnserveRequest {
  /** Address and port, as `tap-ctl list --json` shows them. */
  readonly at?: string;
  readonly name?: string;
}

function encodeText(type: number, minor: number, value: unknown): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(value));
  if (text.length > MOST_SERVE_BYTES) {
    const most = `the control protocol carries at most ${MOST_SERVE_BYTES} bytes`;
    throw new SystemError(Errno.ENAMETOOLONG, `Cannot serve minor ${minor} (${most})`);
  }
  const [head, view] = startMessage(type, minor);
  view.setUint32(8, text.length, true);
  const message = new Uint8Array(MESSAGE_BYTES + text.length);
  message.set(head);
  message.set(text, MESSAGE_BYTES);
  return message;
}

/** The bytes of text behind a message of these types. One that says more than there can be has none. */
export function serveTextBytes(message: Uint8Array): number {
  const lengthBytes = viewOf(message).getUint32(8, true);
  return lengthBytes > MOST_SERVE_BYTES ? 0 : lengthBytes;
}

function decodeText(message: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(
      message.subarray(MESSAGE_BYTES, MESSAGE_BYTES + serveTextBytes(message)),
    ));
  } catch {
    return null;
  }
}

/** A `serve` with its text. Throws `SystemError` (ENAMETOOLONG). */
export function encodeServe(minor: number, request: ServeRequest): Uint8Array<ArrayBuffer> {
  return encodeText(MessageType.SERVE, minor, request);
}

function isCount(value: unknown, least: number, most: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= least && value <= most;
}

function isText(value: unknown): value is string {
  return typeof value === "string";
}

/** The request in parsed JSON; null when it is none. */
export function parseServeRequest(value: unknown): ServeRequest | null {
  if (typeof value !== "object" || value === null) return null;
  const fields: { [Field in keyof ServeRequest]?: unknown } = value;
  const { addresses, port, name, maxClients, maxClientsPerAddress } = fields;
  const tls = parseServerTls(fields.tls);
  if (!Array.isArray(addresses) || !addresses.every(isText)) return null;
  if (addresses.length > MOST_ADDRESSES || !isCount(port, 0, 0xffff) || !isText(name)) return null;
  if (new TextEncoder().encode(name).length > LONGEST_EXPORT_NAME_BYTES || tls === null) {
    return null;
  }
  if (!isCount(maxClients, 1, MOST_EXPORT_CLIENTS)) return null;
  if (!isCount(maxClientsPerAddress, 1, MOST_EXPORT_CLIENTS)) return null;
  return { addresses, port, name, tls, maxClients, maxClientsPerAddress };
}

/** The request in a `serve`. Throws `SystemError` (EINVAL). */
export function decodeServe(message: Uint8Array): ServeRequest {
  const request = parseServeRequest(decodeText(message));
  if (request !== null) return request;
  throw new SystemError(Errno.EINVAL, "Cannot serve a disk (the message makes no sense)");
}

/** The answer to `serve`: where the disk is served. */
export function encodeServeReply(cookie: number, listen: string): Uint8Array<ArrayBuffer> {
  const [message] = startMessage(MessageType.SERVE_RSP, cookie);
  // Many long addresses have no room; the port is in the statistics.
  message.set(encodePathField(listen.slice(0, 255)), ADDRESS_AT);
  return message;
}

/** Where the disk is served. Throws `SystemError` (EINVAL). */
export function decodeServeReply(message: Uint8Array): string {
  return textAt(message, ADDRESS_AT);
}

/** An `unserve` with its text. */
export function encodeUnserve(minor: number, request: UnserveRequest): Uint8Array<ArrayBuffer> {
  return encodeText(MessageType.UNSERVE, minor, request);
}

/** The request in an `unserve`. Throws `SystemError` (EINVAL). */
export function decodeUnserve(message: Uint8Array): UnserveRequest {
  const value = decodeText(message);
  if (typeof value === "object" && value !== null) {
    const { at, name }: { at?: unknown; name?: unknown } = value;
    const areTexts = (at === undefined || isText(at)) && (name === undefined || isText(name));
    if (areTexts) {
      return { ...(isText(at) ? { at } : {}), ...(isText(name) ? { name } : {}) };
    }
  }
  throw new SystemError(Errno.EINVAL, "Cannot stop serving a disk (the message makes no sense)");
}
