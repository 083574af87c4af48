/**
 * The places that are allowed for the parents of an image. An image names its parent, so a user who
 * can create an image could name any file of the machine: a tapdisk would serve it, and coalesce
 * would write to it. So a parent must lie in the folder tree of the top image of the chain, which
 * the caller named, or in a folder that the administrator allows. All code that follows a chain
 * checks each link here.
 *
 * A check of names cannot detect hard links: a hard link is the same file under another name. The
 * system's `fs.protected_hardlinks` prevents users from creating links to files of other users.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { folderOf, isWithin, normalizePath, volumeNames } from "./paths.ts";
import { requireTrustedFile } from "./trusted_path.ts";
import type { FileLocation, Storage } from "./storage.ts";

/** One folder a line. `any` allows all folders, `rbd` images on Ceph; a `#` starts a comment. */
const PARENT_ROOTS_FILE = "/etc/blktap/parent-roots";
/** Folders separated by colons, or `any`. */
export const PARENT_ROOTS_VARIABLE = "BLKTAP_PARENT_ROOTS";
/** The value that allows all folders. */
export const ANY_FOLDER = "any";

/** The value that allows images on Ceph as parents. */
export const ON_CEPH = "rbd";

/**
 * The advice in an error about a refused parent. It is short, as a control message has 255 bytes.
 */
const ADVICE = `allow it by --parent-root or ${PARENT_ROOTS_FILE}`;

/**
 * The mount points of XenServer's storage repositories. The parent of an image in one repository
 * may be in another, as with the local cache.
 */
const SR_MOUNT_FOLDERS = ["/run/sr-mount", "/var/run/sr-mount"];

/** The folders that are allowed for the parents of an image and their parents. */
export interface Confinement {
  /** Real paths, with all links resolved. Null allows all folders. */
  readonly roots: readonly string[] | null;
  /** Whether images on Ceph may be parents, too. */
  readonly onCeph: boolean;
}

let allowed: readonly string[] = [];

/**
 * Allows these folders for parents in this process, in addition to the folders in the environment
 * and in `/etc/blktap/parent-roots`. `any` allows all folders.
 *
 * @returns The folders that were allowed by the previous call. They are not allowed any more.
 */
export function allowParentsIn(folders: readonly string[]): readonly string[] {
  const before = allowed;
  allowed = [...folders];
  return before;
}

/** Parses the text of `/etc/blktap/parent-roots` into folders. */
export function parseParentRoots(text: string): string[] {
  return text.split("\n").map((line) => line.replace(/#.*/, "").trim())
    .filter((line) => line.startsWith("/") || line === ANY_FOLDER || line === ON_CEPH);
}

/** The allowed folders besides the image's own. */
function allowedFolders(): string[] {
  return [...allowed, ...environmentRoots(), ...fileRoots()];
}

function environmentRoots(): string[] {
  try {
    return (Deno.env.get(PARENT_ROOTS_VARIABLE) ?? "").split(":").filter((root) => root !== "");
  } catch (error) {
    // The library's user did not grant the permission to read the environment.
    if (error instanceof Deno.errors.NotCapable) return [];
    throw error;
  }
}

function fileRoots(): string[] {
  requireTrustedFile(PARENT_ROOTS_FILE);
  try {
    return parseParentRoots(Deno.readTextFileSync(PARENT_ROOTS_FILE));
  } catch {
    return [];
  }
}

/** The allowed folders for the parents of an image that the caller named. */
export function confinementOf(storage: Storage, path: string): Confinement {
  if (allowed.includes(ANY_FOLDER)) return ANYWHERE;
  const settings = allowedFolders();
  if (settings.includes(ANY_FOLDER)) return ANYWHERE;
  const folders = settings.filter((setting) => setting !== ON_CEPH);
  const absolute = path.startsWith("/") ? path : `${storage.workingDirectory()}/${path}`;
  const own = realFolder(storage, folderOf(absolute));
  const plain = normalizePath(storage, path);
  const inRepository = SR_MOUNT_FOLDERS.some((folder) =>
    isWithin(plain, folder) || isWithin(own, realFolder(storage, folder))
  );
  const roots = [own, ...(inRepository ? SR_MOUNT_FOLDERS : []), ...folders];
  return {
    roots: [...new Set(roots.map((root) => realFolder(storage, root)))],
    onCeph: folders.length < settings.length,
  };
}

const ANYWHERE: Confinement = { roots: null, onCeph: true };

/**
 * The real path of a folder, with all links resolved. A folder that does not exist stays as
 * written.
 */
function realFolder(storage: Storage, folder: string): string {
  try {
    return storage.realPath(folder);
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno !== Errno.ENOENT) throw error;
    return normalizePath(storage, folder);
  }
}

/** The place of a parent's name and of its file. */
export interface ParentPlace {
  /** The folder that contains the name, with all links resolved. */
  readonly folder: string;
  /** The file that the name leads to, with all links resolved. */
  readonly realPath: string;
  readonly isBlockDevice: boolean;
}

/**
 * The rule: the name is in an allowed folder, and leads to a file in an allowed folder. Names of
 * logical volumes are links to `/dev/dm-N`, so a name below `/dev` may also lead to any block
 * device there.
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
 * Checks a file that an image names as its parent.
 *
 * @param path The file, which must exist.
 * @returns The file's place and identity, so that exactly this file is opened; null when it is
 * outside the allowed folders.
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
  // A logical volume has a name in its group's folder and another in /dev/mapper.
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

/** The reason of a refusal, with advice, as the end of a sentence. */
export function describeRefusal({ roots }: Confinement, parentPath: string): string {
  const [own = "any folder", ...others] = roots ?? [];
  const folders = others.length === 0 ? own : `${own} and ${others.length} other folders`;
  return `its parent ${parentPath} lies outside of ${folders} (EPERM); ${ADVICE}`;
}
