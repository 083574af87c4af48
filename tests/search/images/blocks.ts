/**
 * Which blocks an image has, and which of their sectors.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import { setBits } from "../../../src/vhd/format/bitmap.ts";
import type { Content, Run } from "./content.ts";
import type { Shape } from "./sizes.ts";

/** A block to be written. Sectors are counted from the start of the block. */
export interface PlannedBlock {
  readonly block: number;
  /** Sectors that the image holds, in rising order; the stamp 0 is zeros. */
  readonly held: readonly Run[];
  /** Data of sectors that the image does not hold: left by a program that was killed. */
  readonly stale: readonly Run[];
  /** The value of bits behind the last sector: some programs set the whole bitmap. */
  readonly padding: 0 | 0xff;
}

/** What is drawn for the blocks of an image. */
export interface BlockOptions {
  readonly shape: Shape;
  /** The most sectors of data in all blocks together. */
  readonly mostDataSectors: number;
  readonly nextStamp: () => number;
  /** What lies below the image: blocks are mostly put over it. */
  readonly below: Content | null;
  /** Whether a block may have data of sectors that the image does not hold. */
  readonly stale: boolean;
  /** Larger blocks never hold all of their sectors. */
  readonly mostFilledBlock: number;
  /** Whether all blocks hold all of their sectors, as in images of programs without bitmaps. */
  readonly full: boolean;
}

const MOST_BLOCKS = 24;

/** The numbers of the blocks that an image has: the first and the last more often than others. */
function someBlocks(random: Random, { shape, below }: BlockOptions): number[] {
  const blocks = Math.ceil(shape.sectors / shape.blockSectors);
  const runs = below?.runs() ?? [];
  const numbers = new Set<number>();
  const wanted = random.chance(0.1) ? 0 : 1 + random.below(Math.min(MOST_BLOCKS, blocks * 2));
  let last = 0;
  for (let i = 0; i < wanted; i++) {
    const dice = random.below(8);
    if (dice === 0) last = blocks - 1;
    else if (dice < 5 && runs.length > 0) {
      const { sector } = runs[random.below(runs.length)];
      last = Math.min(blocks - 1, Math.floor(sector / shape.blockSectors));
    } else if (dice < 6) last = Math.min(blocks - 1, last + 1);
    else last = random.below(blocks);
    numbers.add(last);
  }
  return [...numbers];
}

/** Draws runs of sectors of a block that do not overlap. */
function someRuns(random: Random, sectors: number, most: number): { at: number; count: number }[] {
  const runs: { at: number; count: number }[] = [];
  const wanted = 1 + random.below(5);
  let at = random.chance(0.5) ? 0 : random.below(sectors);
  for (let i = 0; i < wanted && at < sectors && most > 0; i++) {
    const longest = Math.min(sectors - at, most, random.chance(0.3) ? sectors : 40);
    const count = 1 + random.below(longest);
    runs.push({ at, count });
    most -= count;
    at += count + 1 + random.below(random.chance(0.5) ? 4 : sectors);
  }
  return runs;
}

/** Draws the blocks of an image. */
export function planBlocks(random: Random, options: BlockOptions): PlannedBlock[] {
  const { shape, full, nextStamp } = options;
  let budget = options.mostDataSectors;
  return someBlocks(random, options).map((block) => {
    const most = Math.min(budget, shape.blockSectors);
    const runs = someRuns(random, shape.blockSectors, most);
    budget -= runs.reduce((sum, { count }) => sum + count, 0);
    const held = runs.map(({ at, count }) => ({ sector: at, count, stamp: nextStamp() }));
    const stale = options.stale && random.chance(0.5)
      ? someRuns(random, shape.blockSectors, 20).map(({ at, count }) => (
        { sector: at, count, stamp: nextStamp() }
      ))
      : [];
    const padding = random.chance(0.5) ? 0xff : 0;
    const fills = full || random.chance(0.3);
    if (fills && shape.blockSectors <= options.mostFilledBlock) {
      return { block, held: filled(held, shape), stale: [], padding };
    }
    if (random.chance(0.05)) return { block, held: [], stale: [], padding };
    if (random.chance(0.2)) held.forEach((run, i) => held[i] = { ...run, stamp: 0 });
    return { block, held, stale, padding };
  });
}

/** A block that holds all of its sectors: zeros between the runs. */
function filled(runs: readonly Run[], { blockSectors }: Shape): Run[] {
  const all: Run[] = [];
  let at = 0;
  for (const run of [...runs, { sector: blockSectors, count: 0, stamp: 0 }]) {
    if (run.sector > at) all.push({ sector: at, count: run.sector - at, stamp: 0 });
    if (run.count > 0) all.push(run);
    at = run.sector + run.count;
  }
  return all;
}

/** The bitmap of a block, as whole sectors. */
export function bitmapOf(
  { held, padding }: PlannedBlock,
  blockSectors: number,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(Math.max(1, Math.ceil(blockSectors / 8 / 512)) * 512);
  for (const { sector, count } of held) setBits(bytes, sector, count);
  if (padding !== 0) setBits(bytes, blockSectors, bytes.length * 8 - blockSectors);
  return bytes;
}

/** Whether an image holds all sectors of a block. */
export function isFull({ held }: PlannedBlock, blockSectors: number): boolean {
  return held.reduce((sum, { count }) => sum + count, 0) === blockSectors;
}

/** The sectors of the disk that an image holds. */
export function heldRuns(blocks: readonly PlannedBlock[], { sectors, blockSectors }: Shape): Run[] {
  return blocks.flatMap(({ block, held }) =>
    held.map((run) => {
      const sector = block * blockSectors + run.sector;
      return { ...run, sector, count: Math.min(run.count, sectors - sector) };
    })
  ).filter(({ count }) => count > 0);
}

/** Puts what an image holds over what is below it. */
export function putBlocks(content: Content, blocks: readonly PlannedBlock[], shape: Shape): void {
  for (const { block, held } of blocks) {
    for (const { sector, count, stamp } of held) {
      content.put(block * shape.blockSectors + sector, count, stamp);
    }
  }
}
