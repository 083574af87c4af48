/**
 * What moves the bytes for the queue: the kernel's asynchronous I/O, or a simulated disk. A backend
 * neither merges nor splits, and calls back only from `reap`.
 *
 * @module
 */

/** Operations of a backend. */
export const IoKind = { Read: 0, Write: 1, Sync: 2 } as const;
/** One of `IoKind`. */
export type IoKind = (typeof IoKind)[keyof typeof IoKind];

/** Where a backend tells completions. */
export interface CompletionSink {
  /** @param result Bytes moved, or a negative errno. */
  completed(io: number, result: number): void;
}

/** Moves bytes between files and memory. */
export interface DiskBackend {
  /** How many operations can be under way at once. */
  readonly capacity: number;
  /** The most operations of one `submit`. */
  readonly batch: number;
  /** A file was opened; operations on it may follow. */
  register(file: number): void;
  /**
   * Prepares one operation of the next `submit`: `count` sectors of the file, from the one on that
   * `sectors` has at `io` (as an argument it would not fit a register of the runtime). The
   * memory is the one at `memorySector` of I/O memory, or, with `iovecCount` above 0, what the
   * `struct iovec`s there name.
   */
  prepare(
    kind: IoKind,
    file: number,
    sectors: Float64Array,
    count: number,
    memorySector: number,
    iovecCount: number,
    io: number,
  ): void;
  /** Starts all that was prepared; each ends with a completion. */
  submit(): void;
  /** Hands finished operations to `sink`; returns how many. */
  reap(sink: CompletionSink): number;
  /** Releases what the backend holds; nothing may be under way. */
  close(): void;
}
