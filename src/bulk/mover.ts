import { Errno, SystemError } from "../../ffi/errno.ts";
import type { ProgressListener } from "../files/progress.ts";
import { countSet } from "../vhd/format/bitmap.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import type { BulkContext, BulkContextMaker } from "./bulk_context.ts";
import { type HiddenStretch, type Layer, mayHold, shownLayers } from "./layers.ts";
import type { Target } from "./target.ts";
import { Unit } from "./unit.ts";

/** The amount of data in flight, unless a single block is larger. */
const BYTES_AT_ONCE = 8 * 1024 * 1024;
const MOST_UNITS = 64;
/** Further operations in flight: bitmaps, BAT, syncs. */
const SPARE_OPERATIONS = 8192;

/** The source and target of a move. */
export interface Move {
  /** Topmost first. A flat layer is always the last. */
  readonly layers: readonly Layer[];
  readonly target: Target;
  /** Sectors that become zeros when no layer holds them; see `hiddenStretch`. */
  readonly hidden?: HiddenStretch;
  /**
   * Changes the data in place between read and write. It gets whole sectors and the first one's
   * number on the disk.
   */
  readonly transform?: (bytes: Uint8Array<ArrayBuffer>, sector: number) => void;
  readonly onProgress?: ProgressListener;
  /** Cancels the move: no operation is started any more, and the move fails with ECANCELED. */
  readonly signal?: AbortSignal;
}

/** Throws `SystemError` ECANCELED when the operation was cancelled. */
export function refuseAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return;
  throw stopped();
}

function stopped(): SystemError {
  return new SystemError(Errno.ECANCELED, "Stopped before the end");
}

/** The largest number of operations in flight of a move. */
function operationsFor(): number {
  // In the worst case every sector is a separate read or write.
  const unitBytes = 64 * 1024 * 1024;
  return Math.max(BYTES_AT_ONCE, unitBytes) / VHD_SECTOR_SIZE + SPARE_OPERATIONS;
}

/** Opens a context with enough operations for any {@linkcode moveData}. */
export function openMover(make: BulkContextMaker): BulkContext {
  return make(operationsFor());
}

/**
 * Writes every sector that a layer holds to the target. The topmost layer that holds a sector
 * supplies its data. Sectors that no layer holds stay as they are, or become zeros within `hidden`.
 *
 * @returns The number of sectors.
 * @throws {SystemError} when a read or write fails; ECANCELED when the move is cancelled. The data
 * that was written stays.
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
  /** The number of the next unit of the disk. */
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
    // One more than the units, so that the end is not detected before all have started.
    this.#underWay = this.#units.length + 1;
    for (const unit of this.#units) this.#feed(unit);
    this.#unitIdle();
  }

  /** The number of sectors that were moved. Throws the first error. */
  result(): number {
    if (this.#error !== null) throw this.#error;
    return this.#moved;
  }

  /** Assigns the next part of the disk to a unit. Without one, the unit is idle. */
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

  /** Calls `then`, unless an error occurred. Errors of `then` are caught too. */
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
