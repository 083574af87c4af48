import { systemError } from "../../../ffi/errno.ts";
import { skipAhead } from "../../../ffi/files.ts";
import { plainLines, plainText } from "../../log/plain_text.ts";

/** Where a command's output goes: the streams of the process, or a test. */
export interface Output {
  /** Prints a line to standard output. Escapes control characters and adds the line's end. */
  printLine(line: string): void;
  /** Prints lines to standard output. Escapes all control characters but the ends of lines. */
  print(text: string): void;
  /** Prints text unchanged to standard output: colours, carriage returns. */
  printRaw(text: string): void;
  /** Writes data to standard output. */
  printBytes(bytes: Uint8Array): void;
  /** Writes zeros to standard output: a hole, where that is a file. */
  printZeros(lengthBytes: number): void;
  /** Prints a line to standard error. Escapes control characters and adds the line's end. */
  printError(line: string): void;
}

const BUFFER_SIZE = 65536;
const STDOUT = 1;

/** Escapes control characters. Subclasses write the bytes. */
export abstract class PlainOutput implements Output {
  readonly #encoder = new TextEncoder();

  /** Takes bytes for standard output. */
  protected abstract add(bytes: Uint8Array<ArrayBuffer>): void;
  /** Takes a line for standard error, with its end. */
  protected abstract addError(bytes: Uint8Array<ArrayBuffer>): void;

  printLine(line: string): void {
    this.printRaw(`${plainText(line)}\n`);
  }

  print(text: string): void {
    this.printRaw(plainLines(text));
  }

  printRaw(text: string): void {
    this.add(this.#encoder.encode(text));
  }

  printBytes(bytes: Uint8Array): void {
    this.add(new Uint8Array(bytes));
  }

  printZeros(lengthBytes: number): void {
    for (let done = 0; done < lengthBytes; done += BUFFER_SIZE) {
      this.add(new Uint8Array(Math.min(BUFFER_SIZE, lengthBytes - done)));
    }
  }

  printError(line: string): void {
    this.addError(this.#encoder.encode(`${plainText(line)}\n`));
  }
}

/** Standard output, buffered, and standard error. */
export class StandardOutput extends PlainOutput {
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;

  protected add(bytes: Uint8Array<ArrayBuffer>): void {
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.length;
    if (this.#pendingBytes >= BUFFER_SIZE) this.flush();
  }

  override printZeros(lengthBytes: number): void {
    if (lengthBytes < BUFFER_SIZE) return super.printZeros(lengthBytes);
    this.flush();
    // The last byte gives the file its length.
    const isSkipped = skipAhead(STDOUT, lengthBytes - 1);
    super.printZeros(isSkipped ? 1 : lengthBytes);
  }

  protected addError(bytes: Uint8Array<ArrayBuffer>): void {
    this.flush();
    writeFully(Deno.stderr, bytes);
  }

  /** Writes the buffer. Must be called before the process ends. */
  flush(): void {
    const pending = this.#pending;
    this.#pending = [];
    this.#pendingBytes = 0;
    if (pending.length === 1) return writeOut(pending[0]);
    const all = new Uint8Array(pending.reduce((sum, bytes) => sum + bytes.length, 0));
    let at = 0;
    for (const bytes of pending) {
      all.set(bytes, at);
      at += bytes.length;
    }
    writeOut(all);
  }
}

/** Throws `SystemError`, or `BrokenPipe` where the reader of what is printed has gone. */
function writeOut(bytes: Uint8Array): void {
  try {
    writeFully(Deno.stdout, bytes);
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) throw error;
    throw systemError(error, "Cannot write to standard output");
  }
}

function writeFully(stream: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += stream.writeSync(bytes.subarray(done));
}
