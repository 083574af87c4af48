/** A fault of an image, or a warning. */
export interface Finding {
  /** A warning leaves the image valid. */
  readonly severity: "error" | "warning";
  /** The fault, in one line. */
  readonly message: string;
  /** The structure and field, such as `footer.checksum`. */
  readonly field: string;
  /** Byte offset of the field in the file. */
  readonly offsetBytes: number;
}

/** The largest number of listed findings of one kind. */
const LIMIT = 100;

/**
 * Collects findings. Of each kind only the first hundred are listed, with the number of further
 * ones. A damaged image may have millions of faults, so code that checks a table calls `hasRoom`
 * first and only counts the rest. Time and memory stay bounded.
 */
export class Findings {
  readonly #found: Finding[] = [];
  readonly #counts = new Map<string, number>();
  #hasErrors = false;

  error(message: string, field: string, offsetBytes: number): void {
    this.#hasErrors = true;
    this.#add({ severity: "error", message, field, offsetBytes });
  }

  warning(message: string, field: string, offsetBytes: number): void {
    this.#add({ severity: "warning", message, field, offsetBytes });
  }

  /**
   * Whether one more finding of a kind would be listed. The kind of the field `bat[7]` is `bat`.
   */
  hasRoom(kind: string): boolean {
    return (this.#counts.get(kind) ?? 0) < LIMIT;
  }

  /** Counts errors of a kind that are not listed. */
  countErrors(kind: string, count: number): void {
    if (count === 0) return;
    this.#hasErrors = true;
    this.#counts.set(kind, (this.#counts.get(kind) ?? 0) + count);
  }

  /** Counts a warning of a kind that is not listed. */
  countWarning(kind: string): void {
    this.#counts.set(kind, (this.#counts.get(kind) ?? 0) + 1);
  }

  /** Whether a finding is an error. */
  get hasErrors(): boolean {
    return this.#hasErrors;
  }

  /** All findings, in the order of detection. */
  list(): Finding[] {
    const list = [...this.#found];
    for (const [kind, count] of this.#counts) {
      if (count <= LIMIT) continue;
      const message = `${count - LIMIT} more faults like those in ${kind}`;
      const areWarnings = list.every(({ field, severity }) =>
        kindOf(field) !== kind || severity === "warning"
      );
      const severity = areWarnings ? "warning" : "error";
      list.push({ severity, message, field: kind, offsetBytes: 0 });
    }
    return list;
  }

  #add(finding: Finding): void {
    const kind = kindOf(finding.field);
    const count = (this.#counts.get(kind) ?? 0) + 1;
    this.#counts.set(kind, count);
    if (count <= LIMIT) this.#found.push(finding);
  }
}

function kindOf(field: string): string {
  return field.replace(/\[.*/, "");
}
