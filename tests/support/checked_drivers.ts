import type { DriverType } from "../../src/driver/driver.ts";
import { driverOfType } from "../../src/driver/registry.ts";
import { checkedDriver } from "../../src/testing/checked_image.ts";

/** The driver of a type, with a contract filter in front of each of its images. */
export function checkedDrivers(type: string): DriverType {
  return checkedDriver(driverOfType(type));
}
