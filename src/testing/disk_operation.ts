/** The kinds of operation on a simulated disk. */
export type OperationKind =
  | "open"
  | "create"
  | "read"
  | "write"
  | "punch"
  | "truncate"
  | "sync"
  | "sync folder"
  | "rename"
  | "link"
  | "remove";

/** An operation that is about to be executed. */
export interface DiskOperation {
  readonly kind: OperationKind;
  /** The file; for a rename or link, the old name. */
  readonly path: string;
  /** For a read, write or punch: the range. For a truncate: the new length, and 0. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** Whether the operation comes from the disk queue; false for synchronous code. */
  readonly queued: boolean;
  /** The code that asked for it; null unless the disk traces. */
  readonly from: string | null;
}

/**
 * What a bad disk does with an operation that it reports as done, or a kernel with one that it ends
 * early:
 *
 * - "lose": a write, punch or sync is reported as done, and nothing happens;
 * - "misdirect": a write lands at `offsetBytes` of the same file;
 * - "rot": a bit of the file flips first, counted from the start of the operation's range;
 * - "shorten": a read or write moves `lengthBytes` only, more than 0 and less than it was to move.
 *   The caller sees a short transfer; synchronous code goes on with the rest, in an operation of
 *   its own;
 * - "fail late": a queued write is executed, and reported as failed with `errno`.
 */
export type Misdeed =
  | { readonly does: "lose" }
  | { readonly does: "misdirect"; readonly offsetBytes: number }
  | { readonly does: "rot"; readonly bit: number }
  | { readonly does: "shorten"; readonly lengthBytes: number }
  | { readonly does: "fail late"; readonly errno: number };

/** What becomes of an operation: 0: it is executed; an errno, with which it fails; a misdeed. */
export type Verdict = number | Misdeed;

/** Called for each operation, and decides what becomes of it. An exception goes to the caller. */
export type OperationHook = (operation: DiskOperation) => Verdict | void;

/** Called for each operation after the hook, with its verdict. */
export type OperationTrace = (operation: DiskOperation, verdict: Verdict) => void;

/** A hook that sees only operations that change files or make changes durable. */
export function changesOnly(hook: OperationHook): OperationHook {
  return (operation) => {
    const { kind } = operation;
    return kind === "open" || kind === "read" ? 0 : hook(operation);
  };
}

/** A line of a trace. */
export function describeOperation(operation: DiskOperation, verdict: Verdict): string {
  const { kind, path, offsetBytes, lengthBytes, from } = operation;
  const range = kind === "truncate" ? ` to ${offsetBytes}` : ` ${offsetBytes}+${lengthBytes}`;
  const where = lengthBytes > 0 || kind === "truncate" ? range : "";
  const end = verdict === 0 ? "" : ` => ${JSON.stringify(verdict)}`;
  return `${kind} ${path}${where}${end}${from === null ? "" : `  ${from}`}`;
}
