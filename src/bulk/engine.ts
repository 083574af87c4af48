/**
 * Bulk work on images that no tapdisk writes: coalescing a chain, copying it.
 *
 * The format code (`src/vhd`) reads and writes metadata one call at a time and knows no queue. What
 * is here moves the data between images through the disk queue that tapdisk uses, many large
 * operations at once; so it stands above the queue and beside the live drivers, of which it knows
 * nothing: it serves no device and has no requests. It must not print.
 *
 * This file makes the queue for one such work and runs it to its end.
 *
 * @module
 */
import { type DiskFiles, osDiskFiles } from "../queue/disk_files.ts";
import { DiskQueue } from "../queue/disk_queue.ts";
import { LibaioBackend } from "../queue/libaio.ts";
import { EpollScheduler } from "../scheduler/epoll_scheduler.ts";

/** After how long at most a signal calls the work off. */
const RUNTIME_TURN_MS = 20;

/** A disk queue, the files it moves bytes of, and the loop that runs it. */
export interface OfflineEngine {
  readonly queue: DiskQueue;
  readonly files: DiskFiles;
  /** Calls `start`, then runs the loop until what it was given is called. */
  run(start: (finished: () => void) => void): Promise<void>;
  close(): void;
}

/**
 * Makes an engine that can hold so many operations at once; see {@linkcode EngineMaker}.
 *
 * @throws {SystemError} when the kernel has no room for asynchronous I/O.
 */
export function createOfflineEngine(operations: number): OfflineEngine {
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

/** How work gets its engine: the real one, or one on a simulated disk. */
export type EngineMaker = (operations: number) => OfflineEngine;
