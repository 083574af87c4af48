import { layerOf } from "./buckets.ts";
import type { LayerExtent } from "./descriptions.ts";

/** Which image holds what of a disk, as runs of equal units; not more of them than a picture can carry. */
export interface Runs {
  /** A power of two. Every run begins and ends at a multiple, but for the end of the disk. */
  readonly unitBytes: number;
  /** Whether parts of units were rounded: such a unit is shown as the image's that holds most of it. */
  readonly isRounded: boolean;
  /** Length in units and layer of each run, from the start of the disk; -1 where no image holds data. */
  readonly runs: readonly (readonly [units: number, layer: number])[];
}

const SECTOR_BYTES = 512;
/** Every level is so many times as coarse as the one before. */
const STEP = 16;

/** Gathers runs in units of one size, until there are too many of them. */
class Level {
  readonly #held: Float64Array;
  #runs: [number, number][] | null = [];
  /** The unit of `#held`, and whether something was counted in it. */
  #unit = 0;
  #hasPart = false;
  isRounded = false;

  constructor(readonly unitBytes: number, readonly layerCount: number, readonly most: number) {
    this.#held = new Float64Array(layerCount);
  }

  get runs(): readonly (readonly [number, number])[] | null {
    return this.#runs;
  }

  /** Takes the next range with data. */
  add(offsetBytes: number, endBytes: number, layer: number): void {
    for (let at = offsetBytes; this.#runs !== null && at < endBytes;) {
      const unit = Math.floor(at / this.unitBytes);
      if (unit !== this.#unit) this.#settle(unit);
      const isWhole = at === unit * this.unitBytes && endBytes - at >= this.unitBytes;
      if (isWhole) {
        const units = Math.floor((endBytes - at) / this.unitBytes);
        this.#append(units, layer);
        this.#unit += units;
        at += units * this.unitBytes;
      } else {
        const end = Math.min(endBytes, (unit + 1) * this.unitBytes);
        this.#held[layer] += end - at;
        this.#hasPart = true;
        at = end;
      }
    }
  }

  /** The end of the disk: the last unit may be shorter. */
  end(sizeBytes: number): void {
    const units = Math.ceil(sizeBytes / this.unitBytes);
    const lastBytes = sizeBytes - (units - 1) * this.unitBytes;
    if (this.#hasPart && this.#unit === units - 1) this.#closeUnit(lastBytes);
    this.#settle(units);
  }

  /** Ends the unit that was counted, and goes on to another. */
  #settle(unit: number): void {
    if (this.#hasPart) this.#closeUnit(this.unitBytes);
    if (unit > this.#unit) this.#append(unit - this.#unit, -1);
    this.#unit = unit;
  }

  #closeUnit(unitBytes: number): void {
    let best = 0;
    for (let layer = 1; layer < this.layerCount; layer++) {
      if (this.#held[layer] > this.#held[best]) best = layer;
    }
    if (this.#held[best] < unitBytes) this.isRounded = true;
    this.#held.fill(0);
    this.#hasPart = false;
    this.#append(1, best);
    this.#unit++;
  }

  #append(units: number, layer: number): void {
    const runs = this.#runs;
    if (runs === null) return;
    const last = runs.at(-1);
    if (last !== undefined && last[1] === layer) last[0] += units;
    else if (runs.length >= this.most) this.#runs = null;
    else runs.push([units, layer]);
  }
}

/**
 * Gathers which image holds what, in one walk over the disk. The units are sectors where that makes few
 * enough runs; otherwise they are as small as they can be.
 */
export class RunGatherer {
  readonly #levels: Level[] = [];
  readonly #sizeBytes: number;
  readonly #layerCount: number;

  /** @param plan With `most`, how many runs there may be. */
  constructor(plan: { sizeBytes: number; layerCount: number; most: number }) {
    const { sizeBytes, layerCount, most } = plan;
    this.#sizeBytes = sizeBytes;
    this.#layerCount = layerCount;
    for (let unitBytes = SECTOR_BYTES;; unitBytes *= STEP) {
      this.#levels.push(new Level(unitBytes, layerCount, most));
      // So many units cannot make more runs.
      if (Math.ceil(sizeBytes / unitBytes) <= most) break;
    }
  }

  /** Takes the next range: in rising order. */
  add(extent: LayerExtent): void {
    const layer = layerOf(extent, this.#layerCount);
    if (layer < 0) return;
    const end = Math.min(this.#sizeBytes, extent.offsetBytes + extent.lengthBytes);
    for (const level of this.#levels) level.add(extent.offsetBytes, end, layer);
  }

  /** The runs of all that was taken. Called once. */
  end(): Runs {
    for (const level of this.#levels) level.end(this.#sizeBytes);
    for (const { unitBytes, isRounded, runs } of this.#levels) {
      if (runs !== null) return { unitBytes, isRounded, runs };
    }
    throw new Error("The coarsest level has few enough runs");
  }
}
