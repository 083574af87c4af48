import { MessageType, startMessage, viewOf } from "./message.ts";

/** A `pause` with a time limit in milliseconds; Infinity for none. */
export function encodePause(cookie: number, timeoutMs: number): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.PAUSE, cookie);
  const limit = timeoutMs === Infinity ? 0 : Math.min(Math.max(1, timeoutMs), 0xffff_ffff);
  view.setUint32(8, limit, true);
  return message;
}

/** The time limit of a `pause`, milliseconds; Infinity for none. */
export function decodePauseTimeoutMs(message: Uint8Array): number {
  return viewOf(message).getUint32(8, true) || Infinity;
}
