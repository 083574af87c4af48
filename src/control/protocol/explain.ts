import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { DiskFacts } from "../../vbd/disk_facts.ts";
import {
  allOf,
  fieldsOf,
  isFlag,
  isNumber,
  isText,
  listOf,
  optional,
  orNull,
  type Shape,
} from "./shape.ts";
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

/** More layers, and clients, than a disk can have. */
const MOST_ENTRIES = 4096;

const STAGE = fieldsOf({ requests: isNumber, longestMs: isNumber });
const ENDED = fieldsOf({ requests: isNumber, mean: isNumber, highest: isNumber });

const CONDITIONS: Readonly<Record<string, Shape>> = {
  server: fieldsOf({
    image: isText,
    lostMs: orNull(isNumber),
    why: isText,
    nextTryMs: orNull(isNumber),
    asked: isNumber,
    oldestMs: isNumber,
    meanMs: isNumber,
  }),
  share: fieldsOf({ bridge: isText, isConnected: isFlag, waiting: isNumber }),
};

/** A tapdisk of another version may know others. */
function isCondition(value: unknown, at: string): string | null {
  const kind = typeof value === "object" && value !== null && "kind" in value ? value.kind : null;
  if (typeof kind !== "string") return at;
  return Object.hasOwn(CONDITIONS, kind) ? CONDITIONS[kind](value, at) : null;
}

/** What facts have at least: a tapdisk of another version may know more. */
const FACTS = fieldsOf({
  tapdisk: isNumber,
  minor: isNumber,
  name: isText,
  phase: isText,
  bytes: isNumber,
  paused: orNull(fieldsOf({
    sinceMs: isNumber,
    by: orNull(fieldsOf({
      pid: isNumber,
      command: isText,
      parent: orNull(fieldsOf({ pid: isNumber, command: isText })),
    })),
  })),
  notResumed: orNull(fieldsOf({ sinceMs: isNumber, why: isText })),
  requests: fieldsOf({ room: STAGE, pause: STAGE, retry: STAGE, disk: STAGE, limit: STAGE }),
  slots: fieldsOf({ free: isNumber, all: isNumber }),
  trouble: orNull(fieldsOf({
    sinceMs: isNumber,
    requests: isNumber,
    tries: isNumber,
    errno: isNumber,
    error: isText,
    file: orNull(isText),
  })),
  reopening: orNull(isText),
  images: listOf(
    fieldsOf({
      name: isText,
      file: orNull(isText),
      pending: isNumber,
      meanMs: orNull(isNumber),
      endedMs: orNull(isNumber),
      quietMs: optional(orNull(isNumber)),
      condition: orNull(isCondition),
    }),
    MOST_ENTRIES,
  ),
  secondary: orNull(fieldsOf({ name: isText, state: isText, redirected: isNumber })),
  limits: orNull(allOf(isNumber)),
  clients: listOf(
    fieldsOf({ client: isText, held: isNumber, waits: isFlag, stuckMs: orNull(isNumber) }),
    MOST_ENTRIES,
  ),
  ended: fieldsOf({ read: ENDED, write: ENDED, flush: ENDED }),
});

function areFacts(value: unknown): value is ToldFacts {
  return FACTS(value, "") === null;
}

/** The facts in the text behind the head. Throws `SystemError` (EPROTO). */
export function decodeFacts(text: Uint8Array): ToldFacts {
  let facts: unknown;
  try {
    facts = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text));
  } catch {
    // What is no JSON has no facts.
  }
  if (areFacts(facts)) return facts;
  const wrong = FACTS(facts, "") || "they are no fields";
  throw new SystemError(
    Errno.EPROTO,
    `Cannot take the facts of a disk (they make no sense: ${wrong})`,
  );
}
