import { Errno } from "../../../ffi/errno.ts";
import { admitParent, type Confinement, describeRefusal } from "../../files/confinement.ts";
import { canonicalPath, fileNameOf, folderOf, normalizePath } from "../../files/paths.ts";
import type { FileIdentity, Storage } from "../../files/storage.ts";
import { cephNameOfPath } from "../format/ceph_path.ts";
import { equalUuids, formatUuid } from "../format/uuid.ts";
import { VhdChainError } from "./errors.ts";
import { readFooter } from "./footer_reader.ts";
import { type OpenOptions, openVhd, type VhdImage } from "./image.ts";
import { readLocatorName } from "./locator_reader.ts";

/** The parent's path as stored in the child, without looking for the file; null without one. */
export function unresolvedParent(image: VhdImage): string | null {
  for (const locator of image.parent?.locators ?? []) {
    const path = readLocatorName(image.file, locator);
    if (path !== null) return path;
  }
  return image.parent?.name || null;
}

/** A file that a child names as its parent, and its identity. */
export interface FoundFile extends FileIdentity {
  readonly path: string;
}

/** The place of an image's parent, and the conditions that {@linkcode openParent} checks. */
export interface FoundParent extends FoundFile {
  /** Whether the parent is a raw image. */
  readonly raw: boolean;
  /** The UUID that the parent must have; null for a raw image, and when any UUID is accepted. */
  readonly uuid: Uint8Array | null;
  /** The child image. */
  readonly childPath: string;
  /** The folders in which the parent's own parents may be. */
  readonly confinement: Confinement;
}

/** The result of a lookup of a parent's name. */
export interface ParentLookup {
  /** The file, whose place is allowed; null without one. Its UUID is not checked yet. */
  readonly found: FoundFile | null;
  /** The error when the file exists but its place is not allowed for a parent. */
  readonly refusal: VhdChainError | null;
}

/**
 * Finds a file by a name that is stored in the child. An absolute path is used as it is; any other
 * name is relative to the child's folder. When an absolute path does not exist, or its place is not
 * allowed, it is tried relative to the child's folder too, for chains that were made on Windows.
 */
export function findParent(image: VhdImage, name: string): ParentLookup {
  const { storage, confinement, path } = image;
  const beside = `${folderOf(canonicalPath(storage, path))}/${name}`;
  let refusal: VhdChainError | null = null;
  for (const candidate of name.startsWith("/") ? [name, beside] : [beside]) {
    if (!storage.exists(candidate)) continue;
    const location = admitParent(storage, confinement, candidate);
    if (location === null) {
      const problem = describeRefusal(confinement, normalizePath(storage, candidate));
      refusal ??= new VhdChainError(path, Errno.EPERM, problem);
      continue;
    }
    const { device, inode } = location;
    const known = candidate === beside ? canonicalPath(storage, beside) : candidate;
    return { found: { path: known, device, inode }, refusal: null };
  }
  return { found: null, refusal };
}

/** The file in the child's folder with the parent name of the child's header. */
export function findNamedParent(image: VhdImage): ParentLookup {
  const name = fileNameOf(image.parent?.name ?? "");
  return name === "" ? { found: null, refusal: null } : findParent(image, name);
}

/** How an image's parent is chosen. */
export interface ResolveOptions {
  /**
   * When no file has the parent UUID of the child's header, use the first file that a locator
   * names. For operations that describe a chain and do not read through it.
   */
  readonly anyUuid?: boolean;
}

/** The path of an image's parent; see {@linkcode locateParent}. */
export function resolveParent(image: VhdImage, options: ResolveOptions = {}): string {
  return locateParent(image, options).path;
}

/**
 * Locates an image's parent: the first file with the parent UUID of the image's header. The
 * locators are followed in header order. The last candidate is the file in the image's folder with
 * the parent name of the header, as some programs write no locators, or change only the header. A
 * raw parent has no UUID: it is the first file that a locator names. Files in places that are not
 * allowed are skipped.
 *
 * @throws {VhdChainError} without a parent; EPERM when a parent exists in a place that is not
 * allowed.
 * @throws {VhdFormatError} | {SystemError} when the only candidate cannot be read.
 */
