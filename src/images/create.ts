import { Errno, SystemError } from "../../ffi/errno.ts";
import { createRbd, type RbdMaking } from "../../ffi/rbd_images.ts";
import { firstLayer } from "../driver/layers.ts";
import { parseRbdName } from "../driver/rbd/rbd_name.ts";
import { osStorage } from "../files/storage.ts";
import type { ImageKind, NewImageOptions } from "./kind.ts";
import { knownImage } from "./names.ts";

/**
 * Makes an empty image.
 *
 * @param name As for tapdisk: `vhd:/disk.vhd`.
 * @throws {SystemError} EEXIST for a file that exists; EOPNOTSUPP for a type that is only read; EINVAL
 * for a size that the type cannot have, and for a fixed image of a type without those.
 */
export function createImage(name: string, options: NewImageOptions): void {
  const { type, path: rest } = firstLayer(name);
  if (type === "rbd") {
    if (options.fixed === true) throw noFixed(name);
    return createRbd(parseRbdName(rest, { readOnly: false }), options.sizeBytes, options.onCeph);
  }
  requireNothingOfCeph(name, options.onCeph);
  const { kind, path } = knownImage(name, "make");
  if (kind.create === undefined) {
    throw new SystemError(
      Errno.EOPNOTSUPP,
      `Cannot make ${name}: images of this type are only read`,
    );
  }
  if (options.fixed === true) requireFixed(name, kind);
  if (osStorage.exists(path) && osStorage.status(path).kind !== "block") {
    throw new SystemError(Errno.EEXIST, `Cannot create ${path}: choose another name`);
  }
  kind.create(osStorage, { path }, options);
}

/** Throws `SystemError` EINVAL for a type whose images cannot have all their room from the start. */
export function requireFixed(name: string, { hasFixed = false }: ImageKind): void {
  if (!hasFixed) throw noFixed(name);
}

/** Throws `SystemError` EINVAL for options that only images on Ceph have. */
export function requireNothingOfCeph(name: string, making: RbdMaking = {}): void {
  if (making.objectBytes === undefined && making.dataPool === undefined) return;
  const why = "only images on Ceph have objects and a data pool";
  throw new SystemError(Errno.EINVAL, `Cannot make ${name} (${why})`);
}

/** The error for an image that cannot have all its room from the start. */
export function noFixed(name: string): SystemError {
  const why = "images of its type have no room from the start";
  return new SystemError(Errno.EINVAL, `Cannot make ${name} fixed (${why})`);
}
