import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";

const POLL_MS = 5;
/** How long udev or devtmpfs may take to create a node. */
const NODE_TIMEOUT_MS = 5_000;

function isNode(path: string): boolean {
  try {
    const { isBlockDevice, isCharDevice } = Deno.statSync(path);
    return isBlockDevice === true || isCharDevice === true;
  } catch {
    return false;
  }
}

/**
 * Waits until udev or devtmpfs has created a device node.
 *
 * @param done Called with ENOENT when there is no node after five seconds.
 */
export function waitForNode(scheduler: Scheduler, path: string, done: Done): void {
  const latestMs = scheduler.nowMs() + NODE_TIMEOUT_MS;
  const look = (): void => {
    if (isNode(path)) return done(null);
    if (scheduler.nowMs() >= latestMs) {
      return done(new SystemError(Errno.ENOENT, `Cannot find ${path}`, { file: path }));
    }
    scheduler.addTimer(POLL_MS, look);
  };
  look();
}
