import { SharedStateError } from "../../ffi/assert.ts";

/**
 * What a fault of this program ends: a connection, or a disk. Each handler, timer and piece of work
 * of the loop has an owner; what it throws ends that owner and nothing else.
 */
export interface FaultOwner {
  /** Whether a fault has ended it already. */
  readonly failed: boolean;
  /** A handler or the like of this owner threw. The owner logs that, and ends; it does not throw. */
  fault(error: unknown): void;
}

/** Decides what happens after faults that end no owner. */
export interface LastResort {
  /** A handler without an owner threw. The rest of its work is not done. */
  unowned(error: unknown): void;
  /** What all disks share is in doubt: the process must not go on. */
  fatal(error: unknown): void;
}

/** The owner of what all disks share: a fault of it ends the process. */
export const EVERYTHING: FaultOwner = { failed: false, fault: rethrow };

function rethrow(error: unknown): void {
  throw error;
}

/** For programs and tests that serve no disks: a fault is thrown to the caller of the loop. */
export const THROW_ON: LastResort = { unowned: rethrow, fatal: rethrow };

/** Ends the owner of a fault, or else hands the fault to the last resort. */
export function contain(error: unknown, owner: FaultOwner | undefined, last: LastResort): void {
  if (error instanceof SharedStateError || owner === EVERYTHING) return last.fatal(error);
  if (owner === undefined) return last.unowned(error);
  try {
    owner.fault(error);
  } catch (second) {
    last.unowned(second);
  }
}

/** A fault with its stack, for the log. */
export function describeFault(error: unknown): string {
  return error instanceof Error ? error.stack ?? error.message : String(error);
}
