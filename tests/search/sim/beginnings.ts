/**
 * The images that a world begins with: of our own formats, or a chain of other programs.
 *
 * @module
 */
import { Disk } from "../../../src/bulk/disk.ts";
import type { Random } from "../../../src/testing/random.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { openChain } from "../../../src/vhd/image/chain.ts";
import { snapshot } from "../../../src/vhd/snapshot.ts";
import type { SearchContext } from "../search.ts";
import type { MadeImage, SimFormat } from "./formats/format.ts";
import { addKeyhash } from "./formats/keys.ts";
import { makeWorldOfOthers } from "./formats/made.ts";
import { qcowFormat } from "./formats/qcow.ts";
import { FORMATS, newFormat } from "./formats/registry.ts";
import { deviceBytes } from "./formats/vhd.ts";
import { ImageModel } from "./model.ts";
import { chooseRegions, type Region } from "./regions.ts";
import { SECTOR_BYTES, stamped } from "./stamps.ts";
import { DEVICE } from "./world.ts";

/** The size of a disk that is made of an image with a size that is not limited. */
const NO_LIMIT = 2 ** 34;
/** The part of the encrypted images that have a base which is not encrypted. */
const ON_PLAIN = 0.4;
/** The stamp of what such a base holds. */
const STAMP_OF_BASE = 1;

/** The images that a world begins with. */
export interface Beginning {
  readonly images: Map<string, ImageModel>;
  readonly regions: readonly Region[];
  /** The last stamp that was used. */
  readonly stamp: number;
}

/** A chain that other programs may have made. */
export function beginWithOthers(
  disk: SimulatedDisk,
  random: Random,
  context: SearchContext,
): Beginning {
  const made = makeWorldOfOthers(disk, random);
  context.count("worlds of images of others");
  context.trace(made.description);
  const regions = chooseRegions(random, made);
  made.settle(regions);
  return { images: new Map(made.images), regions, stamp: made.lastStamp };
}

/** The formats of images that a world may begin with: those that `--only` names the first word of. */
function formatsFor({ only }: SearchContext): readonly SimFormat[] {
  if (only === null) return FORMATS;
  const named = [...FORMATS, qcowFormat].filter(({ name }) =>
    name === only || name.startsWith(`${only} `)
  );
  if (named.length > 0) return named;
  const names = [...new Set(FORMATS.map(({ name }) => name))].join(", ");
  throw new TypeError(`There is no format ${only}; formats: ${names}`);
}

/** One or two images of our formats. */
export function beginWithOurs(
  disk: SimulatedDisk,
  random: Random,
  context: SearchContext,
): Beginning {
  const formats = formatsFor(context);
  const images = new Map<string, ImageModel>();
  let [sectors, blockSectors] = [0, 1];
  for (let i = random.chance(0.3) ? 2 : 1; i > 0; i--) {
    const format = formats[random.below(formats.length)];
    context.count(`images: ${format.name}`);
    const suffix = format.onDevice ? DEVICE : format.parentAs === "raw" ? ".raw" : ".vhd";
    const wish = { disk, path: `/${i}${suffix}`, random, mostSectors: NO_LIMIT };
    let [made, parent] = [null as MadeImage | null, null as ImageModel | null];
    if (format.encrypted && random.chance(ON_PLAIN)) {
      ({ made, parent } = makeOnPlain(format, wish));
      images.set(parent.path, parent);
    } else made = format.make(wish);
    images.set(wish.path, new ImageModel(wish.path, made.sectors, parent, format.name));
    if (made.sectors > sectors) ({ sectors, blockSectors } = made);
  }
  const regions = chooseRegions(random, { sectors, blockSectors });
  return { images, regions, stamp: STAMP_OF_BASE };
}

/** An encrypted image on one with data that is not encrypted. */
function makeOnPlain(
  { onDevice }: SimFormat,
  wish: Parameters<SimFormat["make"]>[0],
): { made: MadeImage; parent: ImageModel } {
  const { disk, path } = wish;
  const format = newFormat({ encrypted: false, onDevice });
  const base = path.replace(".", "base.");
  const made = format.make({ ...wish, path: base });
  const parent = new ImageModel(base, made.sectors, null, format.name);
  const opened = new Disk(openChain(base, { storage: disk, readOnly: false }), true);
  for (const sector of [0, made.blockSectors - 8]) {
    opened.write(stamped(sector, 8, STAMP_OF_BASE), sector * SECTOR_BYTES);
    for (let i = 0; i < 8; i++) parent.settle(sector + i, STAMP_OF_BASE);
  }
  opened.close();
  if (onDevice) disk.addBlockDevice(path, { sizeBytes: deviceBytes(made.sectors) });
  snapshot(path, { storage: disk, parent: base, keepEmptyParent: true });
  addKeyhash(disk, path);
  return { made, parent };
}
