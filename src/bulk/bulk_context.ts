/**
 * `src/bulk`: offline work that moves whole images, such as copying and coalescing. It moves data
 * through the disk queue that tapdisk uses, many large operations at once; the code in `src/vhd` reads
 * and writes metadata, one call at a time. It must not serve devices, know the live drivers, or
 * print.
 *
 * This file makes the queue of one such work, and runs its loop until the work is finished.
 *
 * @module
 */
import { type DiskFiles, osDiskFiles } from "../queue/disk_files.ts";
import { DiskQueue } from "../queue/disk_queue.ts";
import { LibaioBackend } from "../queue/libaio.ts";
import { EpollScheduler } from "../scheduler/epoll_scheduler.ts";

/** How often the runtime has a turn, in which a signal may end the work. */
const RUNTIME_TURN_MS = 20;

/** A disk queue, the files it moves bytes of, and the loop that runs it. */
export interface BulkContext {
  readonly queue: DiskQueue;
  readonly files: DiskFiles;
  /** Calls `start`, then runs the loop until what it was given is called. */
  run(start: (finished: () => void) => void): Promise<void>;
  close(): void;
}

/**
 * Makes a context on the real disks.
 *
 * @param operations How many it can hold at once.
 * @throws {SystemError} when the kernel has no room for asynchronous I/O.
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
      // From a timer, so that the first turn of the loop submits instead of waiting.
      scheduler.addTimer(0, () => start(finished));
      while (!over) await scheduler.run();
    },
    close(): void {
      queue.close();
      scheduler.close();
    },
  };
}

/** Makes the context of one work, which can hold so many operations at once. */
export type BulkContextMaker = (operations: number) => BulkContext;

/** What a piece of work runs in: the operating system's files, unless it says otherwise. */
export interface InContext {
  readonly makeContext?: BulkContextMaker;
}
