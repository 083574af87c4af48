import type { Xen } from "../../../ffi/xen.ts";
import type { DeviceMaker } from "../../frontend/block_device.ts";
import type { ProcessorClock } from "../../frontend/xenblkif/polling.ts";
import type { Log } from "../../log/log.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { VbdContext } from "../../vbd/vbd_context.ts";
import type { FrontendFactory } from "./disk_access.ts";
import type { QueueKind } from "./queue_kind.ts";

/** What the devices of a process share. */
export interface DeviceServices {
  readonly scheduler: Scheduler;
  /** The context of the disks on a queue. The first call for a queue makes the queue. */
  contextOf(queue: QueueKind): VbdContext;
  readonly frontends: readonly FrontendFactory[];
  readonly makers: readonly DeviceMaker[];
  readonly log: Log;
  /** Runs a job when no exclusive command of the minor runs. */
  runExclusive(minor: number, job: (finished: () => void) => void): void;
  /** Called when a fault has ended a device; a command that runs on it may never end. */
  failed(minor: number): void;
  readonly xen: Xen;
  readonly processors: ProcessorClock;
}
