/**
 * The messages of the control socket, as bytes: pure functions, no sockets, no devices.
 *
 * Every message has 544 bytes in the byte order of the machine (x86-64: little-endian): u16 type
 * @0, u16 cookie (the minor) @2, 4 bytes of padding, and a union @8 whose members start at:
 *
 * - pid: i32 @8
 * - image: u64 sectors @8, u32 sector size @16, u32 info @20
 * - params: u32 flags @8, u32 device number @12, u32 domain @16, path[256] @20, u32 parent's device
 *   number @276, u16 request time-out (seconds) @280, secondary[256] @282; resume uses these too
 * - response: i32 error @8, message[256] @12
 * - list: i32 count @8, i32 minor @12, i32 state @16, path[256] @20
 * - pause: u32 time limit (milliseconds, 0 for none) @8, which the reference does not look at
 * - snapshot, not in the reference: params, with flag `RENAME` and the time limit in seconds; its
 *   answer: u32 time that requests waited (µs) @8, path[256] of the parent @12, path[256] @268 of
 *   the image that is open now
 * - statistics: u64 length @16, and that many bytes of text follow the message
 * - write log, this tapdisk's own: asked with u32 clear @8; u64 sectors @8, u64 length @16, and that
 *   many bytes follow, pages of 32,768 sectors: u32 number, 4096 bytes of bits
 * - node, this tapdisk's own: answered with path[256] @12, the block device's node, empty for none
 *
 * An `open` or `resume` with `ADD_LOG` is followed by 256 bytes with a path, and an `open` with
 * `OPEN_ENCRYPTED` after that by one byte with the length of a key, and the key.
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { decodeName, encodeName } from "../../../ffi/names.ts";

/** The size of every message, bytes. */
export const MESSAGE_BYTES = 544;
/** Room for a path or a text, bytes, its terminating zero included. */
export const MESSAGE_STRING_BYTES = 256;
/** The cookie that stands for all devices. */
export const ALL_MINORS = 0xffff;

/** What a message is; the numbers are fixed by the protocol. */
export const MessageType = {
  ERROR: 1,
  RUNTIME_ERROR: 2,
  PID: 3,
  PID_RSP: 4,
  ATTACH: 5,
  ATTACH_RSP: 6,
  OPEN: 7,
  OPEN_RSP: 8,
  PAUSE: 9,
  PAUSE_RSP: 10,
  RESUME: 11,
  RESUME_RSP: 12,
  CLOSE: 13,
  CLOSE_RSP: 14,
  DETACH: 15,
  DETACH_RSP: 16,
  LIST_MINORS: 17,
  LIST_MINORS_RSP: 18,
  LIST: 19,
  LIST_RSP: 20,
  STATS: 21,
  STATS_RSP: 22,
  FORCE_SHUTDOWN: 23,
  XENBLKIF_CONNECT: 24,
  XENBLKIF_CONNECT_RSP: 25,
  XENBLKIF_DISCONNECT: 26,
  XENBLKIF_DISCONNECT_RSP: 27,
  DISK_INFO: 28,
  DISK_INFO_RSP: 29,
  EXIT: 30,
  /** From here on what the reference does not have. */
  SNAPSHOT: 0x200,
  SNAPSHOT_RSP: 0x201,
  WRITE_LOG: 64,
  WRITE_LOG_RSP: 65,
  NODE: 66,
  NODE_RSP: 67,
} as const;

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
  /** Of an `open`, not in the reference: a number from 0 to 7, which block device it becomes. */
  DEVICE_MASK: 0x7_0000,
  /** Of an `open`, not in the reference: a number from 0 to 3, which disk queue it uses. */
  QUEUE_MASK: 0x18_0000,
} as const;

/** What `open` and `resume` ask for. */
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

/** The disk that an `open` led to. */
export interface DiskInfo {
  readonly sectors: number;
  readonly sectorSizeBytes: number;
  /** Bits of the Xen block interface's VDISK_* flags. */
  readonly info: number;
}

/** One device of a tapdisk, as `list` tells of it. */
export interface ListEntry {
  /** How many entries are still to come, this one included; 0 ends the list. */
  readonly count: number;
  readonly minor: number;
  /** A union of TD_VBD_* bits. */
  readonly state: number;
  /** `type:/path`; empty without an image. */
  readonly path: string;
}

/** How something ended. */
export interface Response {
  /** 0, or a positive error number. */
  readonly error: number;
  /** What happened, for people; the reference leaves it empty. */
  readonly message: string;
}

