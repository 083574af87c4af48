import type { LogLevel, LogSink } from "./log.ts";

/**
 * Entries as lines at the end of a file: time (UTC), program and process, level, message. Several
 * processes can share the file, since each line is appended by one write.
 */
export class FileSink implements LogSink {
  readonly #path: string;
  readonly #tag: string;
  #file: Deno.FsFile | undefined;

  /**
   * Opens the file for appending, created with mode 0600. Throws a `Deno.errors` error when that
   * is impossible.
   *
   * @param ident The program's name.
   */
  constructor(path: string, ident: string) {
    this.#path = path;
    this.#tag = `${ident}[${Deno.pid}]`;
    this.#file = this.#open();
  }

  #open(): Deno.FsFile {
    return Deno.openSync(this.#path, { create: true, append: true, mode: 0o600 });
  }

  write(level: LogLevel, message: string): void {
    const line = `${new Date().toISOString()} ${this.#tag} ${level}: ${message}\n`;
    try {
      this.#file?.writeSync(new TextEncoder().encode(line));
    } catch {
      // A full disk must not take the disks that are served down with it.
    }
  }

  reopen(): void {
    this.close();
    try {
      this.#file = this.#open();
    } catch {
      // Without its folder the file sink is silent until the next reopen.
    }
  }

  close(): void {
    this.#file?.close();
    this.#file = undefined;
  }
}
