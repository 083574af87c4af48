import type { QueueKind } from "../../control/daemon/queue_kind.ts";
import type { Log } from "../../log/log.ts";
import type { MetricsPages } from "../../metrics/metrics.ts";
import type { DiskBackend } from "../../queue/backend.ts";
import { osDiskFiles } from "../../queue/disk_files.ts";
import { LibaioBackend } from "../../queue/libaio.ts";
import { MixedBackend } from "../../queue/mixed.ts";
import { UringBackend } from "../../queue/uring.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import { createVbdContext, type VbdContext } from "../../vbd/vbd_context.ts";

/**
 * The contexts of the disks on each queue. The first call for a queue makes the queue, and throws
 * `SystemError` when the kernel does not have it.
 */
export function queueContexts(
  scheduler: Scheduler,
  { log, metrics }: { log: Log; metrics: MetricsPages },
): (queue: QueueKind) => VbdContext {
  const make = (backend: DiskBackend): VbdContext =>
    createVbdContext({
      scheduler,
      backend,
      files: osDiskFiles,
      log: (message, fields) => log.warn(message, fields),
      metrics,
    });
  const libaio = make(new LibaioBackend(scheduler));
  let uring: VbdContext | null = null;
  let mixed: VbdContext | null = null;
  return (queue) => {
    if (queue === "io_uring") return uring ??= make(new UringBackend(scheduler));
    if (queue === "mixed") return mixed ??= make(new MixedBackend(scheduler));
    return libaio;
  };
}
