/**
 * `src/driver/rbd`: an image on a Ceph cluster, by librbd. It must not wait for the cluster while
 * other disks are served, except for an image below another, and must not hand memory of requests
 * back before librbd has ended them.
 *
 * @module
 */
import { type DoneWith, SystemError, systemError } from "../../../ffi/errno.ts";
import { librbd } from "../../../ffi/librbd.ts";
import { openRbd, openRbdAside, type RbdSession } from "../../../ffi/rbd_session.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type {
  DriverType,
  ImageContext,
  ImageDriver,
  ImageSpec,
  Prepared,
  RequestSink,
} from "../driver.ts";
import { NAMES_OTHER } from "../image_name.ts";
import { rbdClones } from "./clones.ts";
import { letGo, OpenedImage } from "./opened_image.ts";
import { RbdImage } from "./rbd_image.ts";
import { parseRbdName } from "./rbd_name.ts";

function prepare(spec: ImageSpec, scheduler: Scheduler, done: DoneWith<Prepared>): () => void {
  const place = parseRbdName(spec.path, spec);
  librbd();
  let isWanted = true;
  const opened = openRbdAside(place)
    .catch((error) => systemError(error, `Cannot open ${place.title}`));
  scheduler.settle(opened, (result) => {
    if (result instanceof SystemError) {
      if (isWanted) done(result, null);
    } else if (isWanted) done(null, new OpenedImage(spec, result));
    else letGo(result);
  });
  return () => void (isWanted = false);
}

/** Opens an image while the loop waits. What was prepared is another one, if anything was. */
function openOther(spec: ImageSpec, prepared: Prepared | null): RbdSession {
  prepared?.discard();
  return openRbd(parseRbdName(spec.path, spec));
}

function open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
  const prepared = context.takePrepared();
  const session = prepared instanceof OpenedImage && prepared.isThatOf(spec)
    ? prepared.session
    : openOther(spec, prepared);
  try {
    return new RbdImage({ spec, context, sink, session });
  } catch (error) {
    letGo(session);
    throw error;
  }
}

/** Images on Ceph. */
export const rbdDriver: DriverType & Required<Pick<DriverType, "prepare">> = {
  type: "rbd",
  where: "POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]",
  summary: "An image on a Ceph cluster; ,conf=FILE ,id=USER ,cluster=NAME may follow",
  named: () => NAMES_OTHER,
  clones: rbdClones,
  prepare,
  open,
};
