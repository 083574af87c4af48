/**
 * Requests to devices that run.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import type { Client, Request } from "../client.ts";
import { within } from "../regions.ts";
import type { World } from "../world.ts";
import { isClosed, isPaused, someDevice, type Step } from "./step.ts";

/** The most sectors of a request. */
const MOST_SECTORS = 512;
/** Kinds of requests, each as often as it is listed. */
const KINDS: readonly Request["kind"][] = [
  ...new Array(9).fill("write"),
  ...new Array(4).fill("read"),
  ...new Array(2).fill("flush"),
  "zero",
  "fill",
  "discard",
  "discard",
  "status",
];

/** A range in or around a region. */
function someRange(
  world: World,
  random: Random,
  sectors: number,
): { sector: number; count: number } {
  const regions = [...within(world.parts.regions, { sector: 0, count: sectors })];
  const region = regions[random.below(regions.length)];
  const start = region.sector + random.below(region.count);
  const left = region.sector + region.count - start;
  const count = random.chance(0.3) ? Math.min(8, left) : 1 + random.below(left);
  return { sector: start, count };
}

function someRequest(world: World, random: Random, sectors: number): Request {
  const kind = KINDS[random.below(KINDS.length)];
  const { sector, count } = someRange(world, random, sectors);
  const isLong = random.chance(0.15) && kind !== "write" && kind !== "flush";
  const most = kind === "read" || kind === "fill" ? MOST_SECTORS : 8192;
  const length = isLong ? Math.min(sectors - sector, 1 + random.below(most)) : count;
  // Sectors outside of the regions are zero, and nobody compares them.
  const isHot = kind !== "read" || !isLong;
  const fua = random.chance(0.12) && (kind === "write" || kind === "zero" || kind === "fill");
  return { kind, sector, count: isHot ? length : count, fua };
}

/** Starts some requests at once; they may overlap. */
export function startRequests(
  world: World,
  random: Random,
  { client, most }: { client: Client; most: number },
): void {
  for (let i = 1 + random.below(most); i > 0 && client.hasRoom; i--) {
    client.start(someRequest(world, random, client.leaf.sectors));
  }
}

/** Steps that make requests. */
export const requestSteps: readonly Step[] = [
  {
    name: "requests",
    weight: 30,
    can: ({ devices }) => devices.some((device) => !isClosed(device)),
    run(world, random) {
      const device = someDevice(world, random, (each) => !isClosed(each));
      if (device === null) return;
      startRequests(world, random, { client: device.client, most: 24 });
      if (isPaused(device)) return;
      if (random.chance(0.5)) return world.settle();
      for (let turns = random.below(12); turns > 0; turns--) world.scheduler.turn();
    },
  },
  {
    name: "settle",
    weight: 4,
    run: (world) => world.settle(),
  },
  {
    name: "fill a block",
    weight: 2,
    can: ({ devices }) => devices.some((device) => device.client.vbd.phase === "open"),
    run(world, random) {
      const device = someDevice(world, random, ({ client }) => client.vbd.phase === "open");
      if (device === null) return;
      const { client } = device;
      const size = random.chance(0.1) ? 4096 : 256;
      const { sector } = someRange(world, random, client.leaf.sectors);
      const end = Math.min(client.leaf.sectors, sector - sector % size + size);
      for (let at = sector - sector % size; at < end && client.hasRoom; at += MOST_SECTORS) {
        client.start({ kind: "write", sector: at, count: Math.min(MOST_SECTORS, end - at) });
      }
      if (random.chance(0.5)) world.settle();
    },
  },
];
