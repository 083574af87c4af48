import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import { Arena, SECTOR_BYTES } from "../../ffi/memory.ts";
import { REQUEST_SECTORS, REQUEST_SLOTS } from "../driver/driver.ts";
import type { ProgressListener } from "../files/progress.ts";
import type { Engine } from "./engine.ts";
import type { OpenImage } from "./open_image.ts";

/** Requests under way, where the images have room for so many. */
const MOST_SLOTS = 16;
/** Operations of the disk queue that all requests may take. */
const MOST_OPERATIONS = 24000;
/** The slot of questions for extents. */
const STATUS_SLOT = REQUEST_SLOTS - 1;
/** Sectors of one such question: 256 MiB. */
const STATUS_SECTORS = 1 << 19;

/** Stretches of data that may be known ahead of the reads; a question can find many more. */
const MOST_FOUND = 16;

/** Sectors of a disk in I/O memory. */
export interface Piece {
  /** The request; no other one under way has this number. */
  readonly slot: number;
  readonly sector: number;
  readonly count: number;
  readonly memorySector: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** A range of a disk. */
export interface Stretch {
  readonly sector: number;
  readonly count: number;
}

/** A walk over a disk. */
export interface Walk {
  readonly source: OpenImage;
  /** Parts of the disk, in rising order; all of it by default. */
  readonly ranges?: readonly Stretch[];
  /** Operations that a request of the largest size needs beside reading. */
  readonly operations?: number;
  /** The most requests under way. */
  readonly slots?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: ProgressListener;
  /** Is told of each stretch, data or hole, in rising order. Without `take` nothing is read. */
  stretch?(stretch: Stretch, isData: boolean): void;
  /**
   * Takes sectors of a stretch of data that have been read; requests may overtake each other. Calls
   * `done`, with null or an error, when the memory can be used again.
   */
  take?(piece: Piece, done: Done): void;
}

/**
 * Finds out what a disk holds, and reads it, many requests at once.
 *
 * @throws {SystemError} for a request that fails; ECANCELED when the walk is cancelled.
 */
export async function walkImage(engine: Engine, walk: Walk): Promise<void> {
  const walker = new Walker(walk);
  try {
    await engine.run((finished) => walker.start(finished));
  } finally {
    walker.release();
  }
  walker.throwError();
}

class Walker {
  readonly #walk: Walk;
  readonly #arena: Arena;
  readonly #sectorOf: Float64Array;
  readonly #countOf: Int32Array;
  readonly #idle: number[] = [];
  /** Stretches of data that were found and not read yet, the next one first. */
  readonly #found: { sector: number; count: number }[] = [];
  /** Ranges that are left, the one in which extents are being found first. */
  readonly #ranges: readonly Stretch[];
  #range = 0;
  /** Up to here extents are known. */
  #known = 0;
  #isAsking = false;
  #underWay = 0;
  #error: unknown = null;
  #isGoing = false;
  #goesOn = false;
  #finished: (() => void) | null = null;

  constructor(walk: Walk) {
    const { source, operations = 0, slots: wanted = MOST_SLOTS } = walk;
    this.#walk = walk;
    const all = walk.ranges ?? [{ sector: 0, count: source.sectors }];
    this.#ranges = all.filter(({ count }) => count > 0);
    this.#known = this.#ranges[0]?.sector ?? 0;
    const affordable = Math.floor(MOST_OPERATIONS / Math.max(1, source.operations + operations));
    const slots = Math.max(1, Math.min(wanted, affordable));
    this.#arena = new Arena(walk.take === undefined ? 0 : slots * REQUEST_SECTORS * SECTOR_BYTES);
    this.#sectorOf = new Float64Array(slots);
    this.#countOf = new Int32Array(slots);
    for (let slot = slots - 1; slot >= 0; slot--) this.#idle.push(slot);
  }

  start(finished: () => void): void {
    this.#finished = finished;
    this.#walk.source.user = {
      requestDone: (slot, errno) => {
        if (slot === STATUS_SLOT) this.#asked(errno);
        else this.#readDone(slot, errno);
      },
      extent: (_slot, sectors, isData) => this.#extent(sectors, isData),
    };
    this.#go();
  }

