import { closeFile, O_DIRECT, O_RDONLY, openFile, readAt } from "../../../ffi/files.ts";
import { Arena } from "../../../ffi/memory.ts";
import { isPausedState } from "../../vbd/vbd_phase.ts";
import { inventory, withNodes } from "./inventory.ts";

const SECTOR_BYTES = 512;

/** The block devices of ublk that a tapdisk has, without those whose disks are paused. */
export function ublkNodes(pid: number): string[] {
  const running = inventory({ pid }).filter(({ state }) => state !== null && !isPausedState(state));
  const nodes = withNodes(running).map(({ device }) => device);
  return nodes.filter((node) => node !== null).filter((node) => node.startsWith("/dev/ublkb"));
}

/**
 * Reads from block devices: waits until they are served. A kernel before 6.7 also notices by a request, and
 * otherwise after up to 5 s, that the process has ended that served a device.
 */
export function touchDevices(nodes: readonly string[]): void {
  if (nodes.length === 0) return;
  const memory = new Arena(SECTOR_BYTES);
  try {
    for (const node of nodes) touch(node, memory.bytes.subarray(0, SECTOR_BYTES));
  } finally {
    memory.release();
  }
}

function touch(node: string, into: Uint8Array<ArrayBuffer>): void {
  let fd = -1;
  try {
    fd = openFile(node, O_RDONLY | O_DIRECT);
    readAt(fd, into, 0);
  } catch {
    // An error of the disk is an answer, too; a device that was removed meanwhile has no users that wait.
  } finally {
    if (fd >= 0) closeFile(fd);
  }
}
