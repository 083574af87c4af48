import { Errno, SystemError, systemError } from "../../../ffi/errno.ts";

const BUFFER_BYTES = 1 << 16;

function writeAll(file: Deno.FsFile, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
}

/** A file that is there whole, or not at all. */
export class WholeFile {
  readonly #path: string;
  readonly #temporary: string;
  readonly #file: Deno.FsFile;
  readonly #encoder = new TextEncoder();
  #pending: string[] = [];
  #pendingLength = 0;
  /** Whether it has its name, or is gone. */
  #isOver = false;

  /** Throws `SystemError`, also for a path of something that is no regular file. */
  constructor(path: string) {
    this.#path = path;
    this.#temporary = `${path}.${crypto.randomUUID().slice(0, 8)}.tmp`;
    try {
      requireReplaceable(path);
      this.#file = Deno.openSync(this.#temporary, { write: true, createNew: true });
    } catch (error) {
      throw systemError(error, `Cannot write ${path}`);
    }
  }

  /** Adds text. Throws `SystemError`. */
  write(text: string): void {
    this.#pending.push(text);
    this.#pendingLength += text.length;
    if (this.#pendingLength >= BUFFER_BYTES) this.#flush();
  }

  #flush(): void {
    try {
      writeAll(this.#file, this.#encoder.encode(this.#pending.join("")));
    } catch (error) {
      throw systemError(error, `Cannot write ${this.#path}`);
    }
    this.#pending = [];
    this.#pendingLength = 0;
  }

  /** All was written: the file appears under its name. Throws `SystemError`. */
  finish(): void {
    this.#flush();
    this.#isOver = true;
    this.#file.close();
    try {
      Deno.renameSync(this.#temporary, this.#path);
    } catch (error) {
      Deno.removeSync(this.#temporary);
      throw systemError(error, `Cannot write ${this.#path}`);
    }
  }

  /** Leaves nothing behind; nothing is left of a file that did not get its name. */
  abandon(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#file.close();
    Deno.removeSync(this.#temporary);
  }
}

/** A file is replaced; a device, a folder or a link is not. */
function requireReplaceable(path: string): void {
  let isFile: boolean;
  try {
    ({ isFile } = Deno.lstatSync(path));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  if (isFile) return;
  throw new SystemError(Errno.EINVAL, `Cannot replace ${path} (it is no regular file)`);
}

/** Bytes that are kept in a file without a name until they are read again. */
export class Spool {
  readonly #file: Deno.FsFile;

  /** @param folder Where there is room for them. Throws `SystemError`. */
  constructor(folder: string) {
    try {
      const path = Deno.makeTempFileSync({ dir: folder, prefix: "tap-ctl-trace-" });
      try {
        this.#file = Deno.openSync(path, { read: true, write: true });
      } finally {
        Deno.removeSync(path);
      }
    } catch (error) {
      throw systemError(error, `Cannot keep records in ${folder}`);
    }
  }

  /** Adds bytes. Throws `SystemError`. */
  add(bytes: Uint8Array): void {
    try {
      writeAll(this.#file, bytes);
    } catch (error) {
      throw systemError(error, "Cannot keep the records of a trace");
    }
  }

  /**
   * Hands all out, in pieces of whole records, which are valid until the next one.
   *
   * @param pieceBytes The length of all pieces but the last.
   */
  *pieces(pieceBytes: number): Generator<Uint8Array<ArrayBuffer>> {
    this.#file.seekSync(0, Deno.SeekMode.Start);
    const piece = new Uint8Array(pieceBytes);
    for (let length = 0;;) {
      const got = this.#file.readSync(piece.subarray(length));
      if (got !== null) length += got;
      if (got !== null && length < pieceBytes) continue;
      if (length > 0) yield piece.subarray(0, length);
      if (got === null) return;
      length = 0;
    }
  }

  /** Drops them. */
  close(): void {
    this.#file.close();
  }
}
