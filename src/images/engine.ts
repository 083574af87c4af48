/**
 * `src/images`: work on images of every type, which are named as for tapdisk, while no tapdisk has them
 * open: copies and conversions, maps, comparisons. Data is read and written by the drivers that serve
 * images. This folder must not know a format's bytes or the control socket, and must not print.
 *
 * This file has the loop of one operation and the context that its images are opened with.
 *
 * @module
 */
import { SystemError } from "../../ffi/errno.ts";
import type { DiskBackend } from "../queue/backend.ts";
import { CachedBackend } from "../queue/cached.ts";
import { osDiskFiles } from "../queue/disk_files.ts";
import { LibaioBackend } from "../queue/libaio.ts";
import { EpollScheduler } from "../scheduler/epoll_scheduler.ts";
import { createVbdContext, type VbdContext } from "../vbd/vbd_context.ts";

/** The interval at which the runtime gets a turn, in which a signal can cancel the operation. */
const RUNTIME_TURN_MS = 100;

/**
 * Requests under way where all data goes through the page cache. Threads of the kernel read some while they
 * write others.
 */
const THREADS_SLOTS = 16;
/** The same without threads: what is read is written while the processor's own cache still has it. */
const ALONE_SLOTS = 4;

/** What the images of one operation are opened with, and the loop that runs it. */
export interface Engine {
  readonly context: VbdContext;
  /** The most requests that are of use at once where all data goes through the page cache. */
  readonly cachedSlots: number;
  /** Calls `start` with a callback, and runs the loop until that callback is called. */
  run(start: (finished: () => void) => void): Promise<void>;
  close(): void;
}

/** Makes an engine for the files of the operating system, which writes what drivers log to `log`. */
export function createEngine(log: (message: string) => void): Engine {
  const scheduler = new EpollScheduler({ runtimeTurnMs: RUNTIME_TURN_MS });
  const backend = createBackend(scheduler);
  const context = createVbdContext({ scheduler, backend, files: osDiskFiles, log });
  return {
    context,
    cachedSlots: backend instanceof CachedBackend ? THREADS_SLOTS : ALONE_SLOTS,
    async run(start: (finished: () => void) => void): Promise<void> {
      let isOver = false;
      const finished = (): void => {
        isOver = true;
        scheduler.stop();
      };
      // A timer starts the work, so that the first turn of the loop submits instead of waiting.
      scheduler.addTimer(0, () => start(finished));
      while (!isOver) await scheduler.run();
    },
    close(): void {
      context.queue.close();
      scheduler.close();
    },
  };
}

function createBackend(scheduler: EpollScheduler): DiskBackend {
  try {
    return new CachedBackend(scheduler);
  } catch (error) {
    // The kernel is too old for io_uring, or forbids it.
    if (!(error instanceof SystemError)) throw error;
    return new LibaioBackend(scheduler);
  }
}
