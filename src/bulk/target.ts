import type { DiskFile } from "../queue/disk_files.ts";
import type { DiskQueue } from "../queue/disk_queue.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import type { Unit } from "./unit.ts";

/** The target of a move. */
export interface Target {
  /** Sectors of a unit. `sizeSectors` is the size of the disk. */
  readonly unitSectors: number;
  readonly sizeSectors: number;
  /** Bytes of a block's bitmap; 0 for a flat target. */
  readonly bitmapBytes: number;
  /** Starts the reads that must end before the unit can be written, as part of a phase. */
  prepare(unit: Unit): void;
  /** Writes the unit's data. Calls back with an error number. */
  write(unit: Unit, done: (errno: number) => void): void;
  /** Completes the writes. Calls back once all data can be read from the target. */
  finish(done: (errno: number) => void): void;
  release(): void;
}

const FLAT_UNIT_BYTES = 2 * 1024 * 1024;

/** A flat target: a raw image, or a fixed VHD. */
export class FlatTarget implements Target {
  readonly unitSectors = FLAT_UNIT_BYTES / VHD_SECTOR_SIZE;
  readonly bitmapBytes = 0;
  readonly #disk: DiskFile;
  readonly #queue: DiskQueue;

  /** @param sizeSectors The size of the disk. A raw file grows when its child is larger. */
  constructor(disk: DiskFile, queue: DiskQueue, readonly sizeSectors: number) {
    this.#disk = disk;
    this.#queue = queue;
  }

  prepare(_unit: Unit): void {}

  write(unit: Unit, done: (errno: number) => void): void {
    unit.phase(() => writeRuns(unit, this.#disk.file, unit.sector * VHD_SECTOR_SIZE), done);
  }

  finish(done: (errno: number) => void): void {
    this.#queue.sync(this.#disk.file, { ioDone: (_token, _length, errno) => done(errno) }, 0);
  }

  release(): void {}
}

/** Starts to write all covered runs of a unit. The unit's first sector goes to `offsetBytes`. */
export function writeRuns(unit: Unit, file: number, offsetBytes: number): void {
  unit.eachRun((from, end) => {
    const at = from * VHD_SECTOR_SIZE;
    const lengthBytes = (end - from) * VHD_SECTOR_SIZE;
    unit.write(file, offsetBytes + at, lengthBytes, unit.address + at);
  });
}
