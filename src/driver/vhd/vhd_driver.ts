/**
 * `src/driver/vhd`: serves VHD images: reads and writes of sectors become operations on blocks,
 * bitmaps and the BAT, in the order of docs/on-disk-order.md.
 *
 * It is on the data path: it must not allocate for a request, and it must not read or write the file
 * except through the disk queue. Only the file's length and holes are changed by direct calls. Places,
 * encodings and the order of writes come from `src/vhd`; the driver must not have an order of its own.
 *
 * This file opens an image for the driver.
 *
 * @module
 */
import { locateParent, openParent } from "../../vhd/image/parent.ts";
import { parentOnCeph } from "../../vhd/image/parent_on_ceph.ts";
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
import { prepareBelow } from "../rbd/prepare_below.ts";
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
  prepare: prepareBelow,

  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
    // Opening for writing takes the lock: the metadata that is read next cannot change.
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
      const vhdFile = new VhdFile(image, file, spec);
      const disk = new VhdDisk({ spec, context, sink, file: vhdFile, parent, cipher });
      if (!readOnly) warnOfLimit(vhdFile, context);
      return disk;
    } catch (error) {
      cipher?.close();
      image?.close();
      file.close();
      throw error;
    }
  },
};

function warnOfLimit({ blocksWithoutRoom, disk }: VhdFile, { log }: ImageContext): void {
  if (blocksWithoutRoom === 0) return;
  log(
    `${disk.path} cannot be written in full: its file is near the 2 TiB that its block table can ` +
      `point into, and ${blocksWithoutRoom} blocks will find no room (EFBIG); copy it to another image`,
  );
}

/** Where the image's parent is: the one that the child was made from. */
function parentSpec(image: VhdImage, child: ImageSpec): ImageSpec | null {
  if (image.parent === null) return null;
  const onCeph = parentOnCeph(image);
  if (onCeph !== null) {
    return { type: "rbd", path: onCeph, readOnly: true, direct: child.direct };
  }
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
