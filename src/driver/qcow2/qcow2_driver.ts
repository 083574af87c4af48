/**
 * `src/driver/qcow2`: serves QCOW2 images: reads and writes of sectors become operations on clusters,
 * L2 tables and reference counts, in the order of docs/on-disk-order.md.
 *
 * It is on the data path: it must not allocate for a request, and it must not read or write the file
 * except through the disk queue. Only the file's length and holes are changed by direct calls.
 * Compressed clusters are the exception: decompressing one allocates.
 *
 * This file opens an image for the driver.
 *
 * @module
 */
import type { FileIdentity, Storage } from "../../files/storage.ts";
import { Incompatible } from "../../qcow2/format/header.ts";
import { hasFeature } from "../../qcow2/image/header_reader.ts";
import { openQcow2, type Qcow2Image, type Qcow2OpenOptions } from "../../qcow2/image/image.ts";
import { backingOnCeph, locateBacking, locateDataFile } from "../../qcow2/image/named_files.ts";
import { repairQcow2 } from "../../qcow2/repair.ts";
import type { DiskFile } from "../../queue/disk_files.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  type RequestSink,
} from "../driver.ts";
import { NAMES_FILE } from "../image_name.ts";
import { prepareBelow } from "../rbd/prepare_below.ts";
import { Qcow2Disk } from "./qcow2_disk.ts";
import { Qcow2File } from "./qcow2_file.ts";

/** QCOW2 images, version 2 and 3. */
export const qcow2Driver: DriverType = {
  type: "qcow2",
  where: "FILE",
  summary: "A QCOW2 image",
  suffix: ".qcow2",
  parentAs: "qcow2",
  named: () => NAMES_FILE,
  prepare: prepareBelow,

  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
    const { asParent, readOnly } = spec;
    // Opening for writing takes the lock: the metadata that is read next cannot change.
    const disk = context.files.open(spec.path, { ...spec, same: asParent });
    const parts: Parts = { disk, data: null, image: null, file: null };
    try {
      const { storage } = context.files;
      const confinement = asParent?.confinement;
      const options = { storage, readOnly, same: disk.identity, confinement };
      const image = readOnly
        ? openQcow2(spec.path, options)
        : openToWrite(spec.path, { ...options, lockedBy: disk.identity }, context);
      parts.image = image;
      const parent = parentSpec(image, spec);
      parts.data = openDataFile(image, spec, context);
      const file = new Qcow2File(image, { disk, data: parts.data, readOnly, log: context.log });
      parts.file = file;
      return new Qcow2Disk({ spec, context, sink, file, parent });
    } catch (error) {
      if (parts.file !== null) parts.file.close();
      else {
        parts.image?.close();
        parts.data?.close();
        disk.close();
      }
      throw error;
    }
  },
};

/**
 * Opens an image for writing. One whose last user kept reference counts in memory and was killed is
 * mended first, which reads all its tables while other disks wait.
 */
function openToWrite(
  path: string,
  options: Qcow2OpenOptions & { storage: Storage; lockedBy: FileIdentity },
  { log }: ImageContext,
): Qcow2Image {
  const image = openQcow2(path, options);
  if (!hasFeature(image.header, Incompatible.Dirty)) return image;
  image.close();
  for (const line of repairQcow2(path, options)) log(`${path}: ${line}`);
  return openQcow2(path, options);
}

interface Parts {
  readonly disk: DiskFile;
  data: DiskFile | null;
  image: Qcow2Image | null;
  file: Qcow2File | null;
}

function openDataFile(
  image: Qcow2Image,
  spec: ImageSpec,
  { files }: ImageContext,
): DiskFile | null {
  const found = locateDataFile(image);
  if (found === null) return null;
  return files.open(found.path, { readOnly: spec.readOnly, direct: spec.direct, same: found });
}

/** Where the image's backing file is. */
function parentSpec(image: Qcow2Image, child: ImageSpec): ImageSpec | null {
  const onCeph = backingOnCeph(image);
  if (onCeph !== null) {
    return { type: "rbd", path: onCeph, readOnly: true, direct: child.direct };
  }
  const backing = locateBacking(image);
  if (backing === null) return null;
  return {
    type: backing.type,
    path: backing.path,
    readOnly: true,
    direct: child.direct,
    key: child.key,
    asParent: { ...backing, raw: backing.type === "aio", uuid: null },
  };
}
