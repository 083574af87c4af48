import { Errno, SystemError } from "../../../ffi/errno.ts";
import { MESSAGE_BYTES, MessageType, startMessage, viewOf } from "./message.ts";

/** The most bytes of text behind an `upgrade`. */
export const MOST_UPGRADE_BYTES = 8192;

/** How a tapdisk is started. */
export interface ProgramCall {
  readonly program: string;
  /** The arguments before tapdisk's own. */
  readonly args: readonly string[];
}

/** What became of an upgrade. */
export interface UpgradeReply {
  /** The process that serves now. */
  readonly pid: number;
  /** How long users waited. */
  readonly stallMs: number;
}

/** An `upgrade` with its text. Throws `SystemError` (ENAMETOOLONG). */
export function encodeUpgrade(call: ProgramCall): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(call));
  if (text.length > MOST_UPGRADE_BYTES) {
    const most = `the control protocol carries at most ${MOST_UPGRADE_BYTES} bytes`;
    throw new SystemError(Errno.ENAMETOOLONG, `Cannot start ${call.program} (${most})`);
  }
  const [head, view] = startMessage(MessageType.UPGRADE, 0);
  view.setUint32(8, text.length, true);
  const message = new Uint8Array(MESSAGE_BYTES + text.length);
  message.set(head);
  message.set(text, MESSAGE_BYTES);
  return message;
}

/** The bytes of text behind an `upgrade`. One that says more than there can be has none. */
export function upgradeTextBytes(message: Uint8Array): number {
  const lengthBytes = viewOf(message).getUint32(8, true);
  return lengthBytes > MOST_UPGRADE_BYTES ? 0 : lengthBytes;
}

/** The program in an `upgrade`. Throws `SystemError` (EINVAL). */
export function decodeUpgrade(message: Uint8Array): ProgramCall {
  try {
    const value: unknown = JSON.parse(
      new TextDecoder("utf-8", { fatal: true }).decode(message.subarray(MESSAGE_BYTES)),
    );
    if (typeof value === "object" && value !== null) {
      const { program, args }: { program?: unknown; args?: unknown } = value;
      const areTexts = Array.isArray(args) && args.every((arg) => typeof arg === "string");
      if (typeof program === "string" && program.startsWith("/") && areTexts) {
        return { program, args };
      }
    }
  } catch {
    // It is refused below.
  }
  throw new SystemError(Errno.EINVAL, "Cannot upgrade (the message makes no sense)");
}

/** The answer to `upgrade`. */
export function encodeUpgradeReply(
  cookie: number,
  { pid, stallMs }: UpgradeReply,
): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.UPGRADE_RSP, cookie);
  view.setInt32(8, pid, true);
  view.setUint32(12, Math.round(stallMs * 1000), true);
  return message;
}

/** What is in the answer to `upgrade`. */
export function decodeUpgradeReply(message: Uint8Array): UpgradeReply {
  const view = viewOf(message);
  return { pid: view.getInt32(8, true), stallMs: view.getUint32(12, true) / 1000 };
}

/** A `take over`. */
export function encodeTakeOver(format: number): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.TAKE_OVER, 0);
  view.setUint32(8, format, true);
  return message;
}

/** The format in a `take over`. */
export function decodeTakeOver(message: Uint8Array): number {
  return viewOf(message).getUint32(8, true);
}
