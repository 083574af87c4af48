import { assert } from "../../../ffi/assert.ts";

/**
 * Keeps the order that every writer of blocks owes to the disk:
 *
 * 1. a new block's data and bitmap are written;
 * 2. a sync brings them to stable storage;
 * 3. only then is the BAT's sector that points at the block handed to the disk.
 *
 * A power cut before step 3 leaves an image without the block; one after it, an image with all of
 * the block. Writers keep a block's stamp from step 1 and show it at step 3. Nothing is allocated.
 */
export class PublishOrder {
  /** Number of the sync that comes next. */
  #next = 1;
  /** Number of the sync under way; 0 without one. */
  #underWay = 0;
  /** Number of the last sync that succeeded. */
  #durable = 0;

  /** The stamp of a block whose data and bitmap have just been written: the sync that it needs. */
  written(): number {
    return this.#next;
  }

  /** A sync starts: it covers what was written by now. */
  syncStarts(): void {
    assert(this.#underWay === 0, "A sync of new blocks starts while another is under way");
    this.#underWay = this.#next++;
  }

  /** The sync has ended. */
  syncEnded(succeeded: boolean): void {
    assert(this.#underWay !== 0, "A sync of new blocks ended that had not started");
    if (succeeded) this.#durable = this.#underWay;
    this.#underWay = 0;
  }

  /** Asserts that a block may be named in the BAT. */
  requireDurable(stamp: number): void {
    assert(stamp > 0 && stamp <= this.#durable, "A BAT entry goes to the disk before its block");
  }
}
