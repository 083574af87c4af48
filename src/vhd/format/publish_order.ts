import { assert } from "../../../ffi/assert.ts";

/**
 * The order in which every writer of blocks must write:
 *
 * 1. the data and bitmap of a new block are written;
 * 2. a sync makes them durable;
 * 3. only then is the BAT's sector that points at the block submitted to the disk.
 *
 * After a power cut before step 3, the image does not have the block. After step 3, it has the
 * whole block. A writer keeps the stamp of a block from step 1 and passes it at step 3. Nothing is
 * allocated.
 */
export class PublishOrder {
  /** Number of the next sync. */
  #next = 1;
  /** Number of the sync in flight; 0 without one. */
  #underWay = 0;
  /** Number of the last sync that succeeded. */
  #durable = 0;

  /**
   * The stamp of a block whose data and bitmap were just written: the number of the sync that
   * covers it.
   */
  written(): number {
    return this.#next;
  }

  /** A sync starts. It covers all writes that have completed. */
  syncStarts(): void {
    assert(this.#underWay === 0, "A sync of new blocks starts while another is under way");
    this.#underWay = this.#next++;
  }

  syncEnded(succeeded: boolean): void {
    assert(this.#underWay !== 0, "A sync of new blocks ended that had not started");
    if (succeeded) this.#durable = this.#underWay;
    this.#underWay = 0;
  }

  /** Asserts that a block is durable, so that the BAT may point at it. */
  requireDurable(stamp: number): void {
    assert(stamp > 0 && stamp <= this.#durable, "A BAT entry goes to the disk before its block");
  }
}
