import { Errno, SystemError } from "../../ffi/errno.ts";
import type { ProgressListener } from "../files/progress.ts";
import { countSet } from "../vhd/format/bitmap.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import type { BulkContext, BulkContextMaker } from "./bulk_context.ts";
import { type HiddenStretch, type Layer, mayHold, shownLayers } from "./layers.ts";
import type { Target } from "./target.ts";
import { Unit } from "./unit.ts";

/** Data that is under way at once, unless a single block is larger. */
const BYTES_AT_ONCE = 8 * 1024 * 1024;
const MOST_UNITS = 64;
/** Operations besides those that data takes: bitmaps, BAT, syncs. */
const SPARE_OPERATIONS = 8192;

/** What is moved where. */
export interface Move {
  /** Topmost first; a flat one ends the list. */
  readonly layers: readonly Layer[];
  readonly target: Target;
  /** Sectors that become zeros where no layer holds them; see `hiddenStretch`. */
  readonly hidden?: HiddenStretch;
  /** Changes data on its way, in place: whole sectors, from this one of the disk on. */
  readonly transform?: (bytes: Uint8Array<ArrayBuffer>, sector: number) => void;
  readonly onProgress?: ProgressListener;
  /** Calls the work off: nothing more is begun, and it fails with ECANCELED. */
  readonly signal?: AbortSignal;
}

/** Throws `SystemError` ECANCELED when the work was called off. */
export function refuseAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return;
  throw stopped();
}

function stopped(): SystemError {
  return new SystemError(Errno.ECANCELED, "Stopped before the end");
}

/** How many operations moving data in units of so many sectors can have under way. */
function operationsFor(): number {
  // At worst every sector is a piece of its own, to be read or to be written.
  const unitBytes = 64 * 1024 * 1024;
  return Math.max(BYTES_AT_ONCE, unitBytes) / VHD_SECTOR_SIZE + SPARE_OPERATIONS;
}

/** Opens a context with room for any {@linkcode moveData}. */
export function openMover(make: BulkContextMaker): BulkContext {
  return make(operationsFor());
}

/**
 * Writes to the target every sector that one of the layers holds, as the topmost of those has it.
 * What no layer holds is left as it is, or becomes zeros where `hidden` says so.
 *
 * @returns How many sectors that are.
 * @throws {SystemError} when reading or writing fails, ECANCELED when it is called off; what was
 * written by then stays.
 */
export async function moveData(context: BulkContext, move: Move): Promise<number> {
  const mover = new Mover(context, move);
  try {
    await context.run((finished) => mover.start(finished));
  } finally {
    mover.release();
  }
  return mover.result();
}

class Mover {
  readonly #move: Move;
  readonly #units: Unit[] = [];
  /** The next stretch to look at. */
  #next = 0;
  readonly #total: number;
  #underWay = 0;
  #moved = 0;
  #error: unknown = null;
  #finished: () => void = () => {};

  constructor(context: BulkContext, move: Move) {
    const layers = shownLayers(move.layers);
    this.#move = { ...move, layers };
    const { target, hidden } = move;
    const { unitSectors, bitmapBytes } = target;
    this.#total = Math.ceil(target.sizeSectors / unitSectors);
    const most = Math.floor(BYTES_AT_ONCE / (unitSectors * VHD_SECTOR_SIZE));
    const count = Math.min(MOST_UNITS, Math.max(1, most), Math.max(1, this.#total));
    for (let i = 0; i < count; i++) {
      this.#units.push(
        new Unit(context.queue, { layers, sectors: unitSectors, bitmapBytes, hidden }),
      );
    }
  }

  start(finished: () => void): void {
    this.#finished = finished;
    // One more than there are, so that the end is not seen before all have started.
    this.#underWay = this.#units.length + 1;
    for (const unit of this.#units) this.#feed(unit);
    this.#unitIdle();
  }

  /** How many sectors were moved. Throws what went wrong. */
  result(): number {
    if (this.#error !== null) throw this.#error;
    return this.#moved;
  }

  /** Gives a unit its next stretch, or lets it rest when there is none. */
  #feed(unit: Unit): void {
    const { layers, target, hidden, onProgress, signal } = this.#move;
    if (signal?.aborted === true) this.#fail(stopped());
    while (this.#error === null && this.#next < this.#total) {
      const sector = this.#next++ * target.unitSectors;
      const end = Math.min(sector + target.unitSectors, target.sizeSectors);
      const isHidden = hidden !== undefined && sector < hidden.end && end > hidden.sector;
      if (isHidden || layers.some((layer) => mayHold(layer, sector, end))) {
        unit.assign(sector, end);
        onProgress?.(this.#next - 1, this.#total);
        return this.#readBitmaps(unit);
      }
    }
    this.#unitIdle();
  }

  #readBitmaps(unit: Unit): void {
    const { target } = this.#move;
    unit.phase(() => {
      unit.readBitmaps();
      target.prepare(unit);
    }, (errno) => this.#step(errno, unit, () => this.#readData(unit)));
  }

  #readData(unit: Unit): void {
    unit.phase(
      () => unit.readData(),
      (errno) => this.#step(errno, unit, () => this.#write(unit)),
    );
  }

  #write(unit: Unit): void {
    const sectors = countSet(unit.covered, unit.end - unit.sector);
    if (sectors === 0) return this.#feed(unit);
    if (this.#move.transform !== undefined) unit.eachData(this.#move.transform);
    this.#move.target.write(unit, (errno) =>
      this.#step(errno, unit, () => {
        this.#moved += sectors;
        this.#feed(unit);
      }));
  }

  /** Goes on unless something went wrong, in `then` too. */
  #step(errno: number, unit: Unit, then: () => void): void {
    if (errno !== 0) {
      const at = unit.sector * VHD_SECTOR_SIZE;
      this.#fail(new SystemError(errno, `Cannot move the data at byte ${at} of the disk`));
      return this.#unitIdle();
    }
    try {
      then();
    } catch (error) {
      this.#fail(error);
      this.#unitIdle();
    }
  }

  #fail(error: unknown): void {
    this.#error ??= error ?? new SystemError(Errno.EIO, "Cannot move the data");
  }

  #unitIdle(): void {
    if (--this.#underWay > 0) return;
    this.#move.target.finish((errno) => {
      if (errno !== 0) this.#fail(new SystemError(errno, "Cannot write the block table"));
      this.#move.onProgress?.(this.#total, this.#total);
      this.#finished();
    });
  }

  release(): void {
    for (const unit of this.#units) unit.release();
    this.#move.target.release();
  }
}
