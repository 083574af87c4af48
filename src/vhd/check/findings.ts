/** One thing that is wrong with an image, or worth knowing. */
export interface Finding {
  /** Warnings leave the image valid. */
  readonly severity: "error" | "warning";
  /** What is wrong, in one line. */
  readonly message: string;
  /** The structure and field, such as `footer.checksum`. */
  readonly field: string;
  /** Where the field is in the file. */
  readonly offsetBytes: number;
}

/** Most findings of one kind that are worth listing. */
const LIMIT = 100;

/**
 * Gathers findings; of many of one kind only the first hundred, and how many more there are. A
 * damaged image may have millions: code that looks through a table calls `hasRoom` first and counts
 * what is not listed, so that time and memory stay bounded.
 */
export class Findings {
  readonly #found: Finding[] = [];
  readonly #counts = new Map<string, number>();
  #hasErrors = false;

  /** Adds an error. */
  error(message: string, field: string, offsetBytes: number): void {
    this.#hasErrors = true;
    this.#add({ severity: "error", message, field, offsetBytes });
  }

  /** Adds a warning. */
  warning(message: string, field: string, offsetBytes: number): void {
    this.#add({ severity: "warning", message, field, offsetBytes });
  }

  /** Whether one more finding of a kind, such as `bat` for the field `bat[7]`, would be listed. */
  hasRoom(kind: string): boolean {
    return (this.#counts.get(kind) ?? 0) < LIMIT;
  }

  /** Counts errors of a kind for which there is no room. */
  countErrors(kind: string, count: number): void {
    if (count === 0) return;
    this.#hasErrors = true;
    this.#counts.set(kind, (this.#counts.get(kind) ?? 0) + count);
  }

  /** Whether there is an error among them. */
  get hasErrors(): boolean {
    return this.#hasErrors;
  }

  /** All of them, in the order in which they were found. */
  list(): Finding[] {
    const list = [...this.#found];
    for (const [kind, count] of this.#counts) {
      if (count <= LIMIT) continue;
      const message = `${count - LIMIT} more faults like those in ${kind}`;
      list.push({ severity: "error", message, field: kind, offsetBytes: 0 });
    }
    return list;
  }

  #add(finding: Finding): void {
    const kind = finding.field.replace(/\[.*/, "");
    const count = (this.#counts.get(kind) ?? 0) + 1;
    this.#counts.set(kind, count);
    if (count <= LIMIT) this.#found.push(finding);
  }
}
