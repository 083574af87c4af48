import { MessageType, startMessage, viewOf } from "./message.ts";

/** A request for the log of writes; with `clear`, the tapdisk then starts a new log. */
export function encodeWriteLogRequest(cookie: number, clear: boolean): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.WRITE_LOG, cookie);
  view.setUint32(8, clear ? 1 : 0, true);
  return message;
}

/** Whether a request for the log of writes starts a new log. */
export function decodeWriteLogRequest(message: Uint8Array): boolean {
  return (viewOf(message).getUint32(8, true) & 1) !== 0;
}

/** The size of the device, and the length of the pages that follow. */
export interface WriteLogHead {
  readonly sectors: number;
  readonly lengthBytes: number;
}

/** The head of the answer; the pages of the log follow it. */
export function encodeWriteLogHead(
  cookie: number,
  { sectors, lengthBytes }: WriteLogHead,
): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.WRITE_LOG_RSP, cookie);
  view.setBigUint64(8, BigInt(sectors), true);
  view.setBigUint64(16, BigInt(lengthBytes), true);
  return message;
}

/** The fields in the head of the answer. */
export function decodeWriteLogHead(message: Uint8Array): WriteLogHead {
  const view = viewOf(message);
  return {
    sectors: Number(view.getBigUint64(8, true)),
    lengthBytes: Number(view.getBigUint64(16, true)),
  };
}
