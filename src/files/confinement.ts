/**
 * Where the parents of an image may be. An image names its parent, and whoever can put an image
 * somewhere could name any file of the machine: a tapdisk would serve it, coalesce would write to it.
 * So a parent must lie in the folder tree of the image that was named to us (the top of the chain), or
 * in a folder that the administrator allows. All that follows a chain asks here, for each link.
 *
 * What no rule by names can see: a hard link is as much the file as its other name. The system's
 * `fs.protected_hardlinks` keeps users from making links to files that are not theirs.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { folderOf, isWithin, normalizePath, volumeNames } from "./paths.ts";
import type { FileLocation, Storage } from "./storage.ts";

/** One folder a line; `any` allows all; what follows a `#` is a comment. */
const PARENT_ROOTS_FILE = "/etc/blktap/parent-roots";
/** Folders with colons between them, or `any`. */
export const PARENT_ROOTS_VARIABLE = "BLKTAP_PARENT_ROOTS";
/** In place of a folder: parents may be anywhere. */
export const ANY_FOLDER = "any";

/** What to do about a parent that is refused. Short: a control message has room for 255 bytes. */
const ADVICE = `allow it by --parent-root or ${PARENT_ROOTS_FILE}`;

/**
 * Where XenServer's storage manager mounts storage repositories. An image in one may have its parent
 * in another: so do those of the local cache.
 */
const SR_MOUNT_FOLDERS = ["/run/sr-mount", "/var/run/sr-mount"];

/** The folders in which the parents of an image, and theirs, may be. */
export interface Confinement {
  /** With all links followed. Null: anywhere. */
  readonly roots: readonly string[] | null;
}

let allowed: readonly string[] = [];

/**
 * Lets parents be in these folders too, in this process, besides those that the environment and the
 * file `/etc/blktap/parent-roots` name; `any` lets them be anywhere.
 *
 * @returns The folders that were allowed in this way before, which are not any more.
 */
export function allowParentsIn(folders: readonly string[]): readonly string[] {
  const before = allowed;
  allowed = [...folders];
  return before;
}

/** The folders that a text of `/etc/blktap/parent-roots` names. */
export function parseParentRoots(text: string): string[] {
  return text.split("\n").map((line) => line.replace(/#.*/, "").trim())
    .filter((line) => line.startsWith("/") || line === ANY_FOLDER);
}

/** The folders that are allowed besides that of the image. */
function allowedFolders(): string[] {
  return [...allowed, ...environmentRoots(), ...fileRoots()];
}

function environmentRoots(): string[] {
  try {
    return (Deno.env.get(PARENT_ROOTS_VARIABLE) ?? "").split(":").filter((root) => root !== "");
  } catch (error) {
    // A library without the permission to read the environment.
    if (error instanceof Deno.errors.NotCapable) return [];
    throw error;
  }
}

function fileRoots(): string[] {
  try {
    return parseParentRoots(Deno.readTextFileSync(PARENT_ROOTS_FILE));
  } catch {
    return [];
  }
}

/** Where the parents may be of an image that was named to us. */
export function confinementOf(storage: Storage, path: string): Confinement {
  const folders = allowedFolders();
  if (folders.includes(ANY_FOLDER)) return { roots: null };
  const absolute = path.startsWith("/") ? path : `${storage.workingDirectory()}/${path}`;
  const own = realFolder(storage, folderOf(absolute));
  const plain = normalizePath(storage, path);
  const inRepository = SR_MOUNT_FOLDERS.some((folder) =>
    isWithin(plain, folder) || isWithin(own, realFolder(storage, folder))
  );
  const roots = [own, ...(inRepository ? SR_MOUNT_FOLDERS : []), ...folders];
  return { roots: [...new Set(roots.map((root) => realFolder(storage, root)))] };
}

/** A folder with all links followed; one that is not there as it is written. */
function realFolder(storage: Storage, folder: string): string {
  try {
    return storage.realPath(folder);
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno !== Errno.ENOENT) throw error;
    return normalizePath(storage, folder);
  }
}

/** Where a name of a parent stands and leads. */
export interface ParentPlace {
  /** The folder in which the name is, with all links followed. */
  readonly folder: string;
  /** Where the name leads, with all links followed. */
  readonly realPath: string;
  readonly isBlockDevice: boolean;
}

/**
 * The rule: the name stands in an allowed folder, and leads to a file in an allowed folder. Names of
 * logical volumes are links to `/dev/dm-N`: a name below `/dev` may also lead to any block device there.
 */
export function isAdmitted(
  { folder, realPath, isBlockDevice }: ParentPlace,
  roots: readonly string[],
): boolean {
  if (!roots.some((root) => isWithin(folder, root))) return false;
  if (roots.some((root) => isWithin(realPath, root))) return true;
  return isBlockDevice && isWithin(folder, "/dev") && isWithin(realPath, "/dev");
}

/**
 * Looks at a file that an image names as its parent.
 *
 * @param path The file, which must exist.
 * @returns Where it is and which file it is, so that this very file is opened; null when it lies
 * outside of the folders that are allowed.
 */
export function admitParent(
  storage: Storage,
  { roots }: Confinement,
  path: string,
): FileLocation | null {
  const location = storage.locate(path);
  if (roots === null) return location;
  const { realPath, kind } = location;
  const isBlockDevice = kind === "block";
  // A logical volume has a name in its group's folder and one in /dev/mapper.
  const names = isBlockDevice ? [path, ...volumeNames(normalizePath(storage, path))] : [path];
  const admitted = names.some((name) => {
    const folder = realFolder(storage, folderOf(name));
    return isAdmitted({ folder, realPath, isBlockDevice }, roots) &&
      leadsTo(storage, name, location);
  });
  return admitted ? location : null;
}

function leadsTo(storage: Storage, name: string, { device, inode }: FileLocation): boolean {
  if (!storage.exists(name)) return false;
  const found = storage.locate(name);
  return found.device === device && found.inode === inode;
}

/** Why a parent was refused, and what to do, as the end of a sentence. */
export function describeRefusal({ roots }: Confinement, parentPath: string): string {
  const [own = "any folder", ...others] = roots ?? [];
  const folders = others.length === 0 ? own : `${own} and ${others.length} other folders`;
  return `its parent ${parentPath} lies outside of ${folders} (EPERM); ${ADVICE}`;
}
