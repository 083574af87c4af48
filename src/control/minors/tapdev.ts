import { systemError } from "../../../ffi/errno.ts";

const DEVICES_FILE = "/proc/devices";

/**
 * The major number of the devices of the kernel's blktap driver, whose minor numbers are those of
 * tapdisks; null when the driver is not loaded. Throws `SystemError`.
 */
export function tapdevMajor(): number | null {
  let devices: string;
  try {
    devices = Deno.readTextFileSync(DEVICES_FILE);
  } catch (error) {
    throw systemError(error, `Cannot read ${DEVICES_FILE}`);
  }
  const major = /^ *(\d+) tapdev/m.exec(devices)?.[1];
  return major === undefined ? null : Number(major);
}
