import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { DiskFacts } from "../../vbd/disk_facts.ts";
import { MessageType, startMessage, viewOf } from "./message.ts";

/** A process that gave an order, with the name of its program and that of the one that started it. */
export interface ToldActor {
  readonly pid: number;
  readonly command: string;
  readonly parent: { readonly pid: number; readonly command: string } | null;
}

/** What a tapdisk knows of a disk just now. Times are milliseconds before now. */
export interface ToldFacts extends DiskFacts {
  readonly tapdisk: number;
  /** Who paused it, and when; null while it is not paused by an order. */
  readonly paused: { readonly sinceMs: number; readonly by: ToldActor | null } | null;
  /** Why it could not be opened again after a pause; null when nobody tried, or it is open. */
  readonly notResumed: { readonly sinceMs: number; readonly why: string } | null;
}

/** The most bytes of facts: a chain has 256 layers, and a disk 512 clients. */
const MOST_BYTES = 4 << 20;

/** The answer to `explain`: a head, and the facts as JSON. */
export function encodeExplained(cookie: number, facts: ToldFacts): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(facts));
  const [head, view] = startMessage(MessageType.EXPLAIN_RSP, cookie);
  view.setUint32(8, text.length, true);
  const message = new Uint8Array(head.length + text.length);
  message.set(head);
  message.set(text, head.length);
  return message;
}

/** Bytes of the text behind the head of the answer to `explain`. Throws `SystemError` (EPROTO). */
export function explainedLength(message: Uint8Array): number {
  const lengthBytes = viewOf(message).getUint32(8, true);
  if (lengthBytes > 0 && lengthBytes <= MOST_BYTES) return lengthBytes;
  throw new SystemError(Errno.EPROTO, `Cannot take facts of ${lengthBytes} bytes`);
}

/** The facts in the text behind the head. Throws `SystemError` (EPROTO). */
export function decodeFacts(text: Uint8Array): ToldFacts {
  let facts: ToldFacts | null = null;
  try {
    facts = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text));
  } catch {
    // What is no JSON has no facts.
  }
  // The tapdisk of another version may know less, or more.
  const isWhole = typeof facts === "object" && facts !== null && Array.isArray(facts.images) &&
    Array.isArray(facts.clients) && typeof facts.requests === "object";
  if (isWhole && facts !== null) return facts;
  throw new SystemError(Errno.EPROTO, "Cannot take the facts of a disk (they make no sense)");
}
