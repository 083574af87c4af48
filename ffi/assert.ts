/**
 * What must hold whatever comes from outside: a violation is a fault of this program.
 *
 * `assert` is for the state of one disk or connection, which the violation ends; `assertShared` is
 * for what all disks of a process share, such as the disk queue and the memory for I/O. When that
 * is in doubt, the data of every disk is, and the process ends.
 *
 * @module
 */

/** An invariant does not hold. */
export class AssertionError extends Error {
  override readonly name: string = "AssertionError";
}

/** An invariant of what all disks of the process share does not hold. */
export class SharedStateError extends AssertionError {
  override readonly name: string = "SharedStateError";
}

/**
 * Throws when an invariant does not hold. Costs a comparison: the text must be a constant, so that
 * nothing is allocated where it holds.
 *
 * @throws {AssertionError} `condition` is false.
 */
export function assert(condition: boolean, text: string): asserts condition {
  if (!condition) throw new AssertionError(text);
}

/**
 * As `assert`, for what all disks of the process share.
 *
 * @throws {SharedStateError} `condition` is false.
 */
export function assertShared(condition: boolean, text: string): asserts condition {
  if (!condition) throw new SharedStateError(text);
}
