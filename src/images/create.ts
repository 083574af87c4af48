import { Errno, SystemError } from "../../ffi/errno.ts";
import { osStorage } from "../files/storage.ts";
import type { NewImageOptions } from "./kind.ts";
import { knownImage } from "./names.ts";

/**
 * Makes an empty image.
 *
 * @param name As for tapdisk: `vhd:/disk.vhd`.
 * @throws {SystemError} EEXIST for a file that exists; EOPNOTSUPP for a type that is only read; EINVAL
 * for a size that the type cannot have.
 */
export function createImage(name: string, options: NewImageOptions): void {
  const { kind, path } = knownImage(name, "make");
  if (kind.create === undefined) {
    throw new SystemError(
      Errno.EOPNOTSUPP,
      `Cannot make ${name}: images of this type are only read`,
    );
  }
  if (osStorage.exists(path) && osStorage.status(path).kind !== "block") {
    throw new SystemError(Errno.EEXIST, `Cannot create ${path}: choose another name`);
  }
  kind.create(osStorage, { path }, options);
}
