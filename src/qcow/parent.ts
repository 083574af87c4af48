import { Errno, SystemError } from "../../ffi/errno.ts";
import { locateNamed, type NamedFile } from "../qcow2/image/named_files.ts";
import { type BackingFormat, parseBackingName } from "./backing.ts";
import type { QcowImage } from "./image.ts";

/** The backing file of an image. */
export interface FoundBacking extends NamedFile {
  readonly format: BackingFormat;
}

/**
 * Finds the backing file of an image. The format of QCOW does not say what a backing file is, and its
 * content may come from a guest, so it must be stated elsewhere: in the image's name, or in the name of
 * the backing file, in the form that QEMU understands too.
 *
 * @param given What the name of the image says; null when it says nothing.
 * @returns Null for an image without a backing file.
 * @throws {SystemError} EINVAL when nothing says the format; ENOENT for a file that is missing; EPERM
 * for a place that is not allowed.
 */
export function locateBacking(image: QcowImage, given: BackingFormat | null): FoundBacking | null {
  const { backingName, path } = image;
  if (backingName === null) return null;
  const named = parseBackingName(backingName, path);
  const format = given ?? named.format;
  if (format === null) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot open ${path}: nothing says whether its backing file ${named.path} is raw or QCOW`,
      { hint: `name it qcow:raw:${path} or qcow:qcow:${path}` },
    );
  }
  if (named.format !== null && format !== named.format) {
    const what = `Cannot open ${path} with a backing file that is ${format}`;
    throw new SystemError(Errno.EINVAL, `${what}: the image says that it is ${named.format}`);
  }
  return { ...locateNamed(image, named.path, "backing file"), format };
}