  /** Where the range ends in which extents are being found. */
  get #endOfRange(): number {
    const range = this.#ranges[this.#range];
    return range === undefined ? 0 : range.sector + range.count;
  }

  #extent(count: number, isData: boolean): void {
    const stretch = { sector: this.#known, count };
    this.#known += count;
    if (this.#known >= this.#endOfRange) {
      this.#known = this.#ranges[++this.#range]?.sector ?? Infinity;
    }
    try {
      this.#walk.stretch?.(stretch, isData);
    } catch (error) {
      // It must not end the work of the driver that calls this.
      this.#error ??= error;
    }
    if (!isData || this.#walk.take === undefined) return;
    const last = this.#found.at(-1);
    if (last !== undefined && last.sector + last.count === stretch.sector) last.count += count;
    else this.#found.push(stretch);
  }

  #asked(errno: number): void {
    this.#isAsking = false;
    if (errno !== 0) this.#failed(errno, "find the data of");
    this.#go();
  }

  /** Starts what can be started. Requests may end within the call that starts them. */
  #go(): void {
    this.#goesOn = true;
    if (this.#isGoing) return;
    this.#isGoing = true;
    while (this.#goesOn) {
      this.#goesOn = false;
      this.#startSome();
    }
    this.#isGoing = false;
    const isOver = this.#error !== null ||
      (this.#found.length === 0 && this.#range >= this.#ranges.length);
    if (!isOver || this.#underWay > 0 || this.#isAsking) return;
    this.#finished?.();
    this.#finished = null;
  }

  #startSome(): void {
    const { source, signal, onProgress } = this.#walk;
    if (signal?.aborted === true) {
      this.#error ??= new SystemError(Errno.ECANCELED, "Stopped before the end");
    }
    while (this.#error === null && this.#found.length > 0) {
      const slot = this.#idle.pop();
      if (slot === undefined) break;
      const [next] = this.#found;
      const count = Math.min(next.count, REQUEST_SECTORS - next.sector % REQUEST_SECTORS);
      this.#sectorOf[slot] = next.sector;
      this.#countOf[slot] = count;
      next.sector += count;
      next.count -= count;
      if (next.count === 0) this.#found.shift();
      this.#underWay++;
      source.read(slot, this.#sectorOf[slot], count, this.#memoryOf(slot));
    }
    const { sectors } = source;
    onProgress?.(this.#found[0]?.sector ?? Math.min(this.#known, sectors), sectors);
    const isKnown = this.#range >= this.#ranges.length;
    if (this.#error !== null || this.#isAsking || isKnown) return;
    if (this.#found.length > MOST_FOUND) return;
    this.#isAsking = true;
    source.status(
      STATUS_SLOT,
      this.#known,
      Math.min(STATUS_SECTORS, this.#endOfRange - this.#known),
    );
  }

  #memoryOf(slot: number): number {
    return this.#arena.sector + slot * REQUEST_SECTORS;
  }

  #readDone(slot: number, errno: number): void {
    if (errno !== 0) {
      this.#failed(errno, `read sector ${this.#sectorOf[slot]} of`);
      return this.#free(slot);
    }
    const count = this.#countOf[slot];
    const start = slot * REQUEST_SECTORS * SECTOR_BYTES;
    const bytes = this.#arena.bytes.subarray(start, start + count * SECTOR_BYTES);
    const sector = this.#sectorOf[slot];
    const piece = { slot, sector, count, memorySector: this.#memoryOf(slot), bytes };
    try {
      this.#walk.take?.(piece, (error) => {
        this.#error ??= error;
        this.#free(slot);
      });
    } catch (error) {
      this.#error ??= error;
      this.#free(slot);
    }
  }

  #free(slot: number): void {
    this.#underWay--;
    this.#idle.push(slot);
    this.#go();
  }

  #failed(errno: number, what: string): void {
    this.#error ??= new SystemError(errno, `Cannot ${what} ${this.#walk.source.name}`);
  }

  throwError(): void {
    if (this.#error !== null) throw this.#error;
  }

  release(): void {
    this.#arena.release();
  }
}