const namesByType = new Map<number, string>(
  Object.entries(MessageType).map((
    [name, type],
  ) => [type, name.toLowerCase().replace("_rsp", " response").replaceAll("_", " ")]),
);

/** A message type's name for people, such as `open response`. */
export function messageName(type: number): string {
  return namesByType.get(type) ?? `unknown (${type})`;
}

function viewOf(message: Uint8Array): DataView {
  return new DataView(message.buffer, message.byteOffset, message.byteLength);
}

function start(type: number, cookie: number): [Uint8Array<ArrayBuffer>, DataView] {
  const message = new Uint8Array(MESSAGE_BYTES);
  const view = viewOf(message);
  view.setUint16(0, type, true);
  view.setUint16(2, cookie, true);
  return [message, view];
}

/** A path in the field that holds one. Throws `SystemError` (ENAMETOOLONG). */
export function encodePathField(path: string): Uint8Array<ArrayBuffer> {
  const bytes = encodeName(path);
  if (bytes.length >= MESSAGE_STRING_BYTES) {
    const most = `the control protocol carries at most ${MESSAGE_STRING_BYTES - 1} bytes`;
    throw new SystemError(Errno.ENAMETOOLONG, `Cannot pass ${path} to a tapdisk (${most})`);
  }
  const field = new Uint8Array(MESSAGE_STRING_BYTES);
  field.set(bytes);
  return field;
}

/** The text in a field, up to its zero. Throws `SystemError` (EINVAL) when it has none. */
export function decodePathField(field: Uint8Array): string {
  const end = field.indexOf(0);
  if (end < 0) {
    throw new SystemError(Errno.EINVAL, "Cannot read a path of the message: it has no end");
  }
  return decodeName(field.subarray(0, end));
}

function stringAt(message: Uint8Array, offsetBytes: number): string {
  return decodePathField(message.subarray(offsetBytes, offsetBytes + MESSAGE_STRING_BYTES));
}

/** What a message is (a `MessageType`). */
export function messageType(message: Uint8Array): number {
  return viewOf(message).getUint16(0, true);
}

/** The minor that a message is about. */
export function messageCookie(message: Uint8Array): number {
  return viewOf(message).getUint16(2, true);
}

/** A message that says everything by its type: most requests, most responses. */
export function encodePlain(type: number, cookie: number): Uint8Array<ArrayBuffer> {
  return start(type, cookie)[0];
}

/** The answer to `pid`. */
export function encodePid(cookie: number, pid: number): Uint8Array<ArrayBuffer> {
  const [message, view] = start(MessageType.PID_RSP, cookie);
  view.setInt32(8, pid, true);
  return message;
}

/** The process number in the answer to `pid`. */
export function decodePid(message: Uint8Array): number {
  return viewOf(message).getInt32(8, true);
}

/** An `open` or a `resume`. Throws `SystemError` (ENAMETOOLONG). */
export function encodeParams(
  type: number,
  cookie: number,
  params: Params,
): Uint8Array<ArrayBuffer> {
  const [message, view] = start(type, cookie);
  view.setUint32(8, params.flags, true);
  view.setUint32(12, params.minor, true);
  message.set(encodePathField(params.path), 20);
  view.setInt32(276, params.parentMinor, true);
  view.setUint16(280, params.requestTimeoutSeconds, true);
  message.set(encodePathField(params.secondary), 282);
  return message;
}

/** What an `open` or a `resume` asks for. Throws `SystemError` (EINVAL). */
export function decodeParams(message: Uint8Array): Params {
  const view = viewOf(message);
  return {
    flags: view.getUint32(8, true),
    minor: view.getUint32(12, true),
    path: stringAt(message, 20),
    parentMinor: view.getInt32(276, true),
    requestTimeoutSeconds: view.getUint16(280, true),
    secondary: stringAt(message, 282),
  };
}

/** A `pause`; without a limit as long as it takes. */
export function encodePause(cookie: number, timeoutMs: number): Uint8Array<ArrayBuffer> {
  const [message, view] = start(MessageType.PAUSE, cookie);
  const limit = timeoutMs === Infinity ? 0 : Math.min(Math.max(1, timeoutMs), 0xffff_ffff);
  view.setUint32(8, limit, true);
  return message;
}

/** The time limit of a `pause`, milliseconds. */
export function decodePauseTimeoutMs(message: Uint8Array): number {
  return viewOf(message).getUint32(8, true) || Infinity;
}

