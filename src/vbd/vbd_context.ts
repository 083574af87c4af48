import { Arena } from "../../ffi/memory.ts";
import { Deferral } from "../driver/deferral.ts";
import {
  type DriverContext,
  type DriverType,
  type ImageContext,
  SECTOR_BYTES,
} from "../driver/driver.ts";
import { PieceTable } from "../driver/pieces.ts";
import { driverOfType } from "../driver/registry.ts";
import type { DiskBackend } from "../queue/backend.ts";
import type { DiskFiles } from "../queue/disk_files.ts";
import { DiskQueue } from "../queue/disk_queue.ts";
import { Meters } from "../metrics/meter.ts";
import { type MetricsPages, privatePages } from "../metrics/metrics.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import { ownedBy, type Scheduler } from "../scheduler/scheduler.ts";
import type { Tracing } from "../trace/tracing.ts";
import { Admission } from "./admission.ts";

const QUEUE_CAPACITY = 32768;
const ZERO_BYTES = 1 << 20;

/** Finds the driver of a type. Throws `SystemError` EINVAL when there is none. */
export type DriverLookup = (type: string) => DriverType;

/** What all devices of a process share. */
export interface VbdContext extends DriverContext {
  readonly queue: DiskQueue;
  /** The driver of a type. */
  readonly driverOf: DriverLookup;
  readonly admission: Admission;
  /** Where requests are counted for monitoring programs. */
  readonly meters: Meters;
}

/** What the images of one device are opened with. */
export type DeviceContext = ImageContext & VbdContext;

/** The context of one device. */
export function deviceContext(
  context: VbdContext,
  device: FaultOwner & { readonly minor: number } & Pick<DeviceContext, "retained"> & {
    readonly tracing: Tracing;
  },
  own: Pick<DeviceContext, "takePrepared" | "grow">,
): DeviceContext {
  return {
    ...context,
    ...own,
    log: (message, fields) => context.log(message, { minor: device.minor, ...fields }),
    scheduler: ownedBy(device, context.scheduler),
    pieces: new PieceTable(context.pieces),
    retained: device.retained,
    tracing: device.tracing,
    faults: device,
  };
}

/** Zeros to write from. They are never changed, so that all contexts share them. */
let zeros: Arena | null = null;

/**
 * Makes the shared parts of a process. Its drivers are those of the registry; tests put a filter in
 * front of each. Without `metrics` no monitoring program sees how many requests there are.
 */
export function createVbdContext(
  { scheduler, backend, files, log, driverOf = driverOfType, metrics = privatePages }: {
    scheduler: Scheduler;
    backend: DiskBackend;
    files: DiskFiles;
    log: DriverContext["log"];
    driverOf?: DriverLookup;
    metrics?: MetricsPages;
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
    driverOf,
    meters: new Meters(metrics, scheduler.lastMs),
  };
}
