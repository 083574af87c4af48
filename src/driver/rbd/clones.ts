import { type Done, systemError } from "../../../ffi/errno.ts";
import { cloneRbdAside, removeCloneAside } from "../../../ffi/rbd_images.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { ImageClones } from "../driver.ts";
import { parseRbdName } from "./rbd_name.ts";

/** Clones of images on Ceph, in the pool of the image, on a snapshot of their name. */
export const rbdClones: ImageClones = {
  nameOf: (path, name) => path.replace(/[^/,]*(?=,|$)/, () => name),

  make(path, name, scheduler, done): void {
    const made = cloneRbdAside(parseRbdName(path, { readOnly: false }), name);
    settle(made, { scheduler, what: `Cannot clone rbd:${path}`, done });
  },

  remove(path, name, scheduler, done): void {
    const removed = removeCloneAside(parseRbdName(path, { readOnly: false }), name);
    settle(removed, { scheduler, what: `Cannot remove the clone ${name} of rbd:${path}`, done });
  },
};

function settle(
  work: Promise<void>,
  { scheduler, what, done }: { scheduler: Scheduler; what: string; done: Done },
): void {
  scheduler.settle(work.then(() => null, (error) => systemError(error, what)), done);
}
