import { Errno } from "../../ffi/errno.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";

const POLL_MS = 5;
/** How long udev or devtmpfs may take to make a node. */
const NODE_TIMEOUT_MS = 5_000;

function isNode(path: string): boolean {
  try {
    const { isBlockDevice, isCharDevice } = Deno.statSync(path);
    return isBlockDevice === true || isCharDevice === true;
  } catch {
    return false;
  }
}

/** Calls back when a node is there, or with ENOENT when nobody makes it in time. */
export function waitForNode(
  scheduler: Scheduler,
  path: string,
  done: (errno: number) => void,
): void {
  const latestMs = scheduler.nowMs() + NODE_TIMEOUT_MS;
  const look = (): void => {
    if (isNode(path)) return done(0);
    if (scheduler.nowMs() >= latestMs) return done(Errno.ENOENT);
    scheduler.addTimer(POLL_MS, look);
  };
  look();
}
