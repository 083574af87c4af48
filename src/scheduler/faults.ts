import { SharedStateError } from "../../ffi/assert.ts";

/**
 * What a fault of this program ends: a connection, or a disk. The loop calls handlers, timers and
 * the like on behalf of an owner; what they throw ends that owner and nobody else.
 */
export interface FaultOwner {
  /** Whether a fault has ended it already. */
  readonly failed: boolean;
  /** Something that was done on its behalf threw. It logs that, and ends; it does not throw. */
  fault(error: unknown): void;
}

/** What is to become of faults that end no owner. */
export interface LastResort {
  /** A handler without an owner threw. Whatever it was about to do is not done. */
  unowned(error: unknown): void;
  /** What all disks share is in doubt: the process must not go on. */
  fatal(error: unknown): void;
}

/** The owner of what all disks share: a fault of it ends the process. */
export const EVERYTHING: FaultOwner = { failed: false, fault: rethrow };

function rethrow(error: unknown): void {
  throw error;
}

/** For programs and tests that serve no disks: a fault goes up to whoever runs the loop. */
export const THROW_ON: LastResort = { unowned: rethrow, fatal: rethrow };

/** Decides whom a fault ends. */
export function contain(error: unknown, owner: FaultOwner | undefined, last: LastResort): void {
  if (error instanceof SharedStateError || owner === EVERYTHING) return last.fatal(error);
  if (owner === undefined) return last.unowned(error);
  try {
    owner.fault(error);
  } catch (second) {
    last.unowned(second);
  }
}

/** A fault in one line, with its stack, for the log. */
export function describeFault(error: unknown): string {
  return error instanceof Error ? error.stack ?? error.message : String(error);
}
