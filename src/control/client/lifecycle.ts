import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { askNode, askPid, QUESTION_TIMEOUT_MS } from "./questions.ts";
import {
  attachDevice,
  closeImage,
  detachDevice,
  type DeviceAddress,
  type OpenExtras,
  openImage,
  type TimeLimit,
} from "./client.ts";
import { TapdiskError } from "./connection.ts";
import type { OpenRequest } from "../protocol/open_request.ts";
import { readMinorRecord, writeMinorRecord } from "../minors/minor_record.ts";
import { allocateMinor, freeMinor, holdMinor, listMinors } from "../minors/minors.ts";
import { spawnTapdisk } from "./spawn.ts";
import { removeStaleSockets } from "./stale_sockets.ts";

/** Does what can be done to undo something; the error that made it necessary matters more. */
function attempt(undo: () => void): void {
  try {
    undo();
  } catch {
    // What is left over shows in the list, and can be freed there.
  }
}

/** A device that was made, and the node of its block device, if it has one. */
export interface CreatedDevice extends DeviceAddress {
  readonly node: string | null;
}

/** A new tapdisk with an image on a minor. Throws; then the tapdisk is gone. */
async function serveMinor(
  minor: number,
  request: OpenRequest,
  extras: OpenExtras,
): Promise<CreatedDevice> {
  const device = { pid: await spawnTapdisk(), minor };
  try {
    attachDevice(device);
    openImage(device, request, extras);
    return { ...device, node: askNode(device) };
  } catch (error) {
    // The tapdisk ends with its last device; one that never had any has to be told to.
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
 * A new tapdisk that takes over the block device of one that died; its users notice no more than a
 * pause. Throws `SystemError`, `TapdiskError`: ENODEV when none is left there, EBUSY when its
 * tapdisk lives; the block device then stays as it is.
 */
export async function recoverDevice(
  minor: number,
  { key }: Pick<OpenExtras, "key"> = {},
): Promise<CreatedDevice> {
  const record = readMinorRecord(minor);
  if (record === null) {
    const what = `Cannot recover minor ${minor} (no tapdisk that died left a block device there)`;
    throw new SystemError(Errno.ENODEV, what);
  }
  closeFile(holdMinor(minor));
  const recovered = await serveMinor(minor, record, { key });
  removeStaleSockets();
  return recovered;
}

/** The minors whose block devices wait for a tapdisk to take them over. */
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
 * Closes a device's image, takes the device from its tapdisk, which ends if that was its last one,
 * and frees the minor. Of a tapdisk that died it removes what is left; a block device that it left
 * is taken over for that, so that it ends in order. Throws `SystemError`, `TapdiskError`: ETIMEDOUT
 * when the tapdisk does not answer; nothing is asked of it then.
 */
export async function destroyDevice(device: DeviceAddress, limit: TimeLimit): Promise<void> {
  try {
    // A tapdisk that hangs would keep the caller waiting, and close the image when it wakes up.
    askPid(device.pid);
    closeImage(device, limit);
  } catch (error) {
    if (!isDead(error)) throw error;
    const heir = await heirOf(device.minor);
    if (heir !== null) return await destroyDevice(heir, limit);
    if (clearUpAfterDead(device)) return;
    throw error;
  }
  detachDevice(device, { timeoutMs: QUESTION_TIMEOUT_MS });
  freeMinor(device.minor);
}

/** Who has taken over what a dead tapdisk left of a minor's block device; null: it left nothing. */
async function heirOf(minor: number): Promise<CreatedDevice | null> {
  if (!orphanedMinors().includes(minor)) return null;
  try {
    return await recoverDevice(minor);
  } catch (error) {
    if (!(error instanceof TapdiskError)) throw error;
    // The node is there, but the device behind it ended; or it stays, but its image cannot be opened.
    if (error.errno !== Errno.ENODEV && !await removeLeft(minor)) throw error;
    writeMinorRecord(minor, null);
    return null;
  }
}

/**
 * Takes away a block device that nobody can take over; false for a kind that cannot be taken away
 * like that. Throws `SystemError`: EBUSY when it is in use.
 */
async function removeLeft(minor: number): Promise<boolean> {
  // Hardly any command comes to this: it is not to cost the others their time.
  const { DEVICE_MAKERS } = await import("../../frontend/device_makers.ts");
  const { EpollScheduler } = await import("../../scheduler/epoll_scheduler.ts");
  const record = readMinorRecord(minor);
  const maker = DEVICE_MAKERS.find(({ kind }) => kind === record?.device);
  if (record === null || maker?.remove === undefined) return false;
  const scheduler = new EpollScheduler();
  const failures: SystemError[] = [];
  // A timer has it begin, and perhaps end at once, in the loop's time.
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

/** Whether an error says that a tapdisk is not there any more. */
function isDead(error: unknown): boolean {
  return error instanceof SystemError &&
    (error.errno === Errno.ECONNREFUSED || error.errno === Errno.ENOENT);
}

/** Frees a dead tapdisk's minor; false when another has the minor. */
function clearUpAfterDead({ minor }: DeviceAddress): boolean {
  try {
    freeMinor(minor);
  } catch {
    // What the tapdisk did not answer says more.
    return false;
  }
  removeStaleSockets();
  return true;
}
