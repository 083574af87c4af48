import { Errno } from "../../../ffi/errno.ts";
import { admitParent, type Confinement, describeRefusal } from "../../files/confinement.ts";
import { canonicalPath, fileNameOf, folderOf, normalizePath } from "../../files/paths.ts";
import type { FileIdentity, Storage } from "../../files/storage.ts";
import { equalUuids, formatUuid } from "../format/uuid.ts";
import { VhdChainError } from "./errors.ts";
import { readFooter } from "./footer_reader.ts";
import { type OpenOptions, openVhd, type VhdImage } from "./image.ts";
import { readLocatorName } from "./locator_reader.ts";

/** The parent's path as the child has it, without looking for the file; null when it has none. */
export function unresolvedParent(image: VhdImage): string | null {
  for (const locator of image.parent?.locators ?? []) {
    const path = readLocatorName(image.file, locator);
    if (path !== null) return path;
  }
  return image.parent?.name || null;
}

/** A file that a child names as its parent, and which file that is. */
export interface FoundFile extends FileIdentity {
  readonly path: string;
}

/** An image's parent: where it is, and what {@linkcode openParent} holds it to. */
export interface FoundParent extends FoundFile {
  /** Whether it is a raw image. */
  readonly raw: boolean;
  /** The UUID that it must have; null for a raw image, and where any UUID will do. */
  readonly uuid: Uint8Array | null;
  /** The image that names it. */
  readonly childPath: string;
  /** Where its own parents may be. */
  readonly confinement: Confinement;
}

/** What a name of a parent leads to. */
export interface ParentLookup {
  /** The file, which may be the child's parent as to where it is; null when there is none. */
  readonly found: FoundFile | null;
  /** Why there is none, when there is a file, but where no parent may be. */
  readonly refusal: VhdChainError | null;
}

/**
 * Finds a file by the name that a child has for it: an absolute path as it is, anything else from
 * the child's folder. An absolute path that leads nowhere, or where no parent may be, is tried from
 * there too, for chains that were made on Windows.
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

/** The file beside the child that has the name in the child's header, if there is one. */
export function findNamedParent(image: VhdImage): ParentLookup {
  const name = fileNameOf(image.parent?.name ?? "");
  return name === "" ? { found: null, refusal: null } : findParent(image, name);
}

/** Which file is taken for an image's parent. */
export interface ResolveOptions {
  /**
   * When no file has the UUID in the child's header, take the first that a locator leads to. For
   * work that describes a chain and does not read through it.
   */
  readonly anyUuid?: boolean;
}

/** The path of an image's parent; see {@linkcode locateParent}. */
export function resolveParent(image: VhdImage, options: ResolveOptions = {}): string {
  return locateParent(image, options).path;
}

/**
 * Finds an image's parent: the first file that has the UUID in the image's header. The
 * locators are followed in their order; then the file beside the image is tried that has the name
 * in the header, as some programs write no locators, or change a chain by the header alone. A raw
 * parent has no UUID: it is the first file that a locator leads to. Files that lie where no parent may
 * be are passed over.
 *
 * @throws {VhdChainError} when there is none; EPERM when there would be one, but not where it may be.
 * @throws {VhdFormatError} | {SystemError} when the only file there is cannot be read.
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

/** Where the locators lead: files, each once; names without one; the first that is refused. */
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
  return new VhdChainError(
    path,
    Errno.ENOENT,
    `its parent is missing (ENOENT); looked for ${names.join(", ")} beside it`,
  );
}

/** The UUID of a file that may be a parent. */
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
 * Opens an image's parent, and makes sure that it is the parent that was found: the same file, and
 * an image with the UUID that the child's header has. Whatever was put in its place since is refused.
 * All that opens the parents of images does it here, the live driver too.
 *
 * @throws {VhdChainError} for an image with another UUID.
 * @throws {SystemError} ESTALE for another file; else as {@linkcode openVhd}.
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
