import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import { connectDatagrams } from "../../ffi/sockets.ts";
import { sendAt } from "../../ffi/sockets.ts";
import type { LogLevel, LogSink } from "./log.ts";

/** Where the local syslog daemon listens. */
const SYSLOG_SOCKET = "/dev/log";

const LOG_DAEMON = 3 << 3;
const SEVERITIES: Record<LogLevel, number> = { error: 3, warning: 4, info: 6 };
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun"]
  .concat(["Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]);

/** One entry in the format of the local syslog socket (RFC 3164, without a host name). */
export function syslogEntry(
  level: LogLevel,
  message: string,
  { tag, time }: { tag: string; time: Date },
): string {
  const two = (n: number) => String(n).padStart(2, "0");
  const day = String(time.getDate()).padStart(2, " ");
  const clock = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  const priority = LOG_DAEMON | SEVERITIES[level];
  return `<${priority}>${MONTHS[time.getMonth()]} ${day} ${clock} ${tag}: ${message}`;
}

/**
 * Entries to the syslog daemon, as datagrams that never block. libc's syslog(3) blocks when the daemon
 * is slow, which would stop the disks that a tapdisk serves.
 */
export class SyslogSink implements LogSink {
  readonly #path: string;
  readonly #tag: string;
  #fd = -1;

  /** Throws `SystemError` when no syslog daemon listens at `path`. */
  constructor(ident: string, path = SYSLOG_SOCKET) {
    this.#path = path;
    this.#tag = `${ident}[${Deno.pid}]`;
    this.#fd = connectDatagrams(path);
  }

  write(level: LogLevel, message: string): void {
    const entry = syslogEntry(level, message, { tag: this.#tag, time: new Date() });
    const bytes = new TextEncoder().encode(entry);
    const result = this.#fd < 0 ? -Errno.ENOTCONN : this.#send(bytes);
    // A daemon that was restarted has a new socket with the old name.
    if (result === -Errno.ECONNREFUSED || result === -Errno.ENOTCONN) {
      this.reopen();
      if (this.#fd >= 0) this.#send(bytes);
    }
  }

  #send(bytes: Uint8Array<ArrayBuffer>): number {
    return sendAt(this.#fd, addressOf(bytes), bytes.length);
  }

  reopen(): void {
    this.close();
    try {
      this.#fd = connectDatagrams(this.#path);
    } catch {
      // No daemon for now: entries are dropped, and the next one tries again.
    }
  }

  close(): void {
    if (this.#fd >= 0) closeFile(this.#fd);
    this.#fd = -1;
  }
}
