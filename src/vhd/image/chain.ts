import { Errno, SystemError } from "../../../ffi/errno.ts";
import { VhdChainError, VhdFormatError } from "./errors.ts";
import { type OpenOptions, openVhd, type VhdImage } from "./image.ts";
import { readFooter } from "./footer_reader.ts";
import { readLocatorName } from "./locator_reader.ts";
import { canonicalPath, fileNameOf, folderOf, normalizePath } from "../../files/paths.ts";
import { admitParent, type Confinement, describeRefusal } from "../../files/confinement.ts";
import type { FileIdentity, Storage, StorageFile } from "../../files/storage.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";
import { equalUuids, formatUuid } from "../format/uuid.ts";

/** How many images a chain may have. */
export const MAX_CHAIN_DEPTH = 256;

/** That a chain has more layers than anything opens. */
export function tooManyLayers(path: string, limit = MAX_CHAIN_DEPTH): VhdChainError {
  return new VhdChainError(
    path,
    Errno.ELOOP,
    `it has more than ${limit} layers, the most that a chain may have (ELOOP)`,
  );
}

/** That a chain leads back to an image that is in it already. */
export function leadsBack(path: string, to: string): VhdChainError {
  return new VhdChainError(path, Errno.ELOOP, `it leads back to ${to} (ELOOP)`);
}

/** The raw image at the bottom of a chain. */
export interface RawParent {
  readonly path: string;
  readonly file: StorageFile;
  readonly sizeBytes: number;
}

/** An image and all that it builds on. */
export interface VhdChain {
  /** The image itself, its parent, and so on. */
  readonly images: readonly VhdImage[];
  /** The raw image below the last, if there is one. */
  readonly raw: RawParent | null;
  /** Layers, the raw one included. */
  readonly depth: number;
  close(): void;
}

/** How a chain is opened. Only the first image is ever opened for writing. */
export interface ChainOptions extends OpenOptions {
  /** {@linkcode MAX_CHAIN_DEPTH} by default, layers that a chain may have. */
  readonly maxDepth?: number;
  /** Do not compare the UUIDs that children carry with those of their parents. */
  readonly ignoreParentUuid?: boolean;
}

/** The parent's path as the child has it, without looking for the file; null when it has none. */
export function unresolvedParent(image: VhdImage): string | null {
  for (const locator of image.parent?.locators ?? []) {
    const path = readLocatorName(image.file, locator);
    if (path !== null) return path;
  }
  return image.parent?.name || null;
}

/** A file that a child names as its parent, and which file that is. */
export interface FoundParent extends FileIdentity {
  readonly path: string;
}

