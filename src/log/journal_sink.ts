import { Errno, errnoName } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import { connectDatagrams, sendAt } from "../../ffi/sockets.ts";
import type { LogFields, LogLevel, LogSink } from "./log.ts";

/** Where journald takes entries with fields (systemd's JOURNAL_NATIVE_PROTOCOL). */
const JOURNAL_SOCKET = "/run/systemd/journal/socket";
/** syslog's facility of daemons. */
const FACILITY = 3;
const PRIORITIES: Record<LogLevel, number> = { error: 3, warning: 4, info: 6 };
/** A longer message is cut: a datagram has a limit, and a stack is no longer. */
const MOST_MESSAGE_CHARACTERS = 16_384;

/** One field: a line, or where the value has lines of its own, its length and its bytes. */
function fieldBytes(name: string, value: string): Uint8Array[] {
  const text = new TextEncoder();
  if (!value.includes("\n")) return [text.encode(`${name}=${value}\n`)];
  const bytes = text.encode(value);
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(bytes.length), true);
  return [text.encode(`${name}\n`), length, bytes, text.encode("\n")];
}

/** One entry in the journal's native format. Numbers and names of errors have fields of their own. */
export function journalEntry(
  level: LogLevel,
  message: string,
  { ident, fields }: { ident: string; fields: LogFields },
): Uint8Array<ArrayBuffer> {
  const { event, minor, image, file, errno, pid, command, durationMs } = fields;
  const own: Readonly<Record<string, string | number | undefined>> = {
    ERROR: errno === undefined ? undefined : errnoName(errno),
    EVENT: event,
    MINOR: minor,
    IMAGE: image,
    FILE: file,
    BY_PID: pid,
    BY_COMMAND: command,
    DURATION_MS: durationMs === undefined ? undefined : Math.round(durationMs),
  };
  const all: readonly (readonly [name: string, value: string | number | undefined])[] = [
    ["MESSAGE", message.slice(0, MOST_MESSAGE_CHARACTERS)],
    ["PRIORITY", PRIORITIES[level]],
    ["SYSLOG_FACILITY", FACILITY],
    ["SYSLOG_IDENTIFIER", ident],
    ["SYSLOG_PID", Deno.pid],
    ["ERRNO", errno],
    ...Object.entries(own).map(([name, value]) => [`BLKTAP_${name}`, value] as const),
  ];
  const parts = all.flatMap(([name, value]) =>
    value === undefined ? [] : fieldBytes(name, `${value}`)
  );
  const entry = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    entry.set(part, at);
    at += part.length;
  }
  return entry;
}

/** Entries with their fields to the journal of systemd, as datagrams that never block. */
export class JournalSink implements LogSink {
  readonly #path: string;
  readonly #ident: string;
  #fd = -1;

  /** Throws `SystemError` when no journal listens at `path`. */
  constructor(ident: string, path = JOURNAL_SOCKET) {
    this.#path = path;
    this.#ident = ident;
    this.#fd = connectDatagrams(path);
  }

  write(level: LogLevel, message: string, fields: LogFields = {}): void {
    const entry = journalEntry(level, message, { ident: this.#ident, fields });
    const result = this.#fd < 0 ? -Errno.ENOTCONN : this.#send(entry);
    // A journal that was restarted has a new socket with the old name.
    if (result === -Errno.ECONNREFUSED || result === -Errno.ENOTCONN) {
      this.reopen();
      if (this.#fd >= 0) this.#send(entry);
    }
  }

  #send(entry: Uint8Array<ArrayBuffer>): number {
    return sendAt(this.#fd, addressOf(entry), entry.length);
  }

  reopen(): void {
    this.close();
    try {
      this.#fd = connectDatagrams(this.#path);
    } catch {
      // No journal for now: entries are dropped, and the next one tries again.
    }
  }

  close(): void {
    if (this.#fd >= 0) closeFile(this.#fd);
    this.#fd = -1;
  }
}
