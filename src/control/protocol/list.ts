import { encodePathField, MessageType, startMessage, textAt, viewOf } from "./message.ts";

/** One device of a tapdisk in the answer to `list`. */
export interface ListEntry {
  /** How many entries are still to come, this one included; 0 ends the list. */
  readonly count: number;
  readonly minor: number;
  /** A union of TD_VBD_* bits. */
  readonly state: number;
  /** `type:/path`; empty without an image. */
  readonly path: string;
}

/** One entry of the answer to `list`. */
export function encodeListEntry(cookie: number, entry: ListEntry): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.LIST_RSP, cookie);
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
    path: textAt(message, 20),
  };
}
