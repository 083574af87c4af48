import { MessageType, startMessage, viewOf } from "./message.ts";

/** The head of the answer to `stats`; the text follows it. */
export function encodeStatisticsHead(cookie: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.STATS_RSP, cookie);
  view.setBigUint64(16, BigInt(lengthBytes), true);
  return message;
}

/** The head of the answer to `requests`; the text follows it. */
export function encodeRequestsHead(cookie: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.REQUESTS_RSP, cookie);
  view.setBigUint64(16, BigInt(lengthBytes), true);
  return message;
}

/** The length in bytes of the text behind the head of the answer to `stats` or `requests`. */
export function decodeStatisticsLength(message: Uint8Array): number {
  return Number(viewOf(message).getBigUint64(16, true));
}

/**
 * Statistics as JSON on one line, with the spaces of the original: `{ "secs": [ 0, 8 ] }`. Programs
 * that parse it by line or by pattern depend on them.
 */
export function formatStatistics(value: unknown): string {
  if (Array.isArray(value)) return `[ ${value.map(formatStatistics).join(", ")} ]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const fields = Object.entries(value)
    .map(([key, field]) => `${JSON.stringify(key)}: ${formatStatistics(field)}`);
  return `{ ${fields.join(", ")} }`;
}
