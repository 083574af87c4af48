import type { DiskFile } from "../queue/disk_files.ts";
import { SECTOR_BYTES } from "./driver.ts";

/** How far to look for the end of a run: farther than a file is long. */
const FAR_BYTES = 2 ** 50;
/** Shorter holes count as data: to read their zeros is quicker than to read around them. */
const LEAST_HOLE_SECTORS = 128;

/**
 * Tells data from holes in the file of an image that is not written. The run that was found last is
 * remembered: to find its end may take the file system as long as the run is.
 */
export class FileRuns {
  readonly #file: Pick<DiskFile, "allocatedRun">;
  /** The run that was found last, in sectors of the file. */
  #start = 0;
  #end = 0;
  #isData = true;

  constructor(file: Pick<DiskFile, "allocatedRun">) {
    this.#file = file;
  }

  /** How many of `count` sectors from one of the file on are alike: positive for data, negative for a hole. */
  at(sector: number, count: number): number {
    if (sector < this.#start || sector >= this.#end) this.#find(sector);
    const run = Math.min(count, this.#end - sector);
    return this.#isData || this.#end - this.#start < LEAST_HOLE_SECTORS ? run : -run;
  }

  #find(sector: number): void {
    const run = this.#file.allocatedRun(sector * SECTOR_BYTES, FAR_BYTES) / SECTOR_BYTES;
    this.#isData = run > 0;
    this.#start = sector;
    this.#end = sector + Math.abs(run);
  }
}
