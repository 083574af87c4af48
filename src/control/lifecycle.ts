import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  attachDevice,
  closeImage,
  detachDevice,
  type DeviceAddress,
  type ImageOptions,
  openImage,
  type TimeLimit,
} from "./client.ts";
import { allocateMinor, freeMinor } from "./minors.ts";
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

/**
 * A new tapdisk with one device on which an image, `type:/path`, is open. Throws `SystemError`,
 * `TapdiskError`; then neither the tapdisk nor the minor is left.
 */
export async function createDevice(path: string, options: ImageOptions): Promise<DeviceAddress> {
  const minor = allocateMinor();
  try {
    const device = { pid: await spawnTapdisk(), minor };
    try {
      attachDevice(device);
      openImage(device, path, options);
      return device;
    } catch (error) {
      // The tapdisk ends with its last device; one that never had any has to be told to.
      attempt(() => detachDevice(device));
      attempt(() => Deno.kill(device.pid, "SIGTERM"));
      throw error;
    }
  } catch (error) {
    attempt(() => freeMinor(minor));
    throw error;
  }
}

/**
 * Closes a device's image, takes the device from its tapdisk, which ends if that was its last one,
 * and frees the minor. Of a tapdisk that died it removes what is left. Throws `SystemError`,
 * `TapdiskError`.
 */
export function destroyDevice(device: DeviceAddress, limit: TimeLimit): void {
  try {
    closeImage(device, limit);
  } catch (error) {
    if (clearUpAfterDead(device, error)) return;
    throw error;
  }
  detachDevice(device);
  freeMinor(device.minor);
}

/** Frees a dead tapdisk's minor; false when it is alive, or another has the minor. */
function clearUpAfterDead({ minor }: DeviceAddress, error: unknown): boolean {
  if (!(error instanceof SystemError)) return false;
  if (error.errno !== Errno.ECONNREFUSED && error.errno !== Errno.ENOENT) return false;
  try {
    freeMinor(minor);
  } catch {
    // What the tapdisk did not answer says more.
    return false;
  }
  removeStaleSockets();
  return true;
}
