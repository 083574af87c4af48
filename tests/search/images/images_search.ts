/**
 * The search `images`: chains that other programs may have made are read by all readers, and each
 * must see what the maker wrote. `tests/search/images/chain.ts` makes the chains.
 *
 * @module
 */
import { confinementOf } from "../../../src/files/confinement.ts";
import { Random } from "../../../src/testing/random.ts";
import { checkImage } from "../../../src/vhd/check/check.ts";
import { openChain } from "../../../src/vhd/image/chain.ts";
import { DiskKey } from "../../../src/vhd/key.ts";
import { type SimulatedDevice, Simulation } from "../../support/sim.ts";
import { stamped } from "../sim/stamps.ts";
import type { Search, SearchContext } from "../search.ts";
import { type MadeChain, type MadeImage, makeChain } from "./chain.ts";
import { compareWithQemu, HAS_QEMU } from "./qemu.ts";
import { compareOffline, compareRanges, type Range, rangesOf, type Reader } from "./reading.ts";

/** So many seeds after each other, one image is compared with what qemu reads. */
const QEMU_EVERY = 8;

/** The search through images of other programs. */
export const imagesSearch: Search = {
  unit: "chains",
  secondsPerSeed: 30,
  residentBytes: 1.5 * 2 ** 30,
  run(seed: number, context: SearchContext): number {
    checkChain(seed, context);
    if (HAS_QEMU && seed % QEMU_EVERY === 0) compareWithQemu(new Random(seed), context);
    return 1;
  },
};

/** Makes the chain of a seed and compares what all readers see. */
export function checkChain(seed: number, context: Pick<SearchContext, "trace" | "count">): void {
  const random = new Random(seed);
  const simulation = new Simulation({ seed, latencyMs: 0 });
  try {
    const chain = makeChain(random, simulation.disk, { folder: "/images" });
    for (const line of chain.description.split("\n")) context.trace(line);
    context.count(`chains of ${chain.images.length} layers`);
    for (const image of chain.images) {
      context.count(`${image.kind} images`);
      if (image.kind === "raw") continue;
      checkFindings(simulation, { image, chain }, { rewritten: false });
      readOffline(random, simulation, { image, chain });
    }
    const ranges = rangesOf(random, chain.top.content, sizesOf(chain));
    serve(simulation, chain, { ranges, readOnly: true });
    if (!chain.top.isHoldable) return;
    const written = rewrite(random, simulation, chain);
    context.count("sectors written", written);
  } finally {
    simulation.close();
  }
}

/** The data of larger blocks is not checked, as that takes long. */
const MOST_CHECKED_BLOCK = 8192;

/** The sizes of the layers, behind which what is below them does not show. */
function sizesOf({ images }: MadeChain): number[] {
  return images.map(({ content }) => content.sectors);
}

/**
 * Writes to the disk through a tapdisk, mostly to new blocks, and compares all of it before and
 * after the image was closed: a new block must lie over nothing.
 *
 * @returns The number of sectors that were written.
 */
function rewrite(random: Random, simulation: Simulation, chain: MadeChain): number {
  const { top } = chain;
  const { content } = top;
  let stamp = chain.nextStamp;
  const device = open(simulation, chain, { readOnly: false });
  const before = stamp;
  let sectors = 0;
  let underWay: Range[] = [];
  for (let i = 1 + random.below(12); i > 0; i--) {
    const sector = random.below(Math.min(content.sectors, 2 ** 31 - 1));
    const count = Math.min(1 + random.below(40), content.sectors - sector);
    // Of two writes to a sector that are under way, either may come last.
    const meets = ({ sector: at, count: length }: Range): boolean =>
      at < sector + count && sector < at + length;
    if (random.chance(0.3) || underWay.some(meets)) {
      device.settle();
      underWay = [];
    }
    underWay.push({ sector, count });
    device.write(sector, stamped(sector, count, stamp));
    content.put(sector, count, stamp++);
    sectors += count;
  }
  device.settle();
  const ranges = rangesOf(random, content, sizesOf(chain));
  compareRanges(`served, ${top.path}, after ${stamp - before} writes`, content, {
    ranges,
    read: readerOf(device),
  });
  device.close();
  checkFindings(simulation, { image: top, chain }, { rewritten: true });
  readOffline(random, simulation, { image: top, chain });
  return sectors;
}

/** An image is looked at as a part of its chain. */
interface Place {
  readonly image: MadeImage;
  readonly chain: MadeChain;
}

function checkFindings(
  { disk }: Simulation,
  { image, chain }: Place,
  { rewritten }: { rewritten: boolean },
): void {
  const { path, checkFails, dataCheckFails, kind } = image;
  if (kind === "raw") return;
  const confinement = confinementOf(disk, chain.top.path);
  const readsData = image.blockSectors <= MOST_CHECKED_BLOCK;
  for (const checkData of readsData ? [false, true] : [false]) {
    const { valid, findings } = checkImage(path, { storage: disk, checkData, confinement });
    const errors = findings.filter(({ severity }) => severity === "error");
    const texts = errors.map(({ message }) => message).join("; ");
    const fails = checkFails || (checkData && dataCheckFails);
    if (!valid && !fails) throw new Error(`check of ${path} finds errors: ${texts}`);
    // A tapdisk that writes to the image writes some of what was wrong anew.
    if (valid && fails && checkFails && !rewritten) {
      throw new Error(`check of ${path} finds nothing`);
    }
  }
}

/** Compares what the offline reader sees. It reads encrypted images as they are in the file. */
function readOffline(
  random: Random,
  { disk }: Simulation,
  { image, chain }: Place,
): void {
  const below = chain.images.slice(chain.images.indexOf(image));
  if (below.some(({ isEncrypted }) => isEncrypted)) return;
  const { path, content } = image;
  const confinement = confinementOf(disk, chain.top.path);
  const opened = openChain(path, { storage: disk, confinement });
  try {
    compareOffline(random, opened, { path, content });
  } finally {
    opened.close();
  }
}

/** Compares what a tapdisk serves. */
function serve(
  simulation: Simulation,
  chain: MadeChain,
  { ranges, readOnly }: { ranges: readonly Range[]; readOnly: boolean },
): void {
  const device = open(simulation, chain, { readOnly });
  compareRanges(`served, ${chain.top.path}`, chain.top.content, {
    ranges,
    read: readerOf(device),
  });
  device.close();
}

function open(
  simulation: Simulation,
  { top, key }: MadeChain,
  { readOnly }: { readOnly: boolean },
): SimulatedDevice {
  const options = key === null ? {} : { key: new DiskKey(key) };
  return simulation.open(`vhd:${top.path}`, { readOnly, ...options });
}

function readerOf(device: SimulatedDevice): Reader {
  return ({ sector, count }) => {
    const outcome = device.read(sector, count);
    device.settle();
    if (outcome.errno !== 0 || outcome.data === null) {
      throw new Error(`reading ${count} sectors at ${sector} ends with ${outcome.errno}`);
    }
    return outcome.data;
  };
}
