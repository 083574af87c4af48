/**
 * What a log of changed blocks must hold. docs/on-disk-order.md has the promise.
 *
 * @module
 */
import { CBT_BLOCK_BYTES } from "../../../src/cbt/cbt_log.ts";
import { readCbtLog } from "../../../src/cbt/log_file.ts";
import type { Storage } from "../../../src/files/storage.ts";
import type { Moment } from "./model.ts";
import { SECTOR_BYTES } from "./stamps.ts";

const BLOCK_SECTORS = CBT_BLOCK_BYTES / SECTOR_BYTES;

/** A log, and the changes of a disk while it was open with the log. */
export class LogModel {
  /** Blocks for which a change was started: no other block has a bit. */
  readonly #started = new Set<number>();
  /** Blocks with a change that was answered: they have their bits unless the power is cut. */
  readonly #answered = new Set<number>();
  /** Blocks whose bits outlast a power cut. */
  readonly #durable = new Set<number>();

  /** @param sizeBytes The size of the disk. */
  constructor(readonly path: string, public sizeBytes: number) {}

  /** A change was started. */
  started(sector: number, count: number): void {
    addBlocks(this.#started, sector, count);
  }

  /** A change was answered without an error. */
  answered(sector: number, count: number): void {
    addBlocks(this.#answered, sector, count);
  }

  /** The disk was closed, or paused, in order. */
  closedInOrder(): void {
    for (const block of this.#answered) this.#durable.add(block);
  }

  /**
   * Compares the log on a disk with the model.
   *
   * @throws where it lacks a bit or has one too many.
   */
  compare(storage: Storage, moment: Moment): void {
    const { header, bits } = readCbtLog(this.path, { storage });
    const isSet = (block: number): boolean => ((bits[block >> 3] >> (block & 7)) & 1) === 1;
    // A log that says that it is complete is so, whatever happened.
    const isComplete = header.consistent === 1;
    const needed = moment.kind === "cut" && !isComplete ? this.#durable : this.#answered;
    for (const block of needed) {
      if (isSet(block)) continue;
      throw new Error(
        `${this.path} says nothing of block ${block}, which has changed; ` +
          `it says that it is ${isComplete ? "" : "not "}complete`,
      );
    }
    for (let block = 0; block < bits.length * 8; block++) {
      if (!isSet(block) || this.#started.has(block)) continue;
      throw new Error(`${this.path} says that block ${block} has changed, which has not`);
    }
  }
}

function addBlocks(blocks: Set<number>, sector: number, count: number): void {
  const last = Math.floor((sector + count - 1) / BLOCK_SECTORS);
  for (let block = Math.floor(sector / BLOCK_SECTORS); block <= last; block++) blocks.add(block);
}
