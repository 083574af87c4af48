import { encodeName } from "../../../ffi/names.ts";
import {
  encodePathField,
  MESSAGE_STRING_BYTES,
  MessageType,
  startMessage,
  textAt,
  viewOf,
} from "./message.ts";

/** The answer to `pid`. */
export function encodePid(cookie: number, pid: number): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.PID_RSP, cookie);
  view.setInt32(8, pid, true);
  return message;
}

/** The process number in the answer to `pid`. */
export function decodePid(message: Uint8Array): number {
  return viewOf(message).getInt32(8, true);
}

/** The answer to `node`: the path of the block device, or null. */
export function encodeNode(cookie: number, node: string | null): Uint8Array<ArrayBuffer> {
  const [message] = startMessage(MessageType.NODE_RSP, cookie);
  message.set(encodePathField(node ?? ""), 12);
  return message;
}

/** The path in the answer to `node`; null without a block device. Throws `SystemError` (EINVAL). */
export function decodeNode(message: Uint8Array): string | null {
  return textAt(message, 12) || null;
}

/** How a request ended. */
export interface Response {
  /** 0, or a positive error number. */
  readonly error: number;
  /** What happened, for people; the original leaves it empty. */
  readonly message: string;
}

/**
 * The answer to a request that failed. A text that is too long loses its middle: it starts with
 * the file and ends with the reason.
 */
export function encodeError(cookie: number, response: Response): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.ERROR, cookie);
  view.setInt32(8, response.error, true);
  message.set(shortened(encodeName(response.message), MESSAGE_STRING_BYTES - 1), 12);
  return message;
}

/** A UTF-8 text, without its middle when it is longer than `room` bytes. */
function shortened(text: Uint8Array, room: number): Uint8Array {
  if (text.length <= room) return text;
  const gap = encodeName("…");
  const half = (room - gap.length) >> 1;
  const [head, tail] = [text.subarray(0, half), text.subarray(text.length - half)];
  // No character is cut in two: a continuation byte is dropped with the rest of its character.
  const isContinuation = (byte: number): boolean => (byte & 0xc0) === 0x80;
  let end = half;
  while (end > 0 && isContinuation(text[end])) end--;
  let start = 0;
  while (start < tail.length && isContinuation(tail[start])) start++;
  return Uint8Array.of(...head.subarray(0, end), ...gap, ...tail.subarray(start));
}

/** How a request ended: of an error, or of a response without other fields. */
export function decodeResponse(message: Uint8Array): Response {
  return { error: viewOf(message).getInt32(8, true), message: textAt(message, 12) };
}
