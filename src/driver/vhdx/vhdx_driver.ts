/**
 * `src/driver/vhdx`: serves VHDX images for reading: fixed, dynamic and differencing ones. It must not
 * write to an image. A log that a program left behind is replayed in memory, by `src/vhdx`.
 *
 * This file opens an image for the driver.
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { openVhdx, type VhdxImage } from "../../vhdx/image.ts";
import { locateVhdxParent, openVhdxParent } from "../../vhdx/parent.ts";
import type { DriverType, ImageContext, ImageDriver, ImageSpec, RequestSink } from "../driver.ts";
import { NAMES_FILE } from "../image_name.ts";
import { VhdxDisk } from "./vhdx_disk.ts";

/** VHDX images. */
export const vhdxDriver: DriverType = {
  type: "vhdx",
  where: "FILE",
  summary: "A VHDX, which is only read: fixed, dynamic or differencing",
  suffix: ".vhdx",
  named: () => NAMES_FILE,

  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
    if (!spec.readOnly) {
      const hint = "open it read-only, or convert it";
      throw new SystemError(Errno.EROFS, `Cannot open ${spec.path} for writing`, { hint });
    }
    const file = context.files.open(spec.path, { ...spec, same: spec.asParent });
    let image: VhdxImage | null = null;
    try {
      const { storage } = context.files;
      const confinement = spec.asParent?.confinement;
      image = openVhdx(spec.path, { storage, same: file.identity, confinement });
      return new VhdxDisk({ spec, context, sink, image, file, parent: parentSpec(image, spec) });
    } catch (error) {
      image?.close();
      file.close();
      throw error;
    }
  },
};

/** Where the image's parent is: the one that the child was made from. */
function parentSpec(image: VhdxImage, child: ImageSpec): ImageSpec | null {
  const found = locateVhdxParent(image);
  if (found === null) return null;
  openVhdxParent(found, { storage: image.storage }).close();
  return {
    type: "vhdx",
    path: found.path,
    readOnly: true,
    direct: child.direct,
    asParent: { ...found, raw: false, uuid: null },
  };
}
