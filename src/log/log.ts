/**
 * `src/log`: the log of a long-running program for its administrator, and the sinks that entries go
 * to. It must not print to the terminal, and must not stop or delay a disk: a sink that cannot take an
 * entry drops it.
 *
 * @module
 */
import type { LogFields, LogLevel } from "./log_fields.ts";
import { RateLimit } from "./rate_limit.ts";
import { plainText } from "./plain_text.ts";

export type { LogEvent, LogFields, LogLevel } from "./log_fields.ts";

/** A log, as the code that writes to it sees it. */
export interface Log {
  /** An ordinary event, such as a disk that was opened. */
  info(message: string, fields?: LogFields): void;
  /** A problem that does not stop the work. */
  warn(message: string, fields?: LogFields): void;
  /** Something that was requested failed. */
  error(message: string, fields?: LogFields): void;
}

/** A destination of entries. A sink that cannot take an entry drops it. */
export interface LogSink {
  /** Takes one entry, a single line. */
  write(level: LogLevel, message: string, fields?: LogFields): void;
  /** Opens its file or socket again, after the old one was moved. */
  reopen(): void;
  /** Closes its file or socket. */
  close(): void;
}

/**
 * A log that writes every entry to all of its sinks. The number of similar warnings and errors is
 * limited, and so is that of changes of a disk's state: a disk, a client or a server with a problem must
 * not fill the log.
 */
export class Logger implements Log {
  readonly #sinks: LogSink[];
  readonly #limit: RateLimit;

  /** @param limit Limits the number of warnings and errors. */
  constructor(sinks: readonly LogSink[], limit = new RateLimit()) {
    this.#sinks = [...sinks];
    this.#limit = limit;
  }

  /** Adds a sink, for the entries from now on. */
  addSink(sink: LogSink): void {
    this.#sinks.push(sink);
  }

  info(message: string, fields?: LogFields): void {
    this.#write("info", message, fields);
  }

  warn(message: string, fields?: LogFields): void {
    this.#write("warning", message, fields);
  }

  error(message: string, fields?: LogFields): void {
    this.#write("error", message, fields);
  }

  /** Tells every sink to reopen its file or socket. */
  reopen(): void {
    for (const sink of this.#sinks) sink.reopen();
  }

  /** Closes every sink. */
  close(): void {
    for (const sink of this.#sinks) sink.close();
  }

  #write(level: LogLevel, message: string, fields: LogFields = {}): void {
    const isLimited = level !== "info" || fields.event !== undefined;
    const admitted = isLimited ? this.#limit.admit(message, level, fields) : message;
    if (admitted === null) return;
    const line = plainText(admitted.replaceAll(/[\r\n]+/g, " "));
    for (const sink of this.#sinks) sink.write(level, line, fields);
  }
}
