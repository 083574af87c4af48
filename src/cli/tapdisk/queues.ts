import type { QueueChoice } from "../../control/open_request.ts";
import type { Log } from "../../log/log.ts";
import { osDiskFiles } from "../../queue/disk_files.ts";
import { LibaioBackend } from "../../queue/libaio.ts";
import { UringBackend } from "../../queue/uring.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import { createVbdContext, type VbdContext } from "../../vbd/engine.ts";

/**
 * What the disks on a queue share, by the queue, which is made when it is first asked for; that
 * throws `SystemError` where the kernel does not have it.
 */
export function queueContexts(scheduler: Scheduler, log: Log): (queue: QueueChoice) => VbdContext {
  const make = (backend: LibaioBackend | UringBackend): VbdContext =>
    createVbdContext({
      scheduler,
      backend,
      files: osDiskFiles,
      log: (message) => log.warn(message),
    });
  const libaio = make(new LibaioBackend(scheduler));
  let uring: VbdContext | null = null;
  return (queue) => queue === "io_uring" ? uring ??= make(new UringBackend(scheduler)) : libaio;
}
