/**
 * A few hundred power cuts of the simulator from fixed seeds. `deno task sim` searches further; see
 * docs/searching.md.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { SearchContext } from "../search/search.ts";
import { simulator } from "../search/sim/sim.ts";

/** The least number of cuts of the fixed seeds. */
const CUTS = 300;
function contextOf(counts: Map<string, number>): SearchContext {
  return {
    tracing: false,
    only: null,
    folder: "/nowhere",
    trace: () => {},
    count: (what, increment = 1) => counts.set(what, (counts.get(what) ?? 0) + increment),
  };
}

Deno.test(`${CUTS} power cuts of the simulator`, async () => {
  const counts = new Map<string, number>();
  const context = contextOf(counts);
  simulator.setUp?.(context);
  let cuts = 0;
  for (let seed = 1; cuts < CUTS; seed++) cuts += await simulator.run(seed, context);
  simulator.tearDown?.(context);
  // A run that does nothing would find nothing.
  assert.ok((counts.get("worlds") ?? 0) > 2, JSON.stringify([...counts]));
  assert.ok((counts.get("repairs") ?? 0) > 20, JSON.stringify([...counts]));
});
