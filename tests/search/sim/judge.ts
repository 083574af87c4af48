/**
 * Does with a photograph what a user does after a power cut, and compares what is found with the
 * models: reverts a journal, opens each chain, repairs an image that is not in order, and reads.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { revertJournal } from "../../../src/vhd/resize/journal_revert.ts";
import type { Layer } from "./formats/format.ts";
import { formatNamed, newFormat } from "./formats/registry.ts";
import { FALL, ImageModel, type Moment, valueAt } from "./model.ts";
import { SECTOR_BYTES } from "./stamps.ts";
import { within } from "./regions.ts";
import { readServed } from "./served.ts";
import type { World } from "./world.ts";

/** A disk that was found in order after a power cut, and models of exactly what it holds. */
export interface Verdict {
  readonly disk: SimulatedDisk;
  readonly images: Map<string, ImageModel>;
  readonly leftovers: Set<string>;
  readonly name: string;
}

/** How a photograph is judged. */
export interface JudgeOptions {
  readonly random: Random;
  /** Whether another world will go on from here. */
  readonly keeps: boolean;
  /** The number of the cut in its world. */
  readonly cut: number;
  /** A power cut, or a killed process. */
  readonly moment: Moment;
}

/** The part of the cuts after which all data is read, too. */
const DATA_SHARE = 0.08;
/** The part of the cuts after which images are read that no step has touched. */
const ALL_SHARE = 0.2;
/** The part of the images that are read through a device, too. */
const SERVED_SHARE = 0.04;
/** An image with more blocks is checked and read after few cuts only. */
const MANY_SECTORS = 4096 * 4096;

/**
 * Judges a photograph.
 *
 * @throws where something is found that must not be.
 */
export function judge(
  world: World,
  photo: SimulatedDisk,
  { random, keeps, cut, moment }: JudgeOptions,
): Verdict {
  const event = moment.kind === "cut" ? "cut" : "kill";
  const why = (what: string): string => `After ${event} ${cut} (${world.step}): ${what}`;
  revert(world, photo);
  assertNames(world, photo, why);
  const all = keeps || random.chance(ALL_SHARE);
  for (const image of world.images.values()) {
    if (!all && !isOfInterest(world, image)) continue;
    if (world.operation?.vanishing?.includes(image.path) && !photo.exists(image.path)) continue;
    if (image.sectors > MANY_SECTORS && !keeps && random.chance(0.7)) continue;
    const data = random.chance(DATA_SHARE);
    putInOrder(world, photo, { image, data, why });
  }
  for (const image of world.images.values()) {
    if (!all && !isOfInterest(world, image)) continue;
    if (world.operation?.vanishing?.includes(image.path) && !photo.exists(image.path)) continue;
    readAll(world, photo, { image, why, moment });
    if (!random.chance(SERVED_SHARE)) continue;
    world.count("read served");
    readServed(photo, image, {
      ranges: within(world.parts.regions, whole(image)),
      see: (bytes, sector) => image.compare(bytes, sector, moment, why("read served")),
    });
  }
  for (const log of world.logs) {
    world.count("logs read after a cut");
    try {
      log.compare(photo, moment);
    } catch (error) {
      throw new Error(why(String(error)), { cause: error });
    }
  }
  const images = keeps ? observe(world, photo) : new Map<string, ImageModel>();
  const leftovers = new Set(photo.paths.filter((path) => !images.has(path)));
  return { disk: photo, images, leftovers, name: `${world.parts.name}.${cut}` };
}

type Why = (what: string) => string;

/** Images that are served, and those that a step is working on. */
function isOfInterest(world: World, image: ImageModel): boolean {
  return world.operation !== null ||
    world.devices.some(({ client }) => client.vbd.phase !== "closed" && client.leaf === image);
}

function revert(world: World, photo: SimulatedDisk): void {
  const journal = world.operation?.journal;
  if (journal === undefined || !photo.exists(journal.path)) return;
  revertJournal(journal.image, { storage: photo, journal: journal.path });
}

