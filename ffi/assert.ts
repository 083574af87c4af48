/**
 * What must hold whatever comes from outside: a violation is a fault of this program.
 *
 * @module
 */

/** An invariant does not hold. */
export class AssertionError extends Error {
  override readonly name = "AssertionError";
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
