/**
 * Where the structures of an image lie in its file. The format allows each of them anywhere behind
 * the first sector.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";

/** The kinds of structures that are placed. */
export type PartKind = "header" | "table" | "map" | "locator" | "block";

/** A structure to be placed. */
export interface Part {
  readonly kind: PartKind;
  /** The number of the block or locator; 0 for others. */
  readonly index: number;
  readonly sectors: number;
  /** Sectors of a block in front of its data. */
  readonly bitmapSectors: number;
}

/** A structure in its place. */
export interface PlacedPart extends Part {
  readonly sector: number;
}

/** The structures in their places. */
export interface FileLayout {
  readonly parts: readonly PlacedPart[];
  /** The first sector behind all of them. */
  readonly endSector: number;
  /** The order, in words. */
  readonly what: string;
}

function shuffle<T>(random: Random, list: T[]): void {
  for (let i = list.length - 1; i > 0; i--) {
    const other = random.below(i + 1);
    [list[i], list[other]] = [list[other], list[i]];
  }
}

/** The sectors that blocks must end in front of, so that an entry of the table can name them. */
const MOST_SECTOR = 2 ** 32 - 2;

interface Order {
  readonly parts: Part[];
  readonly what: string;
}

/** Orders the structures. A map lies behind the table, as its header is there. */
function someOrder(random: Random, parts: readonly Part[]): Order {
  const of = (...kinds: PartKind[]): Part[] => parts.filter(({ kind }) => kinds.includes(kind));
  const blocks = of("block");
  if (random.chance(0.6)) shuffle(random, blocks);
  switch (random.below(6)) {
    case 0:
      return {
        parts: [...blocks, ...of("header", "table", "map", "locator")],
        what: "blocks first",
      };
    case 1:
      return {
        parts: [...of("header", "locator"), ...blocks, ...of("table", "map")],
        what: "table last",
      };
    case 2:
      return {
        parts: [...of("table", "map"), ...blocks, ...of("locator", "header")],
        what: "header last",
      };
    case 3: {
      const all = [...parts];
      shuffle(random, all);
      const map = all.findIndex(({ kind }) => kind === "map");
      const table = all.findIndex(({ kind }) => kind === "table");
      if (map >= 0 && map < table) [all[map], all[table]] = [all[table], all[map]];
      return { parts: all, what: "any order" };
    }
    default:
      return {
        parts: [...of("header", "table", "map", "locator"), ...blocks],
        what: "usual order",
      };
  }
}

/**
 * Places the structures of an image.
 *
 * @param far Whether blocks may lie near the end of what a table can point to.
 */
export function someLayout(
  random: Random,
  parts: readonly Part[],
  { far }: { far: boolean },
): FileLayout {
  const order = someOrder(random, parts);
  const aligns = random.chance(0.5);
  const gaps = random.chance(0.4);
  const total = order.parts.reduce((sum, { sectors }) => sum + sectors + 40, 0);
  const blocks = order.parts.filter(({ kind }) => kind === "block").length;
  const jumpAt = far && blocks > 0 ? random.below(order.parts.length) : -1;
  const placed: PlacedPart[] = [];
  let end = 1;
  for (const [number, part] of order.parts.entries()) {
    if (number === jumpAt) end = jump(random, total);
    if (gaps && random.chance(0.4)) end += random.below(20);
    if (aligns && part.kind === "block") end += (8 - (end + part.bitmapSectors) % 8) % 8;
    placed.push({ ...part, sector: end });
    end += part.sectors;
  }
  const notes = [aligns ? "aligned" : "", gaps ? "gaps" : "", jumpAt >= 0 ? "far" : ""];
  const what = [order.what, ...notes.filter((note) => note !== "")].join(", ");
  return { parts: placed, endSector: end, what };
}

/** A sector behind 2 TiB / 2, or so far behind that the rest just fits. */
function jump(random: Random, sectorsBehind: number): number {
  const last = MOST_SECTOR - sectorsBehind - 8;
  return random.chance(0.5) ? 2 ** 31 - random.below(300) : last - random.below(1000);
}
