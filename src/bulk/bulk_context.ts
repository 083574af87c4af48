/**
 * `src/bulk`: offline operations that move whole images, such as copying and coalescing. Data moves
 * through the disk queue that tapdisk uses, many large operations at once; the code in `src/vhd`
 * reads and writes metadata, one call at a time. This folder must not serve devices, know the live
 * drivers, or print.
 *
 * This file makes the queue of one operation, and runs its loop until the operation is finished.
 *
 * @module
 */
import { type DiskFiles, osDiskFiles } from "../queue/disk_files.ts";
import { DiskQueue } from "../queue/disk_queue.ts";
import { LibaioBackend } from "../queue/libaio.ts";
import { EpollScheduler } from "../scheduler/epoll_scheduler.ts";

/** The interval at which the runtime gets a turn, in which a signal can cancel the operation. */
const RUNTIME_TURN_MS = 100;

/** A disk queue, the files that it moves data of, and the loop that runs it. */
export interface BulkContext {
  readonly queue: DiskQueue;
  readonly files: DiskFiles;
  /** Calls `start` with a callback, and runs the loop until that callback is called. */
  run(start: (finished: () => void) => void): Promise<void>;
  close(): void;
}

/**
 * Makes a context for the operating system's files.
 *
 * @param operations The largest number of operations in flight.
 * @throws {SystemError} when the kernel has no resources for asynchronous I/O.
 */
export function createBulkContext(operations: number): BulkContext {
  const scheduler = new EpollScheduler({ runtimeTurnMs: RUNTIME_TURN_MS });
  const queue = new DiskQueue(scheduler, new LibaioBackend(scheduler), operations);
  return {
    queue,
    files: osDiskFiles,
    async run(start: (finished: () => void) => void): Promise<void> {
      let over = false;
      const finished = (): void => {
        over = true;
        scheduler.stop();
      };
      // A timer starts the work, so that the first turn of the loop submits instead of waiting.
      scheduler.addTimer(0, () => start(finished));
      while (!over) await scheduler.run();
    },
    close(): void {
      queue.close();
      scheduler.close();
    },
  };
}

/** Makes the context of one operation, with a limit on the operations in flight. */
export type BulkContextMaker = (operations: number) => BulkContext;

/** The context of an operation; that of the operating system's files by default. */
export interface InContext {
  readonly makeContext?: BulkContextMaker;
}
