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
 * and frees the minor. Throws `SystemError`, `TapdiskError`.
 */
export function destroyDevice(device: DeviceAddress, limit: TimeLimit): void {
  closeImage(device, limit);
  detachDevice(device);
  freeMinor(device.minor);
}
