import { errorKind } from "./error_kind.ts";

/** The most runs of one reduction. */
const MOST_RUNS = 300;

/** A part of a case that can be left out. */
export interface Reducible<Case> {
  /** How many parts a case has. */
  parts(from: Case): number;
  /** The case without the parts from one on. */
  without(from: Case, first: number, count: number): Case;
}

/**
 * Leaves out parts of a case, first many and then one by one, while it still ends in the same kind of
 * error.
 *
 * @param run Runs a case; throws what it finds.
 * @returns The smallest case and its error.
 */
export async function reduce<Case>(
  found: Case,
  error: unknown,
  { parts, without }: Reducible<Case>,
  run: (each: Case) => Promise<unknown>,
): Promise<{ smallest: Case; error: unknown }> {
  let smallest = found;
  const kind = errorKind(error);
  let runs = 0;
  for (let count = Math.max(1, parts(found) >> 1); count >= 1; count >>= 1) {
    for (let first = parts(smallest) - count; first >= 0 && runs < MOST_RUNS; first--) {
      const smaller = without(smallest, first, count);
      runs++;
      try {
        await run(smaller);
      } catch (other) {
        if (errorKind(other) !== kind) continue;
        smallest = smaller;
        error = other;
      }
    }
  }
  return { smallest, error };
}
