/**
 * `src/log`: the log of a long-running program for its administrator, and the sinks that entries go
 * to. It must not print to the terminal, and must not stop or delay a disk: a sink that cannot take an
 * entry drops it.
 *
 * @module
 */
import { RateLimit } from "./rate_limit.ts";
import { plainText } from "./plain_text.ts";

/** How much an entry matters. */
export type LogLevel = "info" | "warning" | "error";

/** A log, as the code that writes to it sees it. */
export interface Log {
  /** An ordinary event, such as a disk that was opened. */
  info(message: string): void;
  /** A problem that does not stop the work. */
  warn(message: string): void;
  /** Something that was requested failed. */
  error(message: string): void;
}

/** A destination of entries. A sink that cannot take an entry drops it. */
export interface LogSink {
  /** Takes one entry, a single line. */
  write(level: LogLevel, message: string): void;
  /** Opens its file or socket again, after the old one was moved. */
  reopen(): void;
  /** Closes its file or socket. */
  close(): void;
}

/**
 * A log that writes every entry to all of its sinks. The number of similar warnings and errors is
 * limited: a disk, a client or a server with a problem must not fill the log.
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

  info(message: string): void {
    this.#write("info", message);
  }

  warn(message: string): void {
    this.#write("warning", message);
  }

  error(message: string): void {
    this.#write("error", message);
  }

  /** Tells every sink to reopen its file or socket. */
  reopen(): void {
    for (const sink of this.#sinks) sink.reopen();
  }

  /** Closes every sink. */
  close(): void {
    for (const sink of this.#sinks) sink.close();
  }

  #write(level: LogLevel, message: string): void {
    const admitted = level === "info" ? message : this.#limit.admit(message);
    if (admitted === null) return;
    const line = plainText(admitted.replaceAll(/[\r\n]+/g, " "));
    for (const sink of this.#sinks) sink.write(level, line);
  }
}
