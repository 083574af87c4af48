import { Errno, SystemError } from "../../ffi/errno.ts";
import { syncFile } from "../files/new_file.ts";
import {
  canonicalPath,
  fileNameOf,
  folderOf,
  normalizePath,
  relativePath,
} from "../files/paths.ts";
import { type FileIdentity, type OnStorage, osStorage, type Storage } from "../files/storage.ts";
import { openVhd } from "../vhd/image/image.ts";
import { keyhashOf } from "../vhd/snapshot.ts";
import { createQcow2 } from "./create.ts";
import { openQcow2 } from "./image/image.ts";
import { formatOfType } from "./image/named_files.ts";

/** What an image is to be made on. */
export interface BackingImage {
  /** The driver's name: `qcow2`, `vhd` or `aio`. */
  readonly type: string;
  readonly path: string;
}

/**
 * Makes an empty image on another one, which holds what this one has not. The name of the other one
 * is stored relative to the folder of the new one.
 *
 * @throws {SystemError} EOPNOTSUPP for another type; what the images say.
 */
export function snapshotQcow2(
  path: string,
  { storage = osStorage, parent, same }: OnStorage & {
    readonly parent: BackingImage;
    readonly same?: FileIdentity;
  },
): void {
  const format = formatOfType(parent.type);
  if (format === null) {
    const why = `an image of type ${parent.type} cannot be below a QCOW2`;
    throw new SystemError(Errno.EOPNOTSUPP, `Cannot create ${path} (${why})`);
  }
  const parentPath = canonicalPath(storage, parent.path);
  const childPath = placeOf(storage, path);
  if (childPath === parentPath) {
    throw new SystemError(Errno.EINVAL, `Cannot create ${path}, as it would be its own parent`);
  }
  if (parent.type === "vhd") refuseEncrypted(storage, parentPath, childPath);
  const facts = factsOf(storage, parent);
  syncFile(storage, parentPath);
  const relative = relativePath(childPath, parentPath).replace(/^\.\//, "");
  // QEMU takes what stands in front of a colon for a protocol.
  const name = relative.includes(":") ? parentPath : relative;
  createQcow2(path, { storage, same, ...facts, backing: { name, format } });
}

/** What the guest writes from now on would not be encrypted. */
function refuseEncrypted(storage: Storage, parentPath: string, childPath: string): void {
  const image = openVhd(parentPath, { storage });
  image.close();
  if (keyhashOf(image) === null) return;
  const why = `${parentPath} is encrypted, and a QCOW2 on it would not be`;
  throw new SystemError(Errno.EOPNOTSUPP, `Cannot create ${childPath} (${why})`);
}

/** The real path of a file that may not exist yet. */
function placeOf(storage: Storage, path: string): string {
  if (storage.exists(path)) return canonicalPath(storage, path);
  const plain = normalizePath(storage, path);
  const folder = folderOf(plain);
  if (!storage.exists(folder)) return plain;
  return `${canonicalPath(storage, folder).replace(/\/$/, "")}/${fileNameOf(plain)}`;
}

/** The size of the parent's disk, and what the child takes over. */
export function factsOf(
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
