/** Where a command's output goes: the process's own streams, or a test that looks at it. */
export interface Output {
  /** Text for standard output. */
  print(text: string): void;
  /** Data for standard output. */
  printBytes(bytes: Uint8Array): void;
  /** A line for standard error; the line's end is added. */
  printError(line: string): void;
}

const BUFFER_SIZE = 65536;

/** Standard output, gathered into few writes, and standard error. */
export class StandardOutput implements Output {
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  readonly #encoder = new TextEncoder();

  print(text: string): void {
    this.#add(this.#encoder.encode(text));
  }

  printBytes(bytes: Uint8Array): void {
    this.#add(bytes.slice());
  }

  printError(line: string): void {
    this.flush();
    writeFully(Deno.stderr, this.#encoder.encode(`${line}\n`));
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

  #add(bytes: Uint8Array): void {
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.length;
    if (this.#pendingBytes >= BUFFER_SIZE) this.flush();
  }
}

function writeFully(stream: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += stream.writeSync(bytes.subarray(done));
}
