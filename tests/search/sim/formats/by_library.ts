/**
 * Raw images that a driver with a completion queue of its own serves, as librbd would.
 *
 * @module
 */
import type { DriverType } from "../../../../src/driver/driver.ts";
import { checkedDriver } from "../../../../src/testing/checked_image.ts";
import type { Random } from "../../../../src/testing/random.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { SimulatedLibrary } from "../../../../src/testing/simulated_library.ts";
import type { SimulatedScheduler } from "../../../../src/testing/simulated_scheduler.ts";
import { checkedDrivers } from "../../../support/checked_drivers.ts";
import { libraryDriver } from "../../../support/library_driver.ts";

/** The drivers of a world in which a library serves the raw images. */
export function driversByLibrary(
  { disk: storage, scheduler, random, latencyMs }: {
    disk: SimulatedDisk;
    scheduler: SimulatedScheduler;
    random: Random;
    latencyMs: number;
  },
): (type: string) => DriverType {
  const { driver } = libraryDriver("aio", {
    usesPieces: true,
    openLibrary: ({ path, readOnly, asParent: same }) =>
      new SimulatedLibrary(path, { storage, scheduler, random, latencyMs, readOnly, same }),
  });
  const raw = checkedDriver(driver);
  return (type) => type === "aio" ? raw : checkedDrivers(type);
}
