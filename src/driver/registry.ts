/**
 * The drivers, by name. All that depends on the type of an image asks here: a driver that is added
 * to this list can be opened, is listed by `--help`, the manual pages and bash's completion, and has
 * its paths made absolute.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { aioDriver } from "./aio.ts";
import { bcDriver } from "./bc.ts";
import type { DriverType } from "./driver.ts";
import { logDriver } from "./log.ts";
import { nbdDriver, nbdsDriver, nbdsUnixDriver, nbdUnixDriver } from "./nbd/nbd_driver.ts";
import { qcowDriver } from "./qcow/qcow_driver.ts";
import { qcow2Driver } from "./qcow2/qcow2_driver.ts";
import { ramDriver } from "./ram.ts";
import { rbdDriver } from "./rbd/rbd_driver.ts";
import { valveDriver } from "./valve.ts";
import { vhdDriver } from "./vhd/vhd_driver.ts";
import { vhdxDriver } from "./vhdx/vhdx_driver.ts";

const drivers: DriverType[] = [
  aioDriver,
  bcDriver,
  logDriver,
  nbdDriver,
  nbdUnixDriver,
  nbdsDriver,
  nbdsUnixDriver,
  qcowDriver,
  qcow2Driver,
  ramDriver,
  rbdDriver,
  valveDriver,
  vhdDriver,
  vhdxDriver,
];

/** All drivers. */
export function allDrivers(): readonly DriverType[] {
  return drivers;
}

/** Adds a driver that is not part of this program. Throws `SystemError` EEXIST for a name that is taken. */
export function registerDriver(driver: DriverType): void {
  if (drivers.some(({ type }) => type === driver.type)) {
    throw new SystemError(Errno.EEXIST, `Cannot add a driver named ${driver.type}`);
  }
  drivers.push(driver);
}

/** The driver of this name. Throws `SystemError` ENOENT, as the original has it, when there is none. */
export function driverOfType(type: string): DriverType {
  const driver = drivers.find((candidate) => candidate.type === type);
  if (driver === undefined) {
    const types = drivers.map((candidate) => candidate.type).join(", ");
    throw new SystemError(
      Errno.ENOENT,
      `Cannot open an image of type ${JSON.stringify(type)} (types: ${types})`,
    );
  }
  return driver;
}
