import { Errno, SystemError } from "../../../ffi/errno.ts";
import { VhdChainError, VhdFormatError } from "./errors.ts";
import { type OpenOptions, openVhd, type VhdImage } from "./image.ts";
import { readFooter } from "./footer_reader.ts";
import { readLocatorName } from "./locator_reader.ts";
import { canonicalPath, fileNameOf, folderOf } from "../../files/paths.ts";
import type { Storage, StorageFile } from "../../files/storage.ts";
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

/**
 * Finds a file by the name that a child has for it: an absolute path as it is, anything else from
 * the child's folder. An absolute path that leads nowhere is tried from there too, for chains that
 * were made on Windows.
 *
 * @returns The path, or null when there is no such file.
 */
export function findParent(storage: Storage, childPath: string, name: string): string | null {
  if (name.startsWith("/") && storage.exists(name)) return name;
  const beside = `${folderOf(canonicalPath(storage, childPath))}/${name}`;
  return storage.exists(beside) ? canonicalPath(storage, beside) : null;
}

/** The file beside the child that has the name in the child's header, or null. */
export function findNamedParent(image: VhdImage): string | null {
  const name = fileNameOf(image.parent?.name ?? "");
  return name === "" ? null : findParent(image.storage, image.path, name);
}

/** Which file is taken for an image's parent. */
export interface ResolveOptions {
  /**
   * When no file has the UUID in the child's header, take the first that a locator leads to. For
   * those who describe a chain rather than read through it.
   */
  readonly anyUuid?: boolean;
}

/**
 * The path of an image's parent: the first file that has the UUID in the image's header. The
 * locators are followed in their order; then the file beside the image is tried that has the name
 * in the header, as some programs write no locators, or change a chain by the header alone. A raw
 * parent has no UUID: it is the first file that a locator leads to.
 *
 * @throws {VhdChainError} when there is none.
 * @throws {VhdFormatError} | {SystemError} when the only file there is cannot be read.
 */
export function resolveParent(image: VhdImage, options: ResolveOptions = {}): string {
  const { parent } = image;
  const { stated, missing } = statedParents(image);
  const [first] = stated;
  if (parent === null || parent.raw) return first ?? noParent(image, missing);
  const candidates = new Set(stated);
  const named = findNamedParent(image);
  if (named !== null) candidates.add(named);
  if (options.anyUuid && candidates.size === 1 && first !== undefined) return first;
  let failure: unknown = null;
  for (const path of candidates) {
    try {
      requireUuid(image, { path, uuid: uuidOf(image.storage, path) });
      return path;
    } catch (error) {
      failure ??= error;
    }
  }
  if (failure === null) return noParent(image, missing);
  if (options.anyUuid && first !== undefined) return first;
  throw failure;
}

/** The files that the locators lead to, each once, and the names that lead nowhere. */
function statedParents(image: VhdImage): { stated: string[]; missing: string[] } {
  const stated = new Set<string>();
  const missing = new Set<string>();
  for (const locator of image.parent?.locators ?? []) {
    const name = readLocatorName(image.file, locator);
    if (name === null) continue;
    const found = findParent(image.storage, image.path, name);
    if (found === null) missing.add(name);
    else stated.add(found);
  }
  return { stated: [...stated], missing: [...missing] };
}

function noParent(image: VhdImage, missing: readonly string[]): never {
  const { parent, path } = image;
  const names = missing.length > 0 || parent?.raw !== false ? missing : [parent.name];
  if (names.join("") === "") {
    throw new VhdChainError(path, Errno.EINVAL, "it names no parent that can be read");
  }
  throw new VhdChainError(
    path,
    Errno.ENOENT,
    `its parent is missing (ENOENT); looked for ${names.join(", ")} beside it`,
  );
}

/** Opens a file that may be a parent and reads its UUID: the one place where that is done. */
function uuidOf(storage: Storage, path: string): Uint8Array {
  const file = storage.open(path, "read");
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
    const parentPath = resolveParent(child, { anyUuid: ignoreParentUuid });
    const canonical = canonicalPath(child.storage, parentPath);
    if (seen.has(canonical)) {
      throw leadsBack(images[0].path, canonical);
    }
    seen.add(canonical);
    if (images.length >= maxDepth) {
      throw tooManyLayers(images[0].path, maxDepth);
    }
    if (child.parent.raw) return openRawParent(child.storage, parentPath);
    const parent = openVhd(parentPath, { ...options, readOnly: true });
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
  for (let path: string | null = parentPath; path !== null;) {
    const canonical = canonicalPath(storage, path);
    if (canonical === isChild || seen.has(canonical)) throw leadsBack(childPath, canonical);
    seen.add(canonical);
    if (seen.size >= MAX_CHAIN_DEPTH) throw tooManyLayers(childPath);
    if (raw) return;
    [path, raw] = parentBelow(storage, path);
  }
}

/** The path of an image's parent and whether it is raw; null for none that can be found. */
function parentBelow(storage: Storage, path: string): [string | null, boolean] {
  try {
    const image = openVhd(path, { storage, ignoreDisabled: true, lenient: true });
    try {
      if (image.parent === null) return [null, false];
      return [resolveParent(image, { anyUuid: true }), image.parent.raw];
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
export function openRawParent(storage: Storage, path: string): RawParent {
  const file = storage.open(path, "read");
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
