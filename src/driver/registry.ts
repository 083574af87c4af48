import { Errno, SystemError } from "../../ffi/errno.ts";
import { aioDriver } from "./aio.ts";
import type { DriverType } from "./driver.ts";
import { nbdDrivers } from "./nbd/nbd_driver.ts";
import { vhdDriver } from "./vhd/vhd_driver.ts";

const drivers: readonly DriverType[] = [aioDriver, ...nbdDrivers, vhdDriver];

/** The names of all drivers. */
export function driverNames(): string[] {
  return drivers.map((driver) => driver.type);
}

/** The driver of this name. Throws `SystemError` EINVAL when there is none. */
export function driverOfType(type: string): DriverType {
  const driver = drivers.find((candidate) => candidate.type === type);
  if (driver === undefined) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot open an image of type ${JSON.stringify(type)} (types: ${driverNames().join(", ")})`,
    );
  }
  return driver;
}

/**
 * The parts of an image's name, `type:path`. Throws `SystemError` EINVAL for a name without a type
 * or a path.
 */
export function parseImageName(name: string): { type: string; path: string } {
  const colon = name.indexOf(":");
  if (colon <= 0 || colon === name.length - 1) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot open ${JSON.stringify(name)}: an image is named TYPE:PATH, such as vhd:/disk.vhd`,
    );
  }
  return { type: name.slice(0, colon), path: name.slice(colon + 1) };
}
