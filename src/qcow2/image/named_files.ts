/**
 * The files that an image names: its backing file and its data file. Their places are confined as
 * those of a VHD's parents are.
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import {
  admitParent,
  type Confinement,
  describeRefusal,
  ON_CEPH,
} from "../../files/confinement.ts";
import { canonicalPath, folderOf, normalizePath } from "../../files/paths.ts";
import type { FileIdentity, Storage } from "../../files/storage.ts";
import type { Qcow2Image } from "./image.ts";

/** What QEMU calls the formats that a backing file can have, and the types that serve them. */
const TYPE_OF_FORMAT: ReadonlyMap<string, string> = new Map([
  ["raw", "aio"],
  ["qcow2", "qcow2"],
  ["vpc", "vhd"],
]);

/** What QEMU calls the format of images that a type of driver serves; null when none can be below. */
export function formatOfType(type: string): string | null {
  for (const [format, known] of TYPE_OF_FORMAT) if (known === type) return format;
  return null;
}

/** A file that an image names, which may be opened. */
export interface NamedFile extends FileIdentity {
  readonly path: string;
  /** The image that names it. */
  readonly childPath: string;
  /** The folders in which the files that it names may be. */
  readonly confinement: Confinement;
}

/** A backing file. */
export interface BackingFile extends NamedFile {
  /** The type of driver that serves it. */
  readonly type: string;
}

/** The image that names another file, as far as that matters for finding it. */
export interface Namer {
  readonly path: string;
  readonly storage: Storage;
  readonly confinement: Confinement;
}

/**
 * Finds the backing file of an image; null without one.
 *
 * @throws {SystemError} EINVAL without a format, which is never guessed; EOPNOTSUPP for a format or a
 * protocol that is not supported; ENOENT when it is missing; EPERM when its place is not allowed.
 */
export function locateBacking(image: Qcow2Image): BackingFile | null {
  const { backing, path } = image;
  if (backing === null) return null;
  const { name, format } = backing;
  if (format === null) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot use ${path}: it has a backing file without format`,
      {
        hint: `say it by qemu-img rebase -u -b ${JSON.stringify(name)} -F FORMAT`,
      },
    );
  }
  const type = TYPE_OF_FORMAT.get(format);
  if (type === undefined) {
    const known = [...TYPE_OF_FORMAT.keys()].join(", ");
    throw new SystemError(
      Errno.EOPNOTSUPP,
      `Cannot use ${path}: its backing file has the format ${JSON.stringify(format)}, not ${known}`,
    );
  }
  return { type, ...locateNamed(image, name, "backing file") };
}

/** How QEMU names an image on Ceph: `rbd:POOL/IMAGE[@SNAPSHOT][:OPTION=VALUE]…`. */
const CEPH_PROTOCOL = "rbd:";

/**
 * The image on Ceph that an image has as its backing file, as tapdisk names it behind `rbd:`; null when
 * its backing file is another, or there is none.
 *
 * Only `id` may follow its name: with a configuration file of its choice, an image that comes from
 * anywhere could make this program write to a log of its choice.
 *
 * @throws {SystemError} EPERM when images on Ceph are not allowed, or for another option; EINVAL for a
 * format that is not raw.
 */
export function backingOnCeph(
  { backing, path, confinement }: Pick<Qcow2Image, "backing" | "path" | "confinement">,
): string | null {
  if (backing === null || !backing.name.startsWith(CEPH_PROTOCOL)) return null;
  const what = `Cannot use ${path}: its backing file is ${JSON.stringify(backing.name)}`;
  if (!confinement.onCeph) {
    const hint = `allow images on Ceph by --parent-root ${ON_CEPH}`;
    throw new SystemError(Errno.EPERM, what, { hint });
  }
  if (backing.format !== "raw") throw new SystemError(Errno.EINVAL, `${what}, and is not raw`);
  const [name, ...options] = backing.name.slice(CEPH_PROTOCOL.length).split(":");
  // The name of a user is part of the names of files, such as a keyring and a log.
  const isPlain = /^[^\\,]+$/.test(name) &&
    options.every((option) => /^id=[^\\,/$\s]+$/.test(option));
  if (!isPlain) throw new SystemError(Errno.EPERM, `${what}, of which only id= may be an option`);
  return [name, ...options].join(",");
}

/**
 * How an image is to name one on Ceph that is below it.
 *
 * @param options.name `POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]`.
 * @param options.user Without `client.`; null for the one that is used where none is named.
 * @throws {SystemError} EINVAL for what cannot be named.
 */
export function backingNameOnCeph(
  path: string,
  { name, user }: { name: string; user: string | null },
): string {
  const stored = `${CEPH_PROTOCOL}${name}${user === null ? "" : `:id=${user}`}`;
  const confinement = { roots: null, onCeph: true };
  const backing = { name: stored, format: "raw" };
  // With a colon in a name, something else would be read.
  const isSame = !name.includes(":") && !user?.includes(":");
  if (isSame && backingOnCeph({ backing, path, confinement }) !== null) return stored;
  const why = `a QCOW2 cannot store the name ${JSON.stringify(stored)}`;
  throw new SystemError(Errno.EINVAL, `Cannot create ${path} (${why})`);
}

/**
 * Finds the data file of an image.
 *
 * @throws {SystemError} EINVAL when the image has no name for it, else as `locateBacking`.
 */
export function locateDataFile(image: Qcow2Image): NamedFile | null {
  if (image.dataFile === null) return null;
  const { name } = image.dataFile;
  if (name !== null) return locateNamed(image, name, "data file");
  throw new SystemError(Errno.EINVAL, `Cannot use ${image.path}: it does not name its data file`, {
    hint: "set it by qemu-img amend -o data_file=FILE",
  });
}

/** Finds a file by a name in an image: an absolute path, or one from the image's folder. */
export function locateNamed(image: Namer, stored: string, what: string): NamedFile {
  const { storage, confinement, path: childPath } = image;
  const name = withoutProtocol(childPath, stored, what);
  const path = name.startsWith("/")
    ? name
    : `${folderOf(canonicalPath(storage, childPath))}/${name}`;
  if (!storage.exists(path)) {
    throw new SystemError(Errno.ENOENT, `Cannot open ${path}, the ${what} of ${childPath}`);
  }
  const location = admitParent(storage, confinement, path);
  if (location === null) {
    const why = describeRefusal(confinement, normalizePath(storage, path));
    const message = `Cannot follow the chain from ${childPath}: ${why}`;
    throw new SystemError(Errno.EPERM, message, { message });
  }
  const { device, inode } = location;
  const known = name.startsWith("/") ? path : canonicalPath(storage, path);
  return { path: known, device, inode, childPath, confinement };
}

/** Takes `file:` away. Throws `SystemError` EOPNOTSUPP for what is not a file's name. */
function withoutProtocol(childPath: string, stored: string, what: string): string {
  const colon = stored.indexOf(":");
  const slash = stored.indexOf("/");
  const hasProtocol = colon >= 0 && (slash < 0 || colon < slash);
  if (!hasProtocol) return stored;
  if (stored.startsWith("file:")) return stored.slice(5).replace(/^\/\/(?=\/)/, "");
  throw new SystemError(
    Errno.EOPNOTSUPP,
    `Cannot use ${childPath}: its ${what} ${JSON.stringify(stored)} is not the name of a file`,
  );
}
