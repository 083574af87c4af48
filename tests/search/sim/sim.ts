/**
 * The simulator: `deno task sim`. docs/searching.md says how it works.
 *
 * @module
 */
import { allowParentsIn, ANY_FOLDER } from "../../../src/files/confinement.ts";
import { Random } from "../../../src/testing/random.ts";
import type { Search, SearchContext } from "../search.ts";
import { runSeed } from "./run_seed.ts";

let allowedBefore: readonly string[] = [];

/** Searches for power cuts, errors and orders of events that break a promise. */
export const simulator: Search = {
  unit: "cuts",
  secondsPerSeed: 240,
  residentBytes: 1 << 30,
  setUp(): void {
    // Looking for the folders of storage repositories takes a third of the time otherwise.
    allowedBefore = allowParentsIn([ANY_FOLDER]);
  },
  tearDown(): void {
    allowParentsIn(allowedBefore);
  },
  run: (seed, context: SearchContext) => runSeed(new Random(seed * 2 + 1), context),
};
