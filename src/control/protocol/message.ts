/**
 * `src/control/protocol`: the messages of the control socket, as bytes. This file has what all
 * messages share; each family of messages has a file of its own. The folder is pure functions: it
 * must not open sockets or files, and must not know a device.
 *
 * A message has 544 bytes in the byte order of the machine (x86-64: little-endian): u16 type @0,
 * u16 cookie (the minor) @2, 4 bytes of padding, and a union @8. The members of the union:
 *
 * | Member     | File            | Fields                                                         |
 * | ---------- | --------------- | -------------------------------------------------------------- |
 * | pid        | answers.ts      | i32 @8                                                         |
 * | image      | disk_info.ts    | u64 sectors @8, u32 sector size @16, u32 info @20, u32 what it |
 * |            |                 | can do with rings @24 (the original: 0)                        |
 * | params     | params.ts       | u32 flags @8, u32 device number @12, u32 domain @16, path[256] |
 * |            |                 | @20, u32 device number of the parent @276, u16 request time-out |
 * |            |                 | (s) @280, secondary[256] @282; for `open` and `resume`         |
 * | ring       | guest_ring.ts   | u32 domain @8, u32 device @12, u32 grant references[8] @16,    |
 * |            |                 | u32 page order @48, u32 protocol @52, pool[256] @56, u32 event |
 * |            |                 | channel @312, u32 time to poll (µs) @316, u32 idle share of    |
 * |            |                 | the processors to poll with (%) @320                           |
 * | response   | answers.ts      | i32 error @8, message[256] @12                                 |
 * | list       | list.ts         | i32 count @8, i32 minor @12, i32 state @16, path[256] @20      |
 * | statistics | statistics.ts   | u64 length @16; so many bytes of text follow the message       |
 *
 * Messages that the original does not have, and one field that it ignores:
 *
 * | Message    | File            | Fields                                                         |
 * | ---------- | --------------- | -------------------------------------------------------------- |
 * | pause      | pause.ts        | u32 time limit (ms, 0 for none) @8; the original ignores it    |
 * | snapshot   | snapshot.ts     | params with flag `RENAME` and the time limit in seconds; the   |
 * |            |                 | answer: u32 time that requests waited (µs) @8, path[256] of    |
 * |            |                 | the parent @12, path[256] of the open image @268               |
 * | write log  | write_log.ts    | u32 clear @8; the answer: u64 sectors @8, u64 length @16, and  |
 * |            |                 | so many bytes follow, pages of 32,768 sectors: u32 number,     |
 * |            |                 | 4096 bytes of bits                                             |
 * | node       | answers.ts      | the answer: path[256] of the block device @12, empty for none  |
 * | upgrade    | upgrade.ts      | u32 length @8 of the text behind it: the program, in JSON; the |
 * |            |                 | answer: i32 the new process @8, u32 time that users waited     |
 * |            |                 | (µs) @12                                                       |
 * | take over  | upgrade.ts      | u32 format of the frames @8; frames follow in place of an      |
 * |            |                 | answer (src/control/handover/channel.ts)                       |
 * | limit      | limit.ts        | u32 which of the limits change, a bit each @8; limits @16: six |
 * |            |                 | u64, u32 burst (ms) @64; the answer: the limits @16            |
 * | serve      | serve.ts        | u32 length @8; so many bytes of JSON follow; the answer:       |
 * |            |                 | path[256] with addresses and port @12                          |
 * | unserve    | serve.ts        | as serve; the answer has no fields                             |
 * | requests   | statistics.ts   | none; the answer is as that to statistics: a JSON list of the  |
 * |            |                 | state of the disk and its open requests, a text each           |
 * | reserve    | -               | none, and none in the answer: a place for a disk in a process  |
 * |            |                 | that several callers of `tap-ctl spawn` share                  |
 * | trace      | trace.ts        | none; the answer: u32 bytes of a record @8, f64 time by the    |
 * |            |                 | clock of records (ms) @16, f64 time since 1970 (ms) @24;       |
 * |            |                 | frames follow (src/trace/records.ts) until the sender of the   |
 * |            |                 | request sends a byte or hangs up                               |
 * | explain    | explain.ts      | none; the answer: u32 length @8; so many bytes of JSON follow  |
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

/** Types of messages; the protocol fixes the numbers. */
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
  /** The original does not have the types from here on. */
  SNAPSHOT: 0x200,
  SNAPSHOT_RSP: 0x201,
  WRITE_LOG: 64,
  WRITE_LOG_RSP: 65,
  NODE: 66,
  NODE_RSP: 67,
  LIMIT: 0x210,
  LIMIT_RSP: 0x211,
  SERVE: 0x220,
  SERVE_RSP: 0x221,
  UNSERVE: 0x222,
  UNSERVE_RSP: 0x223,
  RESERVE: 0x230,
  RESERVE_RSP: 0x231,
  UPGRADE: 0x240,
  UPGRADE_RSP: 0x241,
  TAKE_OVER: 0x242,
  TRACE: 0x260,
  TRACE_RSP: 0x261,
  EXPLAIN: 0x262,
  EXPLAIN_RSP: 0x263,
  REQUESTS: 0x270,
  REQUESTS_RSP: 0x271,
} as const;

const namesByType = new Map<number, string>(
  Object.entries(MessageType).map((
    [name, type],
  ) => [type, name.toLowerCase().replace("_rsp", " response").replaceAll("_", " ")]),
);

/** The name of a message type for people, such as `open response`. */
export function messageName(type: number): string {
  return namesByType.get(type) ?? `unknown (${type})`;
}

/** A view of the fields of a message. */
export function viewOf(message: Uint8Array): DataView {
  return new DataView(message.buffer, message.byteOffset, message.byteLength);
}

/** A message with its type and its cookie, and zeros in all other fields. */
export function startMessage(type: number, cookie: number): [Uint8Array<ArrayBuffer>, DataView] {
  const message = new Uint8Array(MESSAGE_BYTES);
  const view = viewOf(message);
  view.setUint16(0, type, true);
  view.setUint16(2, cookie, true);
  return [message, view];
}

/** A path as the bytes of a field. Throws `SystemError` (ENAMETOOLONG). */
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

/** The text in a field, up to its zero. Throws `SystemError` (EINVAL) when there is no zero. */
export function decodePathField(field: Uint8Array): string {
  const end = field.indexOf(0);
  if (end < 0) {
    throw new SystemError(Errno.EINVAL, "Cannot read a path of the message: it has no end");
  }
  return decodeName(field.subarray(0, end));
}

/** The text in the field at an offset. Throws `SystemError` (EINVAL). */
export function textAt(message: Uint8Array, offsetBytes: number): string {
  return decodePathField(message.subarray(offsetBytes, offsetBytes + MESSAGE_STRING_BYTES));
}

/** The type of a message (a `MessageType`). */
export function messageType(message: Uint8Array): number {
  return viewOf(message).getUint16(0, true);
}

/** The minor that a message is about. */
export function messageCookie(message: Uint8Array): number {
  return viewOf(message).getUint16(2, true);
}

/** A message without fields: most requests, most responses. */
export function encodePlain(type: number, cookie: number): Uint8Array<ArrayBuffer> {
  return startMessage(type, cookie)[0];
}
