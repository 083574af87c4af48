import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { MemoryStorage } from "../../src/testing/memory_storage.ts";

/**
 * Runs a change with the process killed in front of each of its operations in turn, and lastly not
 * killed; `look` sees what each leaves.
 */
export function killEverywhere(
  origin: MemoryStorage,
  change: (storage: MemoryStorage) => void,
  look: (storage: MemoryStorage, finished: boolean) => void,
): void {
  for (let n = 0;; n++) {
    const storage = origin.snapshot();
    let count = 0;
    storage.beforeOperation = () => {
      if (++count > n) throw new SystemError(Errno.EIO, "The process was killed");
    };
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
