import { locateParent, openParent } from "../../vhd/image/parent.ts";
import { openVhd, type VhdImage } from "../../vhd/image/image.ts";
import { AioImage } from "../aio.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  type RequestSink,
  SECTOR_BYTES,
} from "../driver.ts";
import { NAMES_FILE } from "../image_name.ts";
import { cipherFor, type SectorCipher } from "./sector_cipher.ts";
import { VhdDisk } from "./vhd_disk.ts";
import { VhdFile } from "./vhd_file.ts";

/** VHD images: fixed, dynamic and differencing. */
export const vhdDriver: DriverType = {
  type: "vhd",
  where: "FILE",
  summary: "A VHD: fixed, dynamic or differencing",
  number: 4,
  suffix: ".vhd",
  takesKey: true,
  parentAs: "vhd",
  named: () => NAMES_FILE,

  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
    // Opening for writing takes the lock, so the metadata read next is nobody else's to change.
    const file = context.files.open(spec.path, { ...spec, same: spec.asParent });
    let image: VhdImage | null = null;
    let cipher: SectorCipher | null = null;
    try {
      const { storage } = context.files;
      const { identity } = file;
      const { readOnly, asParent } = spec;
      const options = { storage, readOnly, lockedBy: identity };
      image = asParent === undefined
        ? openVhd(spec.path, { ...options, same: identity })
        : openParent(asParent, options);
      const sectors = image.sizeBytes / SECTOR_BYTES;
      if (image.header === null) {
        image.close();
        return new AioImage({ spec, context, sink, file, sectors });
      }
      const parent = parentSpec(image, spec);
      cipher = cipherFor(image, spec);
      return new VhdDisk({
        spec,
        context,
        sink,
        file: new VhdFile(image, file, spec),
        parent,
        cipher,
      });
    } catch (error) {
      cipher?.close();
      image?.close();
      file.close();
      throw error;
    }
  },
};

/** Where the image's parent is: the one that the child was made from. */
function parentSpec(image: VhdImage, child: ImageSpec): ImageSpec | null {
  if (image.parent === null) return null;
  const parent = locateParent(image);
  return {
    type: parent.raw ? "aio" : "vhd",
    path: parent.path,
    readOnly: true,
    direct: child.direct,
    key: child.key,
    asParent: parent,
  };
}
