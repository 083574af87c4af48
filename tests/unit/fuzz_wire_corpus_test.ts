/**
 * Batches of the fuzzing search in which faults were found, planted ones among them. `tests/data/corpus/wire.jsonl`
 * has a line for each: what it has in it, and the seed that makes it.
 *
 * @module
 */
import assert from "node:assert/strict";
import { search } from "../search/fuzz/fuzz.ts";
import { TARGETS } from "../search/fuzz/targets.ts";
import { withTempDir } from "../support/tools.ts";

interface Recipe {
  readonly what: string;
  readonly target: string;
  readonly seed: number;
}

const CORPUS = new URL("../data/corpus/wire.jsonl", import.meta.url);
const recipes: Recipe[] = Deno.readTextFileSync(CORPUS).trimEnd().split("\n")
  .map((line) => JSON.parse(line));

Deno.test("corpus of protocols: every recipe is one of a target", () => {
  const names = new Set(TARGETS.map(({ name }) => name));
  for (const { what, target } of recipes) assert.ok(names.has(target), `${what}: ${target}`);
  assert.ok(recipes.length >= 10);
});

Deno.test({
  name: "corpus of protocols: batches that had a finding have none",
  // The targets keep what their processes share until the end.
  sanitizeResources: false,
  sanitizeOps: false,
  fn: () =>
    withTempDir(async (folder) => {
      const context = { tracing: false, folder, trace() {}, count() {} };
      const random = Math.random;
      try {
        for (const { what, target, seed } of recipes) {
          const cases = await search.run(seed, { ...context, only: target });
          assert.ok(cases > 0, what);
        }
      } finally {
        Math.random = random;
        await search.tearDown?.({ ...context, only: null });
      }
    }),
});
