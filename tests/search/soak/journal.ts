/**
 * What happened during a soak: a file with all of it, and the last events of each disk.
 *
 * @module
 */

/** So many events of a disk are repeated in a finding. */
const KEPT = 30;

export class Journal {
  readonly #startMs = performance.now();
  readonly #file: Deno.FsFile;
  #isOpen = true;
  readonly #recent = new Map<string, string[]>();
  readonly #counts = new Map<string, number>();

  constructor(readonly path: string) {
    this.#file = Deno.openSync(path, { write: true, create: true, append: true });
  }

  /** Writes a line about a disk, a process or a server. */
  note(subject: string, text: string): void {
    const seconds = ((performance.now() - this.#startMs) / 1000).toFixed(3).padStart(8);
    const line = `${seconds} ${subject}: ${text}`;
    if (this.#isOpen) this.#file.writeSync(new TextEncoder().encode(`${line}\n`));
    const recent = this.#recent.get(subject) ?? [];
    recent.push(line);
    if (recent.length > KEPT) recent.shift();
    this.#recent.set(subject, recent);
  }

  /** Counts something that the report lists. */
  count(what: string, increment = 1): void {
    this.#counts.set(what, (this.#counts.get(what) ?? 0) + increment);
  }

  /** The last events of a subject. */
  recent(subject: string): readonly string[] {
    return this.#recent.get(subject) ?? [];
  }

  /** The number of times that something happened. */
  countOf(what: string): number {
    return this.#counts.get(what) ?? 0;
  }

  get counts(): Record<string, number> {
    return Object.fromEntries([...this.#counts].sort(([a], [b]) => a < b ? -1 : 1));
  }

  /** Later events, of clients that still end, are not written any more. */
  close(): void {
    this.#isOpen = false;
    this.#file.close();
  }
}
