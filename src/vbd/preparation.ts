import type { DoneWith } from "../../ffi/errno.ts";
import type { DriverType, ImageSpec, Prepared } from "../driver/driver.ts";
import { driverOfType } from "../driver/registry.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";

/** The image of a stack that must be got ready, behind those that only stand in front of it. */
function imageToPrepare(leaf: ImageSpec): { driver: DriverType; spec: ImageSpec } {
  let spec = leaf;
  for (;;) {
    const driver = driverOfType(spec.type);
    const below = driver.imageBelow?.(spec.path);
    if (below === undefined) return { driver, spec };
    spec = { ...spec, ...below };
  }
}

/**
 * Does what opening an image takes time for, such as connecting to a server, while the loop serves
 * other disks. Calls back at once where nothing takes time.
 *
 * @returns Gives it up; `done` is not called then.
 * @throws {SystemError} For what is refused at once.
 */
export function prepareImages(
  leaf: ImageSpec,
  scheduler: Scheduler,
  done: DoneWith<Prepared | null>,
): () => void {
  const { driver, spec } = imageToPrepare(leaf);
  if (driver.prepare === undefined) {
    done(null, null);
    return () => {};
  }
  return driver.prepare(spec, scheduler, done);
}
