/**
 * Chains that other programs may have made, with the data that they hold: see
 * `tests/search/images/`.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { checkImage } from "../../../../src/vhd/check/check.ts";
import { type MadeImage, makeChain } from "../../images/chain.ts";
import { ImageModel } from "../model.ts";
import { type Region, within } from "../regions.ts";
import type { SimFormat } from "./format.ts";
import { dynamicFormat } from "./vhd.ts";

/** What may be wrong with an image from the start, although it must be served: its batmap lies. */
const FROM_THE_START = /^batmap |has data where bitmap is clear|^\d+ more faults like those/;

/** Dynamic and differencing images of other programs. Warnings about them are no faults. */
export const madeFormat: SimFormat = {
  ...dynamicFormat,
  name: "made",
  faults(disk, path, { data }) {
    const { findings } = checkImage(path, { storage: disk, checkData: data });
    return findings.filter(({ severity }) => severity === "error")
      .map(({ message }) => message)
      .filter((message) => !FROM_THE_START.test(message));
  },
};

/** A chain that was made, and the models of its images. */
export interface MadeWorld {
  /** By path. */
  readonly images: ReadonlyMap<string, ImageModel>;
  readonly sectors: number;
  readonly blockSectors: number;
  /** Sectors that hold something, or where a layer ends. */
  readonly near: readonly number[];
  readonly lastStamp: number;
  readonly description: string;
  /** Sets the models, for the sectors of regions. */
  settle(regions: readonly Region[]): void;
}

/** Makes a chain whose top can be written. */
export function makeWorldOfOthers(disk: SimulatedDisk, random: Random): MadeWorld {
  const chain = makeChain(random, disk, {
    folder: "",
    mostLayers: 4,
    extremes: 0.04,
    writable: true,
    encrypted: 0,
    stale: false,
    wrongFooters: false,
    mostDataSectors: 400,
  });
  const models = new Map<string, ImageModel>();
  let parent: ImageModel | null = null;
  for (const { kind, path, content } of chain.images.toReversed()) {
    const format = kind === "raw" || kind === "fixed" ? kind : "made";
    parent = new ImageModel(path, content.sectors, parent, format);
    models.set(path, parent);
  }
  const held = chain.images.flatMap((image) => image.held);
  const some = Array.from({ length: Math.min(6, held.length) }, () => {
    const { sector, count } = held[random.below(held.length)];
    return random.chance(0.5) ? sector : sector + count;
  });
  const { content, blockSectors } = chain.top;
  return {
    images: models,
    sectors: content.sectors,
    blockSectors: Math.max(1, blockSectors),
    near: [...some, ...chain.images.map((image) => image.content.sectors)],
    lastStamp: chain.nextStamp,
    description: chain.description,
    settle(regions) {
      for (const image of chain.images) settleImage(models.get(image.path), image, regions);
    },
  };
}

function settleImage(
  model: ImageModel | undefined,
  { held, kind }: MadeImage,
  regions: readonly Region[],
): void {
  if (model === undefined) return;
  const settle = (range: Region, stamp: number): void => {
    for (const { sector, count } of within(regions, range)) {
      for (let i = 0; i < count; i++) model.settle(sector + i, stamp);
    }
  };
  // A flat image holds all of its sectors; those without a stamp are zeros.
  if (kind === "raw" || kind === "fixed") settle({ sector: 0, count: model.sectors }, 0);
  for (const run of held) settle(run, run.stamp);
}
