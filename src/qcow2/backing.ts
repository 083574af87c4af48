import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  canonicalPath,
  fileNameOf,
  folderOf,
  normalizePath,
  relativePath,
} from "../files/paths.ts";
import type { Storage } from "../files/storage.ts";
import { openVhd } from "../vhd/image/image.ts";
import { keyhashOf } from "../vhd/snapshot.ts";
import { openQcow2 } from "./image/image.ts";
import { formatOfType } from "./image/named_files.ts";

/** An image that is to be below another. */
export interface BackingImage {
  /** The driver's name: `qcow2`, `vhd` or `aio`. */
  readonly type: string;
  readonly path: string;
}

/** What an image stores of the one below it, and where that is. */
export interface StoredBacking {
  /** Relative to the folder of the image, where that is possible. */
  readonly name: string;
  /** What QEMU calls the format. */
  readonly format: string;
  readonly path: string;
}

/**
 * What an image is to store of the one below it.
 *
 * @param doing What is done with the image, for the error: `create`.
 * @throws {SystemError} EOPNOTSUPP for a type that cannot be below, and an encrypted image; EINVAL for the image itself.
 */
export function storedBacking(
  storage: Storage,
  { path, doing }: { path: string; doing: string },
  { type, path: below }: BackingImage,
): StoredBacking {
  const format = formatOfType(type);
  if (format === null) {
    const why = `an image of type ${type} cannot be below a QCOW2`;
    throw new SystemError(Errno.EOPNOTSUPP, `Cannot ${doing} ${path} (${why})`);
  }
  const parentPath = canonicalPath(storage, below);
  const childPath = placeOf(storage, path);
  if (childPath === parentPath) {
    throw new SystemError(Errno.EINVAL, `Cannot ${doing} ${path}, as it would be its own parent`);
  }
  if (type === "vhd") refuseEncrypted(storage, { path: childPath, doing }, parentPath);
  const relative = relativePath(childPath, parentPath).replace(/^\.\//, "");
  // QEMU takes what stands in front of a colon for a protocol.
  const name = relative.includes(":") ? parentPath : relative;
  return { name, format, path: parentPath };
}

/** What a guest writes to the image would not be encrypted. */
function refuseEncrypted(
  storage: Storage,
  { path, doing }: { path: string; doing: string },
  parentPath: string,
): void {
  const image = openVhd(parentPath, { storage });
  image.close();
  if (keyhashOf(image) === null) return;
  const why = `${parentPath} is encrypted, and a QCOW2 on it would not be`;
  throw new SystemError(Errno.EOPNOTSUPP, `Cannot ${doing} ${path} (${why})`);
}

/** The real path of a file that may not exist yet. */
function placeOf(storage: Storage, path: string): string {
  if (storage.exists(path)) return canonicalPath(storage, path);
  const plain = normalizePath(storage, path);
  const folder = folderOf(plain);
  if (!storage.exists(folder)) return plain;
  return `${canonicalPath(storage, folder).replace(/\/$/, "")}/${fileNameOf(plain)}`;
}

/**
 * The size of the disk of an image that is to be below, and the size of its clusters if it has some.
 *
 * @throws {SystemError} what the image says.
 */
export function backingFacts(
  storage: Storage,
  { type, path }: BackingImage,
): { sizeBytes: number; clusterBytes?: number } {
  if (type === "qcow2") {
    const image = openQcow2(path, { storage });
    image.close();
    return { sizeBytes: image.sizeBytes, clusterBytes: image.geometry.clusterBytes };
  }
  if (type === "vhd") {
    const image = openVhd(path, { storage });
    image.close();
    return { sizeBytes: image.sizeBytes };
  }
  const file = storage.open(path, "read");
  try {
    return { sizeBytes: file.sizeBytes() };
  } finally {
    file.close();
  }
}