/** What a `snapshot` led to. */
export interface SnapshotReply {
  /** How long requests were held back, milliseconds. */
  readonly stallMs: number;
  /** Path of the image that keeps the disk of that moment. */
  readonly parent: string;
  /** `type:/path` of the image that is open now. */
  readonly image: string;
}

/** The answer to `snapshot`. */
export function encodeSnapshotReply(
  cookie: number,
  { stallMs, parent, image }: SnapshotReply,
): Uint8Array<ArrayBuffer> {
  const [message, view] = start(MessageType.SNAPSHOT_RSP, cookie);
  view.setUint32(8, Math.min(stallMs * 1000, 0xffff_ffff), true);
  message.set(encodePathField(parent), 12);
  message.set(encodePathField(image), 268);
  return message;
}

/** What the answer to `snapshot` tells. */
export function decodeSnapshotReply(message: Uint8Array): SnapshotReply {
  const stallMs = viewOf(message).getUint32(8, true) / 1000;
  return { stallMs, parent: stringAt(message, 12), image: stringAt(message, 268) };
}

/** The answer to `node`: where the device's block device is, or null. */
export function encodeNode(cookie: number, node: string | null): Uint8Array<ArrayBuffer> {
  const [message] = start(MessageType.NODE_RSP, cookie);
  message.set(encodePathField(node ?? ""), 12);
  return message;
}

/** The node that the answer to `node` tells of; null without one. Throws `SystemError` (EINVAL). */
export function decodeNode(message: Uint8Array): string | null {
  return stringAt(message, 12) || null;
}

/** The answer to `open` or `disk info`. */
export function encodeDiskInfo(
  type: number,
  cookie: number,
  info: DiskInfo,
): Uint8Array<ArrayBuffer> {
  const [message, view] = start(type, cookie);
  view.setBigUint64(8, BigInt(info.sectors), true);
  view.setUint32(16, info.sectorSizeBytes, true);
  view.setUint32(20, info.info, true);
  return message;
}

/** The disk that the answer to `open` or `disk info` tells of. */
export function decodeDiskInfo(message: Uint8Array): DiskInfo {
  const view = viewOf(message);
  return {
    sectors: Number(view.getBigUint64(8, true)),
    sectorSizeBytes: view.getUint32(16, true),
    info: view.getUint32(20, true),
  };
}

/**
 * The answer to something that failed. A text that is too long loses its middle: it starts with
 * the file and ends with the reason.
 */
export function encodeError(cookie: number, response: Response): Uint8Array<ArrayBuffer> {
  const [message, view] = start(MessageType.ERROR, cookie);
  view.setInt32(8, response.error, true);
  message.set(shortened(encodeName(response.message), MESSAGE_STRING_BYTES - 1), 12);
  return message;
}

/** A text of UTF-8, without its middle when it is longer than `room` bytes. */
function shortened(text: Uint8Array, room: number): Uint8Array {
  if (text.length <= room) return text;
  const gap = encodeName("…");
  const half = (room - gap.length) >> 1;
  const [head, tail] = [text.subarray(0, half), text.subarray(text.length - half)];
  // No character is cut in two: continuation bytes go with the rest of theirs.
  const cut = (byte: number): boolean => (byte & 0xc0) === 0x80;
  let end = half;
  while (end > 0 && cut(text[end])) end--;
  let start = 0;
  while (start < tail.length && cut(tail[start])) start++;
  return Uint8Array.of(...head.subarray(0, end), ...gap, ...tail.subarray(start));
}

/** How something ended: for errors and for responses that carry nothing else. */
export function decodeResponse(message: Uint8Array): Response {
  return { error: viewOf(message).getInt32(8, true), message: stringAt(message, 12) };
}

/** One entry of the answer to `list`. */
export function encodeListEntry(cookie: number, entry: ListEntry): Uint8Array<ArrayBuffer> {
  const [message, view] = start(MessageType.LIST_RSP, cookie);
  view.setInt32(8, entry.count, true);
  view.setInt32(12, entry.minor, true);
  view.setInt32(16, entry.state, true);
  message.set(encodePathField(entry.path), 20);
  return message;
}

/** An entry of the answer to `list`. Throws `SystemError` (EINVAL). */
export function decodeListEntry(message: Uint8Array): ListEntry {
  const view = viewOf(message);
  return {
    count: view.getInt32(8, true),
    minor: view.getInt32(12, true),
    state: view.getInt32(16, true),
    path: stringAt(message, 20),
  };
}

