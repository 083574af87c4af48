/**
 * What a long-running program has to tell its administrator. Nothing here decides what is worth
 * telling, and nothing here prints to the terminal: where entries go is up to the sinks.
 *
 * @module
 */
import { RateLimit } from "./rate_limit.ts";
import { plainText } from "./plain_text.ts";

/** How much an entry matters. */
export type LogLevel = "info" | "warning" | "error";

/** What the engine writes its log through. */
export interface Log {
  /** An event of ordinary life: a disk was opened, a client came. */
  info(message: string): void;
  /** Something is worse than it should be, and the work goes on. */
  warn(message: string): void;
  /** Something that was asked for failed. */
  error(message: string): void;
}

/** A place that entries go to. A sink that cannot take one drops it: logging never stops a disk. */
export interface LogSink {
  /** Takes one entry, a single line. */
  write(level: LogLevel, message: string): void;
  /** Opens its file or socket anew, after the old one was moved away. */
  reopen(): void;
  /** Lets go of its file or socket. */
  close(): void;
}

/**
 * A log that hands every entry to all of its sinks. Warnings and errors that come again and again
 * are limited in number: a disk, a client or a server that misbehaves must not fill the log.
 */
export class Logger implements Log {
  readonly #sinks: LogSink[];
  readonly #limit: RateLimit;

  /** @param limit What keeps warnings and errors from filling it. */
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
