import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { changesOnly, type SimulatedDisk } from "../../src/testing/simulated_disk.ts";

/**
 * Runs a change repeatedly. The process is killed before each of its operations in turn, and not at
 * all in the last run; `look` checks the state after each run.
 */
export function killEverywhere(
  origin: SimulatedDisk,
  change: (storage: SimulatedDisk) => void,
  look: (storage: SimulatedDisk, finished: boolean) => void,
): void {
  for (let n = 0;; n++) {
    using storage = origin.copy();
    let count = 0;
    storage.beforeOperation = changesOnly(() => ++count > n ? Errno.EIO : 0);
    let finished = true;
    try {
      change(storage);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      finished = false;
    }
    storage.beforeOperation = null;
    look(storage, finished);
    if (finished) return assert.ok(n > 2);
  }
}
