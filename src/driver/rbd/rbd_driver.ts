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
import { RbdImage } from "./rbd_image.ts";
import { parseRbdName } from "./rbd_name.ts";

/** An image that is open, and whose requests have not begun. */
class OpenedImage implements Prepared {
  readonly session: RbdSession;

  constructor(session: RbdSession) {
    this.session = session;
  }

  discard(): void {
    letGo(this.session);
  }
}

/** Closes an image to which nothing was written. Nobody waits for that. */
function letGo(session: RbdSession): void {
  session.close({ flush: false }).catch(() => {});
}

function prepare(spec: ImageSpec, scheduler: Scheduler, done: DoneWith<Prepared>): () => void {
  const place = parseRbdName(spec.path, spec);
  librbd();
  let isWanted = true;
  const opened = openRbdAside(place)
    .catch((error) => systemError(error, `Cannot open ${place.title}`));
  scheduler.settle(opened, (result) => {
    if (result instanceof SystemError) {
      if (isWanted) done(result, null);
    } else if (isWanted) done(null, new OpenedImage(result));
    else letGo(result);
  });
  return () => void (isWanted = false);
}

function open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
  const prepared = context.takePrepared();
  const session = prepared instanceof OpenedImage
    ? prepared.session
    : openRbd(parseRbdName(spec.path, spec));
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
  prepare,
  open,
};
