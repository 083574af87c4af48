import { Arena } from "../../ffi/memory.ts";
import { Deferral } from "../driver/deferral.ts";
import { type DriverContext, SECTOR_BYTES } from "../driver/driver.ts";
import { PieceTable } from "../driver/pieces.ts";
import type { DiskBackend } from "../queue/backend.ts";
import type { DiskFiles } from "../queue/disk_files.ts";
import { DiskQueue } from "../queue/disk_queue.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { Admission } from "./admission.ts";

const QUEUE_CAPACITY = 32768;
const ZERO_BYTES = 1 << 20;

/** What all devices of a process share. */
export interface VbdContext extends DriverContext {
  readonly admission: Admission;
}

/** Zeros to write from. They are never changed, so that all contexts share them. */
let zeros: Arena | null = null;

/** Makes the shared parts of a process. */
export function createVbdContext(
  { scheduler, backend, files, log }: {
    scheduler: Scheduler;
    backend: DiskBackend;
    files: DiskFiles;
    log: (message: string) => void;
  },
): VbdContext {
  const queue = new DiskQueue(scheduler, backend, QUEUE_CAPACITY);
  const deferral = new Deferral(scheduler);
  const admission = new Admission(scheduler);
  zeros ??= new Arena(ZERO_BYTES);
  scheduler.addTurnWork(deferral);
  scheduler.addTurnWork(admission);
  return {
    scheduler,
    queue,
    files,
    pieces: new PieceTable(QUEUE_CAPACITY),
    deferral,
    admission,
    zeros: { at: zeros.sector, sectors: ZERO_BYTES / SECTOR_BYTES },
    log,
  };
}