/** What a name of a parent leads to. */
export interface ParentLookup {
  /** The file, which may be the child's parent as to where it is; null when there is none. */
  readonly found: FoundParent | null;
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
   * those who describe a chain rather than read through it.
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
export function locateParent(image: VhdImage, options: ResolveOptions = {}): FoundParent {
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
  if (options.anyUuid && candidates.length === 1 && first !== undefined) return first;
  let failure: unknown = refusal ?? namedRefusal;
  for (const found of candidates) {
    try {
      requireUuid(image, { path: found.path, uuid: uuidOf(image.storage, found) });
      return found;
    } catch (error) {
      failure ??= error;
    }
  }
  if (options.anyUuid && first !== undefined) return first;
  throw failure ?? noParent(image, missing);
}

/** Where the locators lead: files, each once; names without one; the first that is refused. */
function statedParents(
  image: VhdImage,
): { stated: FoundParent[]; missing: string[]; refusal: VhdChainError | null } {
  const stated = new Map<string, FoundParent>();
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

/** Opens a file that may be a parent and reads its UUID: the one place where that is done. */
function uuidOf(storage: Storage, { path, device, inode }: FoundParent): Uint8Array {
  const file = storage.open(path, "read", { same: { device, inode } });
  try {
    return readFooter(file, {}).footer.uuid;
  } finally {
    file.close();
  }
}

function requireUuid(
  child: VhdImage,
  { path, uuid }: { path: string; uuid: Uint8Array },
): void {
  const wanted = child.parent?.uuid ?? new Uint8Array(0);
  if (equalUuids(wanted, uuid)) return;
  throw new VhdChainError(
    child.path,
    Errno.EINVAL,
    `${path} has UUID ${formatUuid(uuid)}, but the child was made from ${formatUuid(wanted)}`,
  );
}

/**
 * Opens an image and its parents down to the last.
 *
 * @throws {VhdChainError} for a loop, a missing or wrong parent, or too many layers.
 * @throws {VhdFormatError} for an image that is damaged.
 * @throws {SystemError} for one that cannot be read.
 */
export function openChain(path: string, options: ChainOptions = {}): VhdChain {
  const images: VhdImage[] = [];
  const close = (): void => images.forEach((image) => image.close());
  try {
    images.push(openVhd(path, options));
    const raw = openParents(images, options);
    const closeAll = (): void => {
      close();
      raw?.file.close();
    };
    return { images, raw, depth: images.length + (raw === null ? 0 : 1), close: closeAll };
  } catch (error) {
    close();
    throw error;
  }
}

function openParents(images: VhdImage[], options: ChainOptions): RawParent | null {
  const { maxDepth = MAX_CHAIN_DEPTH, ignoreParentUuid = false } = options;
  const seen = new Set([canonicalPath(images[0].storage, images[0].path)]);
  for (let child = images[0]; child.parent !== null;) {
    const found = locateParent(child, { anyUuid: ignoreParentUuid });
    const canonical = canonicalPath(child.storage, found.path);
    if (seen.has(canonical)) {
      throw leadsBack(images[0].path, canonical);
    }
    seen.add(canonical);
    if (images.length >= maxDepth) {
      throw tooManyLayers(images[0].path, maxDepth);
    }
    if (child.parent.raw) return openRawParent(child.storage, found.path, found);
    const { confinement } = child;
    const below = { readOnly: true, same: found, lockedBy: undefined, confinement };
    const parent = openVhd(found.path, { ...options, ...below });
    images.push(parent);
    if (!ignoreParentUuid) verifyParent(child, parent);
    child = parent;
  }
  return null;
}

/**
 * Refuses a parent below which a child could not be opened: it has as many layers as a chain may
 * have, or the child is one of them. A chain that breaks off below is followed as far as it goes.
 *
 * @param options.parentPath The parent, which must exist.
 * @param options.childPath The child; it need not exist.
 * @throws {VhdChainError} ELOOP.
 */
export function requireFitsBelow(
  storage: Storage,
  { parentPath, rawParent, childPath }: {
    parentPath: string;
    rawParent: boolean;
    childPath: string;
  },
): void {
  const isChild = storage.exists(childPath) ? canonicalPath(storage, childPath) : null;
  const seen = new Set<string>();
  let raw = rawParent;
  let confinement: Confinement | undefined;
  for (let path: string | null = parentPath; path !== null;) {
    const canonical = canonicalPath(storage, path);
    if (canonical === isChild || seen.has(canonical)) throw leadsBack(childPath, canonical);
    seen.add(canonical);
    if (seen.size >= MAX_CHAIN_DEPTH) throw tooManyLayers(childPath);
    if (raw) return;
    [path, raw, confinement] = parentBelow(storage, path, confinement);
  }
}

/** The path of an image's parent, whether it is raw, and where it may be; null for none to be found. */
function parentBelow(
  storage: Storage,
  path: string,
  confinement?: Confinement,
): [string | null, boolean, Confinement?] {
  try {
    const image = openVhd(path, { storage, ignoreDisabled: true, lenient: true, confinement });
    try {
      if (image.parent === null) return [null, false];
      return [resolveParent(image, { anyUuid: true }), image.parent.raw, image.confinement];
    } finally {
      image.close();
    }
  } catch (error) {
    if (error instanceof VhdChainError || error instanceof VhdFormatError) return [null, false];
    if (error instanceof SystemError) return [null, false];
    throw error;
  }
}

/** Opens the raw image that a chain ends with, for reading. */
export function openRawParent(storage: Storage, path: string, same?: FileIdentity): RawParent {
  const file = storage.open(path, "read", { same });
  const sizeBytes = sectorsOf(file.sizeBytes()) * VHD_SECTOR_SIZE;
  return { path, file, sizeBytes };
}

/**
 * Sees that an open image is the parent that the child was made from.
 *
 * @throws {VhdChainError} when it is another image.
 */
export function verifyParent(child: VhdImage, parent: VhdImage): void {
  requireUuid(child, { path: parent.path, uuid: parent.footer.uuid });
}
