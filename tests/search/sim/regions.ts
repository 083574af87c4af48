/**
 * The sectors that a world looks at: a few hundred, near the places where code goes wrong.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";

/** A range of sectors. */
export interface Region {
  readonly sector: number;
  readonly count: number;
}

/** Sectors of a bitmap sector: each bit is a sector. */
const BITMAP_SECTOR = 4096;
/** Blocks that one sector of the BAT names. */
const BAT_SECTOR = 128;
const WIDTH = 48;

/** Chooses the regions of a disk. They do not overlap. */
export function chooseRegions(
  random: Random,
  { sectors, blockSectors, near = [] }: {
    sectors: number;
    blockSectors: number;
    /** Further places of interest. */
    near?: readonly number[];
  },
): Region[] {
  const blocks = Math.ceil(sectors / blockSectors);
  const middles = [
    ...near,
    0,
    sectors,
    sectors - blockSectors,
    blockSectors,
    2 * blockSectors,
    random.below(blocks) * blockSectors,
    random.below(blocks) * blockSectors + random.below(blockSectors),
    BAT_SECTOR * blockSectors,
    BITMAP_SECTOR * (1 + random.below(8)),
    random.below(Math.min(sectors, 0x7fff_ffff)),
    2 ** 31,
    2 ** 32,
    random.chance(0.5) ? 2 ** 32 + random.below(1000) * blockSectors : 2 ** 30,
  ];
  const regions: Region[] = [];
  for (const middle of middles) {
    const width = 2 * (4 + random.below(WIDTH / 2));
    const sector = Math.max(0, Math.min(sectors - width, Math.floor(middle - width / 2)));
    const end = Math.min(sectors, sector + width);
    if (middle < 0 || middle > sectors || end <= sector) continue;
    if (regions.some((other) => sector < other.sector + other.count && other.sector < end)) {
      continue;
    }
    regions.push({ sector, count: end - sector });
  }
  return regions.sort((a, b) => a.sector - b.sector);
}

/** The parts of regions within a range. */
export function* within(regions: readonly Region[], range: Region): Generator<Region> {
  const rangeEnd = range.sector + range.count;
  for (const region of regions) {
    const sector = Math.max(region.sector, range.sector);
    const end = Math.min(region.sector + region.count, rangeEnd);
    if (end > sector) yield { sector, count: end - sector };
  }
}
