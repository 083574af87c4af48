import { Errno, SystemError } from "../../ffi/errno.ts";
import { aioDriver } from "./aio.ts";
import { bcDriver } from "./bc.ts";
import type { DriverType } from "./driver.ts";
import { logDriver } from "./log.ts";
import { nbdDrivers } from "./nbd/nbd_driver.ts";
import { ramDriver } from "./ram.ts";
import { vhdDriver } from "./vhd/vhd_driver.ts";

const drivers: readonly DriverType[] = [
  aioDriver,
  bcDriver,
  logDriver,
  ...nbdDrivers,
  ramDriver,
  vhdDriver,
];

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
