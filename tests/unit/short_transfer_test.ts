import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Arena } from "../../ffi/memory.ts";
import type { CompletionSink, DiskBackend } from "../../src/queue/backend.ts";
import { DiskQueue } from "../../src/queue/disk_queue.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";

/** A backend that transfers only the first 1000 bytes of each operation. */
class ShortBackend implements DiskBackend {
  readonly capacity = 8;
  readonly batch = 8;
  readonly #operations: number[] = [];

  register(): void {}

  prepare(...args: Parameters<DiskBackend["prepare"]>): void {
    this.#operations.push(args[6]);
  }

  submit(): void {}

  reap(sink: CompletionSink): number {
    const operations = this.#operations.splice(0);
    for (const io of operations) sink.completed(io, 1000);
    return operations.length;
  }

  close(): void {}
}

Deno.test("a write that ends early met a full disk, a read that does an error; what was done counts", () => {
  const scheduler = new SimulatedScheduler();
  const queue = new DiskQueue(scheduler, new ShortBackend(), 8);
  const arena = new Arena(8 * 512);
  const errors: number[] = [];
  const owner = {
    ioDone: (token: number, _l: number, errno: number) => void (errors[token] = errno),
  };
  queue.register(3);
  queue.read(3, 0, 1, arena.sector, owner, 0);
  queue.read(3, 1, 1, arena.sector + 1, owner, 1);
  queue.write(3, 100, 1, arena.sector, owner, 2);
  queue.write(3, 101, 2, arena.sector + 1, owner, 3);
  while (scheduler.turn());
  assert.deepEqual(errors, [0, Errno.EIO, 0, Errno.ENOSPC]);
  queue.close();
  arena.release();
});
