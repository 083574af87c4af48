import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  closeFile,
  fileStatus,
  O_APPEND,
  O_CREAT,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_WRONLY,
  openFile,
  writeAt,
} from "../../ffi/files.ts";
import { effectiveUser } from "../../ffi/process.ts";
import type { LogFields, LogLevel, LogSink } from "./log.ts";
import { jsonLine } from "./json_line.ts";

const LOG_MODE = 0o600;
const CLOSED = -1;

/**
 * Opens a file for appending, made with mode 0600. The folder may be one that others can write to. So
 * symbolic links are not followed, and a file of another user, or one that has a second name, is
 * refused: it could be another file than the log.
 *
 * @throws {SystemError} ELOOP for a symbolic link, EINVAL for what is no regular file, EPERM for a file
 * of others.
 */
function openLogFile(path: string): number {
  const fd = openFile(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK, LOG_MODE);
  const { kind, uid, links } = fileStatus(fd);
  const isOwn = uid === 0 || uid === effectiveUser();
  if (kind === "file" && isOwn && links === 1) return fd;
  closeFile(fd);
  if (kind !== "file") {
    throw new SystemError(Errno.EINVAL, `Cannot log to ${path}, which is no regular file`);
  }
  const why = isOwn ? `which has ${links} names` : `which user ${uid} owns`;
  throw new SystemError(Errno.EPERM, `Cannot log to ${path}, ${why}`);
}

/**
 * Entries as lines at the end of a file: time (UTC), program and process, level, message; or JSON with
 * what the entry is about. Several processes can share the file, since each line is appended by one write.
 */
export class FileSink implements LogSink {
  readonly #path: string;
  readonly #ident: string;
  readonly #asJson: boolean;
  #fd: number;

  /**
   * Opens the file for appending, created with mode 0600.
   *
   * @param ident The program's name.
   * @param asJson Whether a line is JSON.
   * @throws {SystemError} when that is impossible, also for a symbolic link.
   */
  constructor(path: string, ident: string, asJson = false) {
    this.#path = path;
    this.#ident = ident;
    this.#asJson = asJson;
    this.#fd = openLogFile(path);
  }

  write(level: LogLevel, message: string, fields: LogFields = {}): void {
    if (this.#fd === CLOSED) return;
    const entry = this.#asJson
      ? jsonLine(level, message, { ident: this.#ident, time: new Date(), fields })
      : `${new Date().toISOString()} ${this.#ident}[${Deno.pid}] ${level}: ${message}`;
    const line = `${entry}\n`;
    try {
      // To a file that is open for appending Linux writes at its end, whatever the offset.
      writeAt(this.#fd, new TextEncoder().encode(line), 0);
    } catch {
      // A full filesystem must not stop the disks that are served.
    }
  }

  reopen(): void {
    this.close();
    try {
      this.#fd = openLogFile(this.#path);
    } catch {
      // Without its folder the file sink is silent until the next reopen.
    }
  }

  close(): void {
    const fd = this.#fd;
    this.#fd = CLOSED;
    try {
      if (fd !== CLOSED) closeFile(fd);
    } catch {
      // A server without room tells so now. The process that closes its log is about to end, and must.
    }
  }
}
