import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { askNode, askPid, QUESTION_TIMEOUT_MS } from "./questions.ts";
import {
  attachDevice,
  closeImage,
  detachDevice,
  type DeviceAddress,
  type OpenExtras,
  openImage,
  serveDevice,
  type TimeLimit,
} from "./client.ts";
import type { ServeRequest } from "../../frontend/nbd/ports.ts";
import { TapdiskError } from "./connection.ts";
import type { OpenRequest } from "../protocol/open_request.ts";
import { removeStaleMetrics } from "../../metrics/metrics_folder.ts";
import { isEndedByFault } from "../../vbd/vbd_phase.ts";
import { type InventoryEntry, withNodes } from "./inventory.ts";
import { readMinorRecord, writeMinorRecord } from "../minors/minor_record.ts";
import { allocateMinor, freeMinor, holdMinor, listMinors } from "../minors/minors.ts";
import { tapdiskForDisk } from "./shared_tapdisk.ts";
import { removeStaleSockets } from "./stale_sockets.ts";

/** Undoes a step. Its own error is ignored: the error that made it necessary is reported. */
function attempt(undo: () => void): void {
  try {
    undo();
  } catch {
    // The remains are in `tap-ctl list`, and can be freed.
  }
}

/** A device that was made, and the node of its block device, if it has one. */
export interface CreatedDevice extends DeviceAddress {
  readonly node: string | null;
  /** Of a device that was taken over: why it is not served over TCP as before. */
  readonly unserved?: readonly string[];
}

/** Serves a disk over TCP. A disk that is taken over is brought back in any case. */
function tryToServe(
  device: DeviceAddress,
  request: ServeRequest,
  { isTakenOver = false }: ServeExtras,
): string[] {
  try {
    serveDevice(device, request);
    return [];
  } catch (error) {
    if (!isTakenOver) throw error;
    return [messageOf(error)];
  }
}

interface ServeExtras extends OpenExtras {
  /** Whether the disk has users that wait for it. */
  readonly isTakenOver?: boolean;
}

/** Starts a tapdisk with an image on a minor. Throws; then the tapdisk has ended. */
async function serveMinor(
  minor: number,
  request: OpenRequest,
  extras: ServeExtras,
): Promise<CreatedDevice> {
  const device = { pid: await tapdiskForDisk(), minor };
  try {
    attachDevice(device);
    openImage(device, request, extras);
    const unserved = request.serve.flatMap((serve) => tryToServe(device, serve, extras));
    return { ...device, node: askNode(device), ...(unserved.length > 0 ? { unserved } : {}) };
  } catch (error) {
    // Of a disk that is taken over, users wait for the device: it stays.
    if (!extras.isTakenOver) attempt(() => closeImage(device));
    // A tapdisk ends when its last device is detached. One that never had a device needs a signal. One
    // with disks of others does not obey it.
    attempt(() => detachDevice(device));
    attempt(() => Deno.kill(device.pid, "SIGTERM"));
    throw error;
  }
}

/**
 * Starts a tapdisk with one device on which an image is open. Throws `SystemError`, `TapdiskError`;
 * then the tapdisk has ended and the minor is free.
 */
export async function createDevice(
  request: OpenRequest,
  extras: OpenExtras = {},
): Promise<CreatedDevice> {
  const minor = allocateMinor();
  try {
    return await serveMinor(minor, request, extras);
  } catch (error) {
    attempt(() => freeMinor(minor));
    throw error;
  }
}

/**
 * Starts a tapdisk that takes over the block device of one that died, or the disk of a guest whose ring
 * tapback then brings. The users see only a pause. Throws `SystemError`, `TapdiskError`: ENODEV when
 * there is no such device, EBUSY when its tapdisk is alive; the device then stays as it is.
 */
export async function recoverDevice(
  minor: number,
  { key }: Pick<OpenExtras, "key"> = {},
): Promise<CreatedDevice> {
  const record = readMinorRecord(minor);
  if (record === null) {
    const what =
      `Cannot recover minor ${minor} (no tapdisk that died left a block device or a ring there)`;
    throw new SystemError(Errno.ENODEV, what);
  }
  closeFile(holdMinor(minor));
  const recovered = await serveMinor(minor, record, { key, isTakenOver: true });
  removeStaleSockets();
  removeStaleMetrics();
  return recovered;
}

