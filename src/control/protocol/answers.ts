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

/** What `node` asks for; null for what the device has not. */
export interface NodeAnswer {
  /** The path of the block device. */
  readonly node: string | null;
  /** The file of the log of changed blocks. */
  readonly changedBlocks: string | null;
}

const NODE_AT = 12;
const CHANGED_BLOCKS_AT = NODE_AT + MESSAGE_STRING_BYTES;

/** The answer to `node`. */
export function encodeNode(
  cookie: number,
  { node, changedBlocks }: NodeAnswer,
): Uint8Array<ArrayBuffer> {
  const [message] = startMessage(MessageType.NODE_RSP, cookie);
  message.set(encodePathField(node ?? ""), NODE_AT);
  message.set(encodePathField(changedBlocks ?? ""), CHANGED_BLOCKS_AT);
  return message;
}

/** What is in the answer to `node`. Throws `SystemError` (EINVAL). */
export function decodeNode(message: Uint8Array): NodeAnswer {
  return {
    node: textAt(message, NODE_AT) || null,
    changedBlocks: textAt(message, CHANGED_BLOCKS_AT) || null,
  };
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
