import { plainLines, plainText } from "../../log/plain_text.ts";

/** Where a command's output goes: the process's own streams, or a test that looks at it. */
export interface Output {
  /** A line for standard output, made plain; the line's end is added. */
  printLine(line: string): void;
  /** Lines for standard output whose ends are our own; the rest of them is made plain. */
  print(text: string): void;
  /** Text for standard output as it is: colours, and what goes back to the line's start. */
  printRaw(text: string): void;
  /** Data for standard output. */
  printBytes(bytes: Uint8Array): void;
  /** A line for standard error, made plain; the line's end is added. */
  printError(line: string): void;
}

const BUFFER_SIZE = 65536;

/** Makes text plain, and leaves it to others where it goes. */
export abstract class PlainOutput implements Output {
  readonly #encoder = new TextEncoder();

  /** Takes what goes to standard output. */
  protected abstract add(bytes: Uint8Array<ArrayBuffer>): void;
  /** Takes a line that goes to standard error, with its end. */
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

  printError(line: string): void {
    this.addError(this.#encoder.encode(`${plainText(line)}\n`));
  }
}

/** Standard output, gathered into few writes, and standard error. */
export class StandardOutput extends PlainOutput {
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;

  protected add(bytes: Uint8Array<ArrayBuffer>): void {
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.length;
    if (this.#pendingBytes >= BUFFER_SIZE) this.flush();
  }

  protected addError(bytes: Uint8Array<ArrayBuffer>): void {
    this.flush();
    writeFully(Deno.stderr, bytes);
  }

  /** Writes what was gathered. Call it before the process ends. */
  flush(): void {
    const pending = this.#pending;
    this.#pending = [];
    this.#pendingBytes = 0;
    if (pending.length === 1) return writeFully(Deno.stdout, pending[0]);
    const all = new Uint8Array(pending.reduce((sum, bytes) => sum + bytes.length, 0));
    let at = 0;
    for (const bytes of pending) {
      all.set(bytes, at);
      at += bytes.length;
    }
    writeFully(Deno.stdout, all);
  }
}

function writeFully(stream: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += stream.writeSync(bytes.subarray(done));
}