/**
 * The disks that a fault has ended, in tapdisks that live on. `present` is what `inventory` lists; a
 * tapdisk that does not answer has none.
 */
export function disksEndedByFaults(present: readonly InventoryEntry[]): CreatedDevice[] {
  const ended = present.filter(({ state }) => state !== null && isEndedByFault(state));
  return withNodes(ended).flatMap(({ pid, minor, device }) =>
    pid === null || minor === null ? [] : [{ pid, minor, node: device }]
  );
}

/** The minors whose block devices, or guests, wait for a tapdisk to take them over. */
export function orphanedMinors(): number[] {
  return listMinors().filter((minor) => {
    if (readMinorRecord(minor) === null) return false;
    try {
      closeFile(holdMinor(minor));
      return true;
    } catch {
      return false;
    }
  });
}

/**
 * Closes a device's image, detaches the device, and frees the minor. The tapdisk ends with its last
 * device. When the tapdisk has died, its remains are removed; its block device is taken over first, so
 * that it is closed in order. Throws `SystemError`, `TapdiskError`: ETIMEDOUT when the tapdisk does not
 * answer; it is then not asked to close anything.
 */
export async function destroyDevice(device: DeviceAddress, limit: TimeLimit): Promise<void> {
  try {
    // Without this question a tapdisk that hangs would close the image later, unexpectedly.
    askPid(device.pid);
    closeImage(device, limit);
  } catch (error) {
    if (!isDead(error)) throw error;
    const successor = await takeOver(device.minor);
    if (successor !== null) return await destroyDevice(successor, limit);
    if (clearUpAfterDead(device)) return;
    throw error;
  }
  detachDevice(device, { timeoutMs: QUESTION_TIMEOUT_MS });
  freeMinor(device.minor);
}

/** A new tapdisk with the block device of a dead one; null when the dead one left none. */
async function takeOver(minor: number): Promise<CreatedDevice | null> {
  if (!orphanedMinors().includes(minor)) return null;
  // A guest's ring need not be closed in order: its requests stay in its journal.
  if (readMinorRecord(minor)?.device === "none") {
    writeMinorRecord(minor, null);
    return null;
  }
  try {
    return await recoverDevice(minor);
  } catch (error) {
    if (!(error instanceof TapdiskError)) throw error;
    // ENODEV: only the node exists. Else the device exists, and its image cannot be opened.
    if (error.errno !== Errno.ENODEV && !await removeOrphan(minor)) throw error;
    writeMinorRecord(minor, null);
    return null;
  }
}

/**
 * Removes a block device that cannot be taken over; false for a kind that cannot be removed without a
 * tapdisk. Throws `SystemError`: EBUSY when it is in use.
 */
async function removeOrphan(minor: number): Promise<boolean> {
  // Imported here because few commands need it, and it takes time to load.
  const { DEVICE_MAKERS } = await import("../../frontend/device_makers.ts");
  const { EpollScheduler } = await import("../../scheduler/epoll_scheduler.ts");
  const record = readMinorRecord(minor);
  const maker = DEVICE_MAKERS.find(({ kind }) => kind === record?.device);
  if (record === null || maker?.remove === undefined) return false;
  const scheduler = new EpollScheduler();
  const failures: SystemError[] = [];
  // The timer starts it in the loop, since it may end at once and stop the loop.
  scheduler.addTimer(0, () =>
    maker.remove?.(scheduler, record.node, (error) => {
      if (error !== null) failures.push(error);
      scheduler.stop();
    }));
  await scheduler.run();
  scheduler.close();
  if (failures.length > 0) throw failures[0];
  return true;
}

/** Whether an error means that the tapdisk does not exist any more. */
function isDead(error: unknown): boolean {
  return error instanceof SystemError &&
    (error.errno === Errno.ECONNREFUSED || error.errno === Errno.ENOENT);
}

/** Frees a dead tapdisk's minor; false when another has the minor. */
function clearUpAfterDead({ minor }: DeviceAddress): boolean {
  try {
    freeMinor(minor);
  } catch {
    // The caller reports its own error, which says more.
    return false;
  }
  removeStaleSockets();
  removeStaleMetrics();
  return true;
}
