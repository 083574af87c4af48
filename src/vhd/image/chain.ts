import { Errno } from "../../../ffi/errno.ts";
import { VhdChainError } from "./errors.ts";
import { type OpenOptions, openVhd, type VhdImage } from "./image.ts";
import { decodeLocation, isReadableLocator, type ParentLocator } from "../format/locator.ts";
import { canonicalPath, folderOf } from "../../files/paths.ts";
import type { Storage, StorageFile } from "../../files/storage.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";
import { equalUuids, formatUuid } from "../format/uuid.ts";

/** How many images a chain may have. */
export const MAX_CHAIN_DEPTH = 256;

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

/** The path in one of an image's locators, as it is stored; null when it cannot be read. */
export function readLocator(image: VhdImage, locator: ParentLocator): string | null {
  if (!isReadableLocator(locator.code)) return null;
  const bytes = new Uint8Array(locator.dataLength);
  if (image.file.readAt(bytes, Number(locator.dataOffset)) < bytes.length) return null;
  return decodeLocation(locator.code, bytes);
}

/** The parent's path as the first locator that makes sense has it, without looking for the file. */
export function unresolvedParent(image: VhdImage): string | null {
  for (const locator of image.parent?.locators ?? []) {
    const path = readLocator(image, locator);
    if (path !== null) return path;
  }
  return null;
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

/**
 * The path of an image's parent: the first of its locators that leads to a file.
 *
 * @throws {VhdChainError} when none does.
 */
export function resolveParent(image: VhdImage): string {
  const tried: string[] = [];
  for (const locator of image.parent?.locators ?? []) {
    const name = readLocator(image, locator);
    if (name === null) continue;
    const found = findParent(image.storage, image.path, name);
    if (found !== null) return found;
    if (!tried.includes(name)) tried.push(name);
  }
  if (tried.length === 0) {
    throw new VhdChainError(image.path, Errno.EINVAL, "it names no parent that can be read");
  }
  throw new VhdChainError(
    image.path,
    Errno.ENOENT,
    `its parent is missing (ENOENT); looked for ${tried.join(", ")} beside it`,
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
    const parentPath = resolveParent(child);
    const canonical = canonicalPath(child.storage, parentPath);
    if (seen.has(canonical)) {
      throw new VhdChainError(
        images[0].path,
        Errno.ELOOP,
        `${child.path} leads back to ${canonical}`,
      );
    }
    seen.add(canonical);
    if (images.length >= maxDepth) {
      throw new VhdChainError(images[0].path, Errno.ELOOP, `it has more than ${maxDepth} layers`);
    }
    if (child.parent.raw) return openRawParent(child.storage, parentPath);
    const parent = openVhd(parentPath, { ...options, readOnly: true });
    images.push(parent);
    if (!ignoreParentUuid) verifyParent(child, parent);
    child = parent;
  }
  return null;
}

/** Opens the raw image that a chain ends with, for reading. */
export function openRawParent(storage: Storage, path: string): RawParent {
  const file = storage.open(path, "read");
  const sizeBytes = sectorsOf(file.sizeBytes()) * VHD_SECTOR_SIZE;
  return { path, file, sizeBytes };
}

/**
 * Whether this is the parent that the child was made from.
 *
 * @throws {VhdChainError} when it is another image.
 */
export function verifyParent(child: VhdImage, parent: VhdImage): void {
  const wanted = child.parent?.uuid ?? new Uint8Array(0);
  if (equalUuids(wanted, parent.footer.uuid)) return;
  throw new VhdChainError(
    child.path,
    Errno.EINVAL,
    `${parent.path} has UUID ${formatUuid(parent.footer.uuid)}, but the child was made from ` +
      formatUuid(wanted),
  );
}
