/** How much an entry matters. */
export type LogLevel = "info" | "warning" | "error";

/** What happened, of entries that tell a change of a disk's state. */
export type LogEvent =
  | "opened"
  | "closed"
  | "paused"
  | "resumed"
  | "snapshot"
  | "grown"
  | "limited"
  | "retrying"
  | "recovered"
  | "given-up"
  | "full"
  | "server-lost"
  | "server-back"
  | "fault"
  | "traced"
  | "upgraded";

/** What an entry is about, for programs that read the log. */
export interface LogFields {
  readonly event?: LogEvent;
  /** The disk. */
  readonly minor?: number;
  /** `type:path` */
  readonly image?: string;
  readonly file?: string;
  /** The number of the error. */
  readonly errno?: number;
  /** The process whose order it was, and its command line. */
  readonly pid?: number;
  readonly command?: string;
  /** How long it lasted, milliseconds. */
  readonly durationMs?: number;
}
