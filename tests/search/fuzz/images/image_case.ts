/**
 * A case: a world, mutations of it, and actions. All of it is in a small record.
 *
 * @module
 */
import { Random } from "../../../../src/testing/random.ts";
import { JOURNAL_WORLD, journalWorld, revert } from "./journals.ts";
import { copy, merge } from "./merges.ts";
import { drawMutations } from "./mutate.ts";
import { type Mutation, pick, putWorld } from "./mutations.ts";
import type { Stage } from "./stage.ts";
import { Subject } from "./subject.ts";
import {
  type Action,
  changeParent,
  discardData,
  fill,
  look,
  repair,
  resize,
  setFields,
  snapshot,
} from "./verbs.ts";
import { madeWorld } from "./made_worlds.ts";
import { type World, worldOf, WORLDS } from "./worlds.ts";
import { writeOffline, writeServed } from "./writes.ts";

/** The actions, and how often each is drawn. */
const ACTIONS: Readonly<Record<string, { readonly weight: number; readonly act: Action }>> = {
  serve: { weight: 6, act: writeServed },
  write: { weight: 3, act: writeOffline },
  look: { weight: 3, act: look },
  repair: { weight: 4, act: repair },
  set: { weight: 2, act: setFields },
  fill: { weight: 2, act: fill },
  resize: { weight: 3, act: resize },
  empty: { weight: 1, act: discardData },
  parent: { weight: 2, act: changeParent },
  snapshot: { weight: 2, act: snapshot },
  copy: { weight: 1, act: copy },
  coalesce: { weight: 2, act: merge },
  // Only for worlds with a journal.
  revert: { weight: 0, act: revert },
};
const NAMES = Object.entries(ACTIONS).flatMap(([name, { weight }]) =>
  Array.from({ length: weight }, () => name)
);

/** An action and the seed of what it draws. */
export interface CaseAction {
  readonly act: string;
  readonly seed: number;
}

/** A case. */
export interface ImageCase {
  readonly world: string;
  readonly mutations: readonly Mutation[];
  readonly actions: readonly CaseAction[];
}

const MADE = "made ";
let lastMade: World | null = null;

/** The world of a name: one of the list, `made SEED`, or that of a resize that was broken off. */
function worldNamed(name: string): World {
  if (lastMade?.name === name) return lastMade;
  if (name.startsWith(MADE)) lastMade = madeWorld(Number(name.slice(MADE.length)));
  else if (name.startsWith(JOURNAL_WORLD)) lastMade = journalWorld(name);
  else return worldOf(name);
  return lastMade;
}

/** How many cases of a hundred begin with images as other programs may have made them. */
const MADE_IN_HUNDRED = 15;

/** Draws a case. */
export function drawCase(random: Random): ImageCase {
  const isMade = random.below(100) < MADE_IN_HUNDRED;
  const world = isMade ? `${MADE}${random.below(1_000_000)}` : pick(random, WORLDS);
  const mutations = drawMutations(random, worldNamed(world));
  const actions: CaseAction[] = [];
  if (random.chance(0.7)) actions.push({ act: pick(random, NAMES), seed: random.bits() });
  return { world, mutations, actions };
}

/**
 * Runs a case; returns what it showed first: a refusal, findings of the check, or nothing.
 *
 * @throws Where something is found.
 */
export async function runCase(
  stage: Stage,
  { world, mutations, actions }: ImageCase,
): Promise<string> {
  const start = worldNamed(world);
  const { files } = start;
  putWorld(stage.disk, start, mutations);
  let verdict = "";
  for (const { act, seed } of actions.length > 0 ? actions : [{ act: "", seed: 0 }]) {
    const subject = new Subject(stage, [...files.keys()]);
    verdict ||= subject.verdict;
    await ACTIONS[act]?.act(subject, new Random(seed));
  }
  stage.clear();
  return verdict;
}