/** Every image is there, and nothing that no step explains. */
function assertNames(world: World, photo: SimulatedDisk, why: Why): void {
  const { images, leftovers, operation } = world;
  const there = new Set(photo.paths);
  for (const path of images.keys()) {
    if (there.has(path) || operation?.vanishing?.includes(path)) continue;
    throw new Error(why(`${path} is gone`));
  }
  for (const path of there) {
    if (images.has(path) || leftovers.has(path)) continue;
    if (operation?.mayBe.some((each) => path === each || path.startsWith(`${each}.`))) continue;
    throw new Error(why(`${path} is there, which nothing explains`));
  }
}

function putInOrder(
  world: World,
  photo: SimulatedDisk,
  { image, data, why }: { image: ImageModel; data: boolean; why: Why },
): void {
  const { path } = image;
  const format = formatNamed(image.format);
  const mayHaveData = true;
  const found = world.faultsOf(photo, image, { data, mayHaveData });
  if (found.length === 0) return;
  world.trace(() => `    judge: ${path} is not in order: ${found.join("; ")}`);
  const repairs = format.repair(photo, path);
  world.trace(() => `    judge: repair: ${repairs.join("; ")}`);
  world.count("repairs");
  const left = world.faultsOf(photo, image, { data, mayHaveData });
  if (left.length === 0) return;
  throw new Error(why(`${path} is not in order after its repair: ${left.join("; ")}`));
}

/** The size that an image has: that of its model, or one that a step is changing it to. */
function assertSize(
  world: World,
  photo: SimulatedDisk,
  { image, why }: { image: ImageModel; why: Why },
): void {
  const format = formatNamed(image.format);
  if (format.parentAs === "raw") return;
  const [{ sectors }] = format.layers(photo, image.path);
  if (sectors === image.sectors || world.operation?.sizes?.get(image.path) === sectors) return;
  throw new Error(why(`${image.path} has ${sectors} sectors, not ${image.sectors}`));
}

function readAll(
  world: World,
  photo: SimulatedDisk,
  { image, why, moment }: { image: ImageModel; why: Why; moment: Moment },
): void {
  if (world.operation?.sizes !== undefined) assertSize(world, photo, { image, why });
  const reader = formatNamed(image.format).reader(photo, image.path);
  try {
    for (const { sector, count } of within(world.parts.regions, whole(image))) {
      const data = new Uint8Array(count * SECTOR_BYTES);
      reader.read(data, sector);
      image.compare(data, sector, moment, why("read offline"));
    }
  } finally {
    reader.close();
  }
}

/** All sectors of an image. */
function whole(image: ImageModel): { sector: number; count: number } {
  return { sector: 0, count: image.sectors };
}

/** Models of exactly what the images hold now. */
function observe(world: World, photo: SimulatedDisk): Map<string, ImageModel> {
  const models = new Map<string, ImageModel>();
  for (const { path, format } of world.images.values()) {
    if (!photo.exists(path)) continue;
    let parent: ImageModel | null = null;
    for (const layer of formatNamed(format).layers(photo, path).reverse()) {
      let model = models.get(layer.path);
      if (model === undefined) {
        const known = world.images.get(layer.path)?.format;
        const name = known ?? (layer.type === "raw" ? "raw" : formatOfNew(world, photo, layer));
        model = new ImageModel(layer.path, layer.sectors, parent, name);
        models.set(layer.path, model);
        settleAll(world, photo, model);
      }
      parent = model;
    }
  }
  return models;
}

/** The format of an image with a new name: it may be one of other programs that was renamed. */
function formatOfNew(
  { images }: World,
  photo: SimulatedDisk,
  { path, type, encrypted }: Layer,
): string {
  if (type === "vhd" && [...images.values()].some(({ format }) => format === "made")) return "made";
  return newFormat({ type, encrypted, onDevice: photo.status(path).kind === "block" }).name;
}

function settleAll(world: World, photo: SimulatedDisk, model: ImageModel): void {
  const format = formatNamed(model.format);
  const reader = format.reader(photo, model.path);
  try {
    for (const { sector, count } of within(world.parts.regions, whole(model))) {
      const data = new Uint8Array(count * SECTOR_BYTES);
      reader.read(data, sector);
      const words = new Uint32Array(data.buffer);
      const held = format.held(photo, model.path, { sector, count });
      for (let i = 0; i < count; i++) {
        const found = valueAt(words, i, sector + i);
        if (typeof found !== "number") throw new Error(`${model.path}: ${found}`);
        model.settle(sector + i, held.has(sector + i) ? found : FALL);
      }
    }
  } finally {
    reader.close();
  }
}
