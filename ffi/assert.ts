/**
 * Invariants: conditions that hold whatever comes from outside. A violation is a fault of this
 * program.
 *
 * `assert` guards the state of one disk or connection, and a violation ends that one.
 * `assertShared` guards what all disks of a process share, such as the disk queue and the memory
 * for I/O. A violation there puts the data of every disk in doubt, and ends the process.
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
 * Throws when an invariant does not hold. It costs a comparison.
 *
 * @param text A constant, so that a condition that holds allocates nothing.
 *
 * @throws {AssertionError} `condition` is false.
 */
export function assert(condition: boolean, text: string): asserts condition {
  if (!condition) throw new AssertionError(text);
}

/**
 * Throws when an invariant of what all disks of the process share does not hold.
 *
 * @param text A constant, as for `assert`.
 *
 * @throws {SharedStateError} `condition` is false.
 */
export function assertShared(condition: boolean, text: string): asserts condition {
  if (!condition) throw new SharedStateError(text);
}
