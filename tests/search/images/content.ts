/**
 * What a virtual disk holds: the stamp of each sector (see `tests/search/sim/stamps.ts`), 0 for a sector of zeros. Only the parts that were written take memory, so a
 * disk may have terabytes.
 *
 * @module
 */

/** Sectors with one stamp. */
export interface Run {
  readonly sector: number;
  readonly count: number;
  readonly stamp: number;
}

const PART_SECTORS = 256;

/** The stamps of a disk's sectors. */
export class Content {
  readonly #parts = new Map<number, Int32Array>();

  constructor(readonly sectors: number) {}

  /** Writes a stamp; 0 for zeros. Sectors past the end of the disk are left out. */
  put(sector: number, count: number, stamp: number): void {
    const end = Math.min(sector + count, this.sectors);
    for (let at = sector; at < end;) {
      const number = Math.floor(at / PART_SECTORS);
      const partEnd = Math.min(end, (number + 1) * PART_SECTORS);
      const part = this.#parts.get(number) ?? (stamp === 0 ? undefined : this.#newPart(number));
      part?.fill(stamp, at - number * PART_SECTORS, partEnd - number * PART_SECTORS);
      at = partEnd;
    }
  }

  #newPart(number: number): Int32Array {
    const part = new Int32Array(PART_SECTORS);
    this.#parts.set(number, part);
    return part;
  }

  /** The stamp of a sector. */
  at(sector: number): number {
    const number = Math.floor(sector / PART_SECTORS);
    return this.#parts.get(number)?.[sector - number * PART_SECTORS] ?? 0;
  }

  /** The sectors that are not zero, in rising order, in runs as long as possible. */
  runs(): Run[] {
    const runs: Run[] = [];
    for (const number of [...this.#parts.keys()].sort((a, b) => a - b)) {
      const part = this.#parts.get(number) ?? [];
      for (const [index, stamp] of part.entries()) {
        if (stamp === 0) continue;
        const sector = number * PART_SECTORS + index;
        const last = runs.at(-1);
        if (last !== undefined && last.stamp === stamp && last.sector + last.count === sector) {
          runs[runs.length - 1] = { ...last, count: last.count + 1 };
        } else runs.push({ sector, count: 1, stamp });
      }
    }
    return runs;
  }

  /** This content on a disk of another size: what is past the end is gone. */
  resized(sectors: number): Content {
    const copy = new Content(sectors);
    for (const { sector, count, stamp } of this.runs()) {
      if (sector < sectors) copy.put(sector, count, stamp);
    }
    return copy;
  }
}