export function locateParent(
  image: VhdImage,
  { anyUuid = false }: ResolveOptions = {},
): FoundParent {
  const { parent, path: childPath, confinement } = image;
  const raw = parent === null || parent.raw;
  const uuid = raw || anyUuid ? null : parent.uuid;
  return { ...chooseParent(image, { anyUuid }), raw, uuid, childPath, confinement };
}

function chooseParent(image: VhdImage, { anyUuid }: { anyUuid: boolean }): FoundFile {
  const { parent } = image;
  const { stated, missing, refusal } = statedParents(image);
  const [first] = stated;
  if (parent === null || parent.raw) {
    if (first !== undefined) return first;
    throw refusal ?? noParent(image, missing);
  }
  const candidates = [...stated];
  const { found: named, refusal: namedRefusal } = findNamedParent(image);
  if (named !== null && !stated.some(({ path }) => path === named.path)) candidates.push(named);
  if (anyUuid && candidates.length === 1 && first !== undefined) return first;
  let failure: unknown = refusal ?? namedRefusal;
  for (const found of candidates) {
    try {
      requireUuid(uuidOf(image.storage, found), {
        path: found.path,
        childPath: image.path,
        uuid: parent.uuid,
      });
      return found;
    } catch (error) {
      failure ??= error;
    }
  }
  if (anyUuid && first !== undefined) return first;
  throw failure ?? noParent(image, missing);
}

/** The files that the locators name, each once; the names without a file; the first refusal. */
function statedParents(
  image: VhdImage,
): { stated: FoundFile[]; missing: string[]; refusal: VhdChainError | null } {
  const stated = new Map<string, FoundFile>();
  const missing = new Set<string>();
  let refusal: VhdChainError | null = null;
  for (const locator of image.parent?.locators ?? []) {
    const name = readLocatorName(image.file, locator);
    if (name === null) continue;
    const lookup = findParent(image, name);
    refusal ??= lookup.refusal;
    if (lookup.found !== null) stated.set(lookup.found.path, lookup.found);
    else if (lookup.refusal === null) missing.add(name);
  }
  return { stated: [...stated.values()], missing: [...missing], refusal };
}

function noParent(image: VhdImage, missing: readonly string[]): VhdChainError {
  const { parent, path } = image;
  const names = missing.length > 0 || parent?.raw !== false ? missing : [parent.name];
  if (names.join("") === "") {
    return new VhdChainError(path, Errno.EINVAL, "it names no parent that can be read");
  }
  const onCeph = names.map(cephNameOfPath).find((name) => name !== null) ?? null;
  if (onCeph !== null) {
    const problem =
      `its parent rbd:${onCeph} is on Ceph (ENOENT); only tapdisk and td-util read it`;
    return new VhdChainError(path, Errno.ENOENT, problem);
  }
  return new VhdChainError(
    path,
    Errno.ENOENT,
    `its parent is missing (ENOENT); looked for ${names.join(", ")} beside it`,
  );
}

/** The UUID of a candidate. */
function uuidOf(storage: Storage, { path, device, inode }: FoundFile): Uint8Array {
  const file = storage.open(path, "read", { same: { device, inode } });
  try {
    return readFooter(file, {}).footer.uuid;
  } finally {
    file.close();
  }
}

function requireUuid(
  found: Uint8Array,
  { path, childPath, uuid }: Pick<FoundParent, "path" | "childPath"> & { uuid: Uint8Array },
): void {
  if (equalUuids(uuid, found)) return;
  throw new VhdChainError(
    childPath,
    Errno.EINVAL,
    `${path} has UUID ${formatUuid(found)}, but the child was made from ${formatUuid(uuid)}`,
  );
}

/**
 * Opens an image's parent and checks that it is the located one: the same file, with the UUID of
 * the child's header. A file that has replaced it is refused. All code that opens parents of images
 * uses this function, including the live driver.
 *
 * @throws {VhdChainError} for an image with another UUID.
 * @throws {SystemError} ESTALE for another file; errors of {@linkcode openVhd}.
 */
export function openParent(parent: FoundParent, options: OpenOptions = {}): VhdImage {
  const { path, device, inode, confinement, childPath, uuid } = parent;
  const image = openVhd(path, { ...options, same: { device, inode }, confinement });
  try {
    if (uuid !== null) requireUuid(image.footer.uuid, { path, childPath, uuid });
    return image;
  } catch (error) {
    image.close();
    throw error;
  }
}
