/**
 * Runs one seed: a world from its first image to its end, and then worlds that go on from some of its
 * photographs, as a machine does that starts again after a power cut.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Random } from "../../../src/testing/random.ts";
import { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import type { SearchContext } from "../search.ts";
import { beginWithOthers, beginWithOurs } from "./beginnings.ts";
import { Camera } from "./camera.ts";
import { formatNamed } from "./formats/registry.ts";
import type { Verdict } from "./judge.ts";
import { type ImageModel, NOW } from "./model.ts";
import type { Region } from "./regions.ts";
import { readOffline } from "./steps/offline.ts";
import { STEPS } from "./steps/registry.ts";
import { close, resume } from "./steps/states.ts";
import { isPaused, type Step } from "./steps/step.ts";
import { knownAs, type Used, World } from "./world.ts";

/** The probability of a world of images that other programs may have made. */
const OF_OTHERS = 0.35;
/** How long the worlds of a seed are. */
const STEPS_OF_FIRST = 40;
const STEPS_OF_OTHERS = 10;
/** Worlds that go on from photographs of worlds that go on from photographs … */
const MOST_GENERATIONS = 3;
/** An image of more sectors costs more to open, so there are fewer cuts. */
const LARGE_SECTORS = 4096 * 4096;
/** The largest disk with a record of its changes in memory, 2 TiB. */
const MOST_LOGGED_SECTORS = 2 ** 32;
/** Files that a device's cache may hold are small, so that they are dropped, too. */
const FILTERS = ["", "", "", "", "", "bc:1:", "log:"];

/** What goes on from world to world. */
interface Common {
  readonly context: SearchContext;
  readonly regions: readonly Region[];
  readonly known: ReadonlySet<string>;
  readonly used: Used;
}

/** Runs a seed; returns the number of cuts. */
export async function runSeed(random: Random, context: SearchContext): Promise<number> {
  const disk = new SimulatedDisk({ seed: random.bits(), powerCuts: true });
  const { images, regions, stamp } = context.only === null && random.chance(OF_OTHERS)
    ? beginWithOthers(disk, random, context)
    : beginWithOurs(disk, random, context);
  const known = new Set<string>();
  for (const { path, format } of images.values()) {
    const found = formatNamed(format).faults(disk, path, { data: true, mayHaveData: false });
    for (const message of found) known.add(knownAs(message));
  }
  const common: Common = {
    context,
    regions,
    known,
    used: { stamp, file: 100, smallDevice: false, devices: new Map<string, number>() },
  };
  const first = { disk, images, leftovers: new Set<string>(), name: "w" };
  return await runWorlds(common, { verdict: first, random, generation: 0 });
}

interface Start {
  readonly verdict: Verdict;
  readonly random: Random;
  readonly generation: number;
}

async function runWorlds(common: Common, { verdict, random, generation }: Start): Promise<number> {
  const largest = Math.max(...[...verdict.images.values()].map(({ sectors }) => sectors));
  const slower = largest > LARGE_SECTORS ? 8 : 1;
  const camera = new Camera(new Random(random.bits()), {
    share: (0.02 + random.next() * 0.2) / slower,
    most: (generation === 0 ? 120 : 12) / slower,
    mostKept: generation >= MOST_GENERATIONS ? 0 : slower > 1 ? 1 - generation : 2,
  });
  const { context, regions, known, used } = common;
  const world = new World({
    random,
    disk: verdict.disk,
    images: verdict.images,
    leftovers: verdict.leftovers,
    regions,
    known,
    used,
    camera,
    byLibrary: random.chance(0.25),
    latencyMs: random.chance(0.2) ? 0 : random.below(20),
    name: verdict.name,
    trace: context.tracing ? (line): void => context.trace(line) : null,
    note: (what) => context.count(what),
  });
  try {
    await live(world, generation === 0 && slower === 1 ? STEPS_OF_FIRST : STEPS_OF_OTHERS);
  } catch (error) {
    for (const { disk } of camera.kept) disk.close();
    world.abandon();
    throw error;
  }
  context.count("worlds");
  let cuts = camera.cuts;
  for (const each of camera.kept) {
    const next = { verdict: each, random, generation: generation + 1 };
    cuts += await runWorlds(common, next);
  }
  return cuts;
}

function filterFor({ sectors }: ImageModel, random: Random): string {
  const filter = FILTERS[random.below(FILTERS.length)];
  // Its bits for more would lie outside of the memory that the simulated disk sees.
  return filter === "log:" && sectors > MOST_LOGGED_SECTORS ? "" : filter;
}

/** The steps of a world. */
async function live(world: World, steps: number): Promise<void> {
  const { random } = world;
  for (const leaf of world.leaves()) {
    if (leaf.sectors > 0) world.open(leaf, filterFor(leaf, random));
  }
  for (let i = 0; i < steps; i++) {
    const step = choose(world);
    world.step = `step ${i + 1}, ${step.name}`;
    world.trace(() => world.step);
    world.count(`steps: ${step.name}`);
    await step.run(world, random);
    world.assertWell();
  }
  world.step = "the end";
  world.trace(() => "the end");
  await finish(world);
}

function choose(world: World): Step {
  const possible = STEPS.filter(({ can }) => can === undefined || can(world));
  let dice = world.random.below(possible.reduce((sum, { weight }) => sum + weight, 0));
  for (const step of possible) {
    dice -= step.weight;
    if (dice < 0) return step;
  }
  throw new RangeError("No step is possible");
}

/** Ends all faults, reads everything, and closes. */
async function finish(world: World): Promise<void> {
  world.heal();
  for (const device of world.devices) if (isPaused(device)) await resume(world, device);
  world.settle();
  for (const { client } of world.devices) {
    if (client.vbd.phase !== "open") continue;
    for (const { sector, count } of world.parts.regions) {
      if (sector + count > client.leaf.sectors) continue;
      client.start({ kind: "read", sector, count });
      world.settle();
    }
  }
  for (const device of world.devices) {
    if (device.client.vbd.phase !== "closed") await close(world, device);
  }
  world.step = "after the end";
  world.disk.beforeOperation = null;
  for (const log of world.logs) log.compare(world.disk, NOW);
  for (const image of world.images.values()) {
    readOffline(world, image);
    const { mayHaveData } = world;
    const { format: name, path } = image;
    const format = formatNamed(name);
    // What a power cut, or an error at a close, left behind in an image that no device has closed in
    // order since is still there.
    if (mayHaveData) format.repair(world.disk, path);
    const found = world.faultsOf(world.disk, image, { data: true, mayHaveData });
    assert.deepEqual(found, [], path);
  }
  world.close();
}
