import { isEndedByFault } from "../vbd/vbd_phase.ts";
import type { DiskSample } from "./sample.ts";

/** What a disk does just now, in a word. */
export type DiskState =
  /** It has no image. */
  | "empty"
  | "running"
  /** Requests failed, and are tried again. */
  | "retrying"
  /** A request has been at the disk for some seconds. */
  | "hanging"
  | "pausing"
  | "paused"
  /** A fault has ended it. */
  | "failed"
  | "closing"
  | "closed";

/** All states, the worst first. */
export const DISK_STATES: readonly DiskState[] = [
  "failed",
  "retrying",
  "hanging",
  "closing",
  "pausing",
  "paused",
  "closed",
  "empty",
  "running",
];

/** After how many seconds without an answer of the disk below a disk hangs. */
const HANGING_SECONDS = 5;

const CLOSED = 0x0002;
const PAUSE_REQUESTED = 0x0010;
const PAUSED = 0x0020;
const SHUTDOWN_REQUESTED = 0x0040;

/** What a disk does just now. */
export function stateOf(
  { state, path, retrying, unansweredSeconds }: Pick<
    DiskSample,
    "state" | "path" | "retrying" | "unansweredSeconds"
  >,
): DiskState {
  const has = (bit: number): boolean => (state & bit) !== 0;
  if (isEndedByFault(state)) return "failed";
  if (has(SHUTDOWN_REQUESTED)) return "closing";
  if (has(PAUSED)) return "paused";
  if (has(PAUSE_REQUESTED)) return "pausing";
  if (has(CLOSED)) return "closed";
  if (path === "") return "empty";
  if (retrying > 0) return "retrying";
  return unansweredSeconds >= HANGING_SECONDS ? "hanging" : "running";
}