/** The head of the answer to `stats`; the text itself follows it. */
export function encodeStatisticsHead(cookie: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  const [message, view] = start(MessageType.STATS_RSP, cookie);
  view.setBigUint64(16, BigInt(lengthBytes), true);
  return message;
}

/** How many bytes of text follow the head of the answer to `stats`. */
export function decodeStatisticsLength(message: Uint8Array): number {
  return Number(viewOf(message).getBigUint64(16, true));
}

/** A request for the log of writes; with `clear`, the log then begins anew. */
export function encodeWriteLogRequest(cookie: number, clear: boolean): Uint8Array<ArrayBuffer> {
  const [message, view] = start(MessageType.WRITE_LOG, cookie);
  view.setUint32(8, clear ? 1 : 0, true);
  return message;
}

/** Whether the log is to begin anew. */
export function decodeWriteLogRequest(message: Uint8Array): boolean {
  return (viewOf(message).getUint32(8, true) & 1) !== 0;
}

/** The head of the answer: the device's sectors @8, the length of the pages that follow @16. */
export function encodeWriteLogHead(
  cookie: number,
  { sectors, lengthBytes }: { sectors: number; lengthBytes: number },
): Uint8Array<ArrayBuffer> {
  const [message, view] = start(MessageType.WRITE_LOG_RSP, cookie);
  view.setBigUint64(8, BigInt(sectors), true);
  view.setBigUint64(16, BigInt(lengthBytes), true);
  return message;
}

/** The device's size, and how many bytes of pages follow. */
export function decodeWriteLogHead(
  message: Uint8Array,
): { sectors: number; lengthBytes: number } {
  const view = viewOf(message);
  return {
    sectors: Number(view.getBigUint64(8, true)),
    lengthBytes: Number(view.getBigUint64(16, true)),
  };
}

/** What follows an `open` or a `resume` on the socket. */
export interface Trailer {
  /** The log that a log layer writes (flag `ADD_LOG`). */
  readonly logPath: string | null;
  /** The key of an encrypted image (flag `OPEN_ENCRYPTED`). */
  readonly encryptionKey: Uint8Array | null;
}

/** The bytes after an `open` or a `resume`. Throws `SystemError` (ENAMETOOLONG). */
export function encodeTrailer({ logPath, encryptionKey }: Trailer): Uint8Array<ArrayBuffer> {
  const log = logPath === null ? new Uint8Array(0) : encodePathField(logPath);
  const key = encryptionKey === null
    ? new Uint8Array(0)
    : Uint8Array.of(encryptionKey.length, ...encryptionKey);
  const trailer = new Uint8Array(log.length + key.length);
  trailer.set(log);
  trailer.set(key, log.length);
  return trailer;
}

/**
 * How many bytes a request has, its trailer included, as far as the bytes that are here tell: ask
 * again when they have arrived.
 */
export function requestLength(bytes: Uint8Array): number {
  if (bytes.length < MESSAGE_BYTES) return MESSAGE_BYTES;
  const type = messageType(bytes);
  if (type !== MessageType.OPEN && type !== MessageType.RESUME) return MESSAGE_BYTES;
  const flags = viewOf(bytes).getUint32(8, true);
  let length = MESSAGE_BYTES;
  if ((flags & MessageFlag.ADD_LOG) !== 0) length += MESSAGE_STRING_BYTES;
  if (type === MessageType.OPEN && (flags & MessageFlag.OPEN_ENCRYPTED) !== 0) {
    length += 1 + (bytes.length > length ? bytes[length] : 0);
  }
  return length;
}

/** The most bytes that a request can have. */
export const LONGEST_REQUEST_BYTES = MESSAGE_BYTES + MESSAGE_STRING_BYTES + 1 + 255;

/** What follows a whole request. Throws `SystemError` (EINVAL). */
export function decodeTrailer(request: Uint8Array): Trailer {
  let at = MESSAGE_BYTES;
  const length = requestLength(request);
  const flags = length > MESSAGE_BYTES ? viewOf(request).getUint32(8, true) : 0;
  let logPath: string | null = null;
  if ((flags & MessageFlag.ADD_LOG) !== 0) {
    logPath = decodePathField(request.subarray(at, at + MESSAGE_STRING_BYTES));
    at += MESSAGE_STRING_BYTES;
  }
  return { logPath, encryptionKey: at < length ? request.slice(at + 1, length) : null };
}
