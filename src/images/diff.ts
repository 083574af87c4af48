import { type Done, SystemError } from "../../ffi/errno.ts";
import { Arena, equalMemory, memoryAddress, SECTOR_BYTES } from "../../ffi/memory.ts";
import { REQUEST_SECTORS } from "../driver/driver.ts";
import { createEngine, type Engine } from "./engine.ts";
import { OpenImage } from "./open_image.ts";
import { type Piece, type Stretch, walkImage } from "./walk.ts";
import type { WorkOptions } from "./work.ts";
import { eachData } from "./zeros.ts";

/** Slots of a walk are below this. */
const SLOTS = 32;

/** What differs between two disks. */
export interface Difference {
  /** Sizes of the two disks. */
  readonly sizesBytes: readonly [number, number];
  /** Ranges in which they differ, in whole sectors; what only the larger one has is left out. */
  readonly ranges: readonly { readonly offsetBytes: number; readonly lengthBytes: number }[];
}

/**
 * Compares two disks, sector by sector. Holes are zeros, and what both images say is a hole is not
 * read.
 *
 * @throws {SystemError} errors of the images; ECANCELED for a comparison that was cancelled.
 */
export async function diffImages(
  first: string,
  second: string,
  options: WorkOptions = {},
): Promise<Difference> {
  const engine = createEngine(() => {});
  try {
    const one = await OpenImage.open(engine, first, { readOnly: true });
    try {
      const other = await OpenImage.open(engine, second, { readOnly: true });
      try {
        const ranges = await compare(engine, { one, other, options });
        const sizesBytes = [one.sectors * SECTOR_BYTES, other.sectors * SECTOR_BYTES] as const;
        return { sizesBytes, ranges };
      } finally {
        await other.close(engine);
      }
    } finally {
      await one.close(engine);
    }
  } finally {
    engine.close();
  }
}

async function compare(
  engine: Engine,
  { one, other, options }: { one: OpenImage; other: OpenImage; options: WorkOptions },
): Promise<Difference["ranges"]> {
  const sectors = Math.min(one.sectors, other.sectors);
  const found: Stretch[] = [];
  const compared = new Comparison(other, found);
  const holes: Stretch[] = [];
  try {
    await walkImage(engine, {
      source: one,
      ranges: [{ sector: 0, count: sectors }],
      operations: other.operations,
      ...options,
      stretch: (stretch, isData) => void (isData || holes.push(stretch)),
      take: (piece, done) => compared.take(piece, done),
    });
    // Where the other disk holds something that is not zeros.
    await walkImage(engine, {
      source: other,
      ranges: holes,
      ...options,
      take({ sector, bytes, memorySector }, done): void {
        const add = (from: number, count: number): void =>
          void found.push({ sector: sector + from, count });
        eachData(bytes, { unitSectors: 1, memorySector }, add);
        done(null);
      },
    });
  } finally {
    compared.release();
  }
  return joined(found).map(({ sector, count }) => ({
    offsetBytes: sector * SECTOR_BYTES,
    lengthBytes: count * SECTOR_BYTES,
  }));
}

/** Ranges in order, those that touch joined. */
function joined(found: readonly Stretch[]): Stretch[] {
  const list: { sector: number; count: number }[] = [];
  for (const { sector, count } of [...found].sort((a, b) => a.sector - b.sector)) {
    const last = list.at(-1);
    if (last !== undefined && last.sector + last.count === sector) last.count += count;
    else list.push({ sector, count });
  }
  return list;
}

/** Reads of the other disk what was read of one, and compares. */
class Comparison {
  readonly #other: OpenImage;
  readonly #found: Stretch[];
  readonly #arena = new Arena(SLOTS * REQUEST_SECTORS * SECTOR_BYTES);
  readonly #ends: ((errno: number) => void)[] = [];

  constructor(other: OpenImage, found: Stretch[]) {
    this.#other = other;
    this.#found = found;
  }

  take({ slot, sector, count, memorySector }: Piece, done: Done): void {
    const at = this.#arena.sector + slot * REQUEST_SECTORS;
    this.#ends[slot] = (errno) => {
      if (errno !== 0) {
        const what = `Cannot read sector ${sector} of ${this.#other.name}`;
        return done(new SystemError(errno, what));
      }
      this.#compare(sector, count, memorySector, at);
      done(null);
    };
    this.#other.user = { requestDone: (ended, errno) => this.#ends[ended](errno) };
    this.#other.read(slot, sector, count, at);
  }

  #compare(sector: number, count: number, a: number, b: number): void {
    const same = (at: number, sectors: number): boolean =>
      equalMemory(memoryAddress(a + at), memoryAddress(b + at), sectors * SECTOR_BYTES);
    if (same(0, count)) return;
    for (let at = 0; at < count; at++) {
      if (!same(at, 1)) this.#found.push({ sector: sector + at, count: 1 });
    }
  }

  release(): void {
    this.#arena.release();
  }
}
