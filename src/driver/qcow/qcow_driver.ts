/**
 * `src/driver/qcow`: serves images of QCOW version 1. Reads and writes of sectors become operations on
 * clusters and tables, in the order of docs/on-disk-order.md.
 *
 * It is on the data path: it must not allocate for a request, except for a compressed cluster, and it
 * must not read or write the file except through the disk queue. Structures come from `src/qcow`.
 *
 * This file opens an image for the driver.
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { namedFormats } from "../../qcow/backing.ts";
import { openQcow, type QcowImage } from "../../qcow/image.ts";
import { locateBacking } from "../../qcow/parent.ts";
import { type DiskFile } from "../../queue/disk_files.ts";
import type { DriverType, ImageContext, ImageDriver, ImageSpec, RequestSink } from "../driver.ts";
import { QcowDisk } from "./qcow_disk.ts";

/** Images of QCOW version 1. */
export const qcowDriver: DriverType = {
  type: "qcow",
  where: "[BACKING:]FILE",
  summary: "A QCOW of version 1; BACKING is raw or qcow, the format of its backing file",
  number: 6,
  suffix: ".qcow",
  named: (rest) => ({ kind: "file", at: namedFormats(rest).at }),

  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
    const { at } = namedFormats(spec.path);
    const path = spec.path.slice(at);
    // Opening for writing takes the lock: the metadata that is read next cannot change.
    const file = context.files.open(path, { ...spec, same: spec.asParent });
    let image: QcowImage | null = null;
    try {
      const { storage } = context.files;
      const { identity } = file;
      const { readOnly } = spec;
      const confinement = spec.asParent?.confinement;
      image = openQcow(path, {
        storage,
        readOnly,
        lockedBy: identity,
        same: identity,
        confinement,
      });
      if (!readOnly) requireWritable(image, file);
      return new QcowDisk({ spec, context, sink, image, file, parent: parentSpec(image, spec) });
    } catch (error) {
      image?.close();
      file.close();
      throw error;
    }
  },
};

/** Refuses images that can be read, and cannot be written without damage. */
function requireWritable({ path, isSwapped, l1 }: QcowImage, file: DiskFile): void {
  const hint = "open it for reading only, or convert it";
  if (isSwapped) {
    const why = "its L1 table is little-endian, as old versions of blktap wrote it";
    throw new SystemError(Errno.EROFS, `Cannot write to ${path}: ${why}`, { hint });
  }
  if (file.isBlockDevice) {
    const why = "on a block device nothing says where its data ends";
    throw new SystemError(Errno.EROFS, `Cannot write to ${path}: ${why}`, { hint });
  }
  const tables = l1.filter((sector) => sector !== 0).sort();
  if (tables.every((sector, i) => i === 0 || sector !== tables[i - 1])) return;
  const why = "two entries of its L1 table lead to one L2 table";
  throw new SystemError(Errno.EINVAL, `Cannot write to ${path}: ${why}`, { hint });
}

/** Where the image's backing file is. */
function parentSpec(image: QcowImage, child: ImageSpec): ImageSpec | null {
  const [given = null, ...further] = namedFormats(child.path).formats;
  const backing = locateBacking(image, given);
  if (backing === null) return null;
  const named = further.length > 0 && backing.format === "qcow" ? `${further.join(",")}:` : "";
  return {
    type: backing.format === "raw" ? "aio" : "qcow",
    path: `${named}${backing.path}`,
    readOnly: true,
    direct: child.direct,
    asParent: { ...backing, raw: backing.format === "raw", uuid: null },
  };
}
