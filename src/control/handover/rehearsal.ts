import type { Done } from "../../../ffi/errno.ts";
import { fileInName } from "../../driver/layers.ts";
import { privateMeters } from "../../metrics/meter.ts";
import { Vbd } from "../../vbd/vbd.ts";
import type { VbdContext } from "../../vbd/vbd_context.ts";

/** A minor that no disk has, for messages. */
const NO_MINOR = -1;

/**
 * Opens images for reading, one after another, and closes them. Another process serves them meanwhile.
 * What cannot be opened is found before anybody waits for it. And code that has run once runs faster: the
 * wait is shorter. Images that are no files, such as those of servers, are left out.
 */
export function rehearse(context: VbdContext, images: readonly string[], done: Done): void {
  const [image, ...others] = images;
  if (image === undefined) return done(null);
  const next: Done = (error) => error === null ? rehearse(context, others, done) : done(error);
  if (fileInName(image) === null) return next(null);
  const quiet = { ...context, log: () => {}, meters: privateMeters };
  const vbd = new Vbd(quiet, NO_MINOR);
  vbd.openLater(image, { readOnly: true }, (error) => {
    if (error !== null) {
      vbd.destroy();
      return next(error);
    }
    vbd.close((failure) => {
      vbd.destroy();
      next(failure);
    });
  });
}
