/**
 * Fuzzing: everything that comes from outside, with hostile content. A seed chooses a target and a
 * batch of cases for it; `--only TARGET` keeps to one target.
 *
 * @module
 */
import { Random } from "../../../src/testing/random.ts";
import type { Search, SearchContext } from "../search.ts";
import type { Target, TargetEntry } from "./target.ts";
import { TARGETS } from "./targets.ts";

/** The target that a seed chooses. */
function choose(random: Random, entries: readonly TargetEntry[]): TargetEntry {
  const total = entries.reduce((sum, { weight }) => sum + weight, 0);
  let at = random.next() * total;
  for (const entry of entries) {
    at -= entry.weight;
    if (at < 0) return entry;
  }
  return entries[entries.length - 1];
}

function entriesOf({ only }: SearchContext): readonly TargetEntry[] {
  if (only === null) return TARGETS;
  const named = TARGETS.filter(({ name }) => name === only);
  if (named.length > 0) return named;
  const names = TARGETS.map(({ name }) => name).join(", ");
  throw new TypeError(`There is no target ${only}; targets: ${names}`);
}

const ready = new Map<string, Target>();

async function targetOf(entry: TargetEntry, context: SearchContext): Promise<Target> {
  const known = ready.get(entry.name);
  if (known !== undefined) return known;
  const target = await entry.load();
  ready.set(entry.name, target);
  await target.setUp?.(context);
  return target;
}

/** The search. */
export const search: Search = {
  unit: "cases",
  secondsPerSeed: 120,
  residentBytes: 1.5 * 1024 ** 3,

  async run(seed, context): Promise<number> {
    const random = new Random(seed);
    const entry = choose(random, entriesOf(context));
    context.trace(`target ${entry.name}`);
    const target = await targetOf(entry, context);
    const cases = await target.run(random, context);
    context.count(entry.name, cases);
    return cases;
  },

  async tearDown(context): Promise<void> {
    for (const target of ready.values()) await target.tearDown?.(context);
  },
};
