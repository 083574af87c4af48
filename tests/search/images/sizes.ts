/**
 * Sizes of blocks and of disks: ordinary ones, and those at the limits of the format and of the
 * programs that write it.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";

const KIB = 2;
const MIB = 2048;
const GIB = 2 ** 21;

/** An element of a list. */
export function pick<T>(random: Random, list: readonly T[]): T {
  return list[random.below(list.length)];
}

/** How large an image may be. */
export interface SizeLimits {
  /** The size of a disk that is not at a limit of the format, in sectors, at most. */
  readonly mostSectors: number;
  /** The probability of a size at a limit of the format. */
  readonly extremes: number;
  /** Whether all blocks of a disk must find room in its file. */
  readonly writable: boolean;
}

/** The shape of an image with blocks. */
export interface Shape {
  readonly sectors: number;
  readonly blockSectors: number;
  /** Entries of the block table, at least one for each block. */
  readonly entries: number;
}

const USUAL_BLOCKS = [4096, 4096, 4096, 1024, 256, 128, 64, 32, 16, 8, 4, 2, 1];
const LARGE_BLOCKS = [8 * KIB * 1024, 32 * MIB, 64 * MIB];

/**
 * The sizes, in sectors, at which the calculation of a geometry changes (the appendix of the
 * specification), and the limits of the format and of its fields.
 */
const LIMITS = [
  17 * 4 * 1024,
  17 * 16 * 1024,
  31 * 16 * 16 * 1024,
  65535 * 16 * 63,
  65535 * 16 * 255,
  127 * GIB,
  2 ** 31,
  2040 * GIB,
  2 ** 32,
  2 * 2040 * GIB,
];

/** The most sectors that an image may declare; see `validateFooter`. */
export const MOST_SECTORS = 2 * 2040 * GIB;
/** A disk whose blocks find room in 2 TiB, in blocks that are not too many to write a table. */
const MOST_WRITABLE = 2 ** 32 - 2 ** 23;
/** Entries of a table that is still written quickly. */
export const MOST_ENTRIES = 40_000;
/** The largest block that we accept, in sectors. */
export const MOST_BLOCK = 64 * MIB;

/** Draws the size of a flat disk, in sectors. */
export function someSectors(random: Random, { mostSectors }: SizeLimits): number {
  return random.chance(0.1) ? 1 + random.below(9) : 1 + random.below(mostSectors);
}

/** Draws the size of a disk and of its blocks. */
export function someShape(random: Random, limits: SizeLimits): Shape {
  const isExtreme = random.chance(limits.extremes);
  const blockSectors = isExtreme && random.chance(0.5)
    ? pick(random, LARGE_BLOCKS)
    : pick(random, USUAL_BLOCKS);
  const wanted = isExtreme
    ? pick(random, LIMITS) + random.below(3) - 1
    : usualSectors(random, blockSectors, limits.mostSectors);
  const { writable } = limits;
  const sectors = Math.max(1, Math.min(wanted, writable ? MOST_WRITABLE : MOST_SECTORS));
  const most = isExtreme ? MOST_ENTRIES : 1024;
  const fitting = Math.max(blockSectors, 2 ** Math.ceil(Math.log2(sectors / most)));
  const block = Math.min(fitting, MOST_BLOCK);
  const blocks = Math.ceil(sectors / block);
  return { sectors, blockSectors: block, entries: blocks + someSpare(random, blocks) };
}

function usualSectors(random: Random, blockSectors: number, mostSectors: number): number {
  const most = Math.max(1, Math.floor(mostSectors / blockSectors));
  switch (random.below(6)) {
    case 0:
      return 1 + random.below(Math.min(mostSectors, 9));
    case 1:
      return Math.min(mostSectors, blockSectors);
    case 2:
      return Math.min(mostSectors, blockSectors + 1);
    case 3:
      return Math.max(1, Math.min(most, 1 + random.below(9)) * blockSectors - 1);
    case 4:
      return Math.min(mostSectors, (1 + random.below(most)) * blockSectors);
    default:
      return 1 + random.below(mostSectors);
  }
}

/** Entries that belong to no block: reserved for growth, or a writer rounded up. */
function someSpare(random: Random, blocks: number): number {
  switch (random.below(6)) {
    case 0:
      return 1;
    case 1:
      return (128 - blocks % 128) % 128;
    case 2:
      return 1 + random.below(300);
    default:
      return 0;
  }
}
