import type { OpenRequest, QueueChoice } from "../protocol/open_request.ts";
import type { DevicePlan } from "./disk_access.ts";

/** The interface for disk I/O: one for all files, or "mixed": the faster one for each file. */
export type QueueKind = QueueChoice | "mixed";

/** A ublk device uses io_uring; "mixed" submits the I/O of the disk in the same system calls. */
export function queueFor({ queue }: OpenRequest, { makers }: DevicePlan): QueueKind {
  return queue === "auto" && makers[0]?.kind === "ublk" ? "mixed" : queue;
}
