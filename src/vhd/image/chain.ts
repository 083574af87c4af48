import { SystemError } from "../../../ffi/errno.ts";
import type { FileIdentity, Storage, StorageFile } from "../../files/storage.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";
import { type LayerPlace, type LayerStep, walkLayers } from "./chain_walk.ts";
import { type OpenOptions, openVhd, type VhdImage } from "./image.ts";
import { type FoundParent, locateParent, openParent } from "./parent.ts";

/** The raw image at the bottom of a chain. */
export interface RawParent {
  readonly path: string;
  readonly file: StorageFile;
  readonly sizeBytes: number;
}

/** An image and all of its parents. */
export interface VhdChain {
  /** The image itself, its parent, and so on. */
  readonly images: readonly VhdImage[];
  /** The raw image below the last VHD; null without one. */
  readonly raw: RawParent | null;
  /** The number of layers, including the raw one. */
  readonly depth: number;
  close(): void;
}

/** How a chain is opened. Only the first image may be opened for writing. */
export interface ChainOptions extends OpenOptions {
  /** The largest number of layers; 256 by default. */
  readonly maxDepth?: number;
  /** Do not compare the parent UUIDs in child headers with the UUIDs of the parents. */
  readonly ignoreParentUuid?: boolean;
}

/** How a chain is walked. */
export interface WalkOptions extends ChainOptions {
  /** An error about a loop names the image that refers to a layer above it, not the top. */
  readonly blamesLayer?: boolean;
}

/** One image of a walk over a chain. */
class ImageStep {
  readonly #step: LayerStep<FoundParent, VhdImage>;
  #kept = false;

  /** Only {@linkcode walkImages} makes steps. */
  constructor(step: LayerStep<FoundParent, VhdImage>) {
    this.#step = step;
  }

  get image(): VhdImage {
    return this.#step.layer;
  }

  /** The image's parent; null without one. It is located on the first access. */
  get parent(): FoundParent | null {
    return this.#step.parent;
  }

  get isKept(): boolean {
    return this.#kept;
  }

  /** Leaves the image open when the walk goes on. The caller closes it. */
  keep(): VhdImage {
    this.#kept = true;
    return this.image;
  }
}

/**
 * Walks the VHDs of a chain from the top down. The walk opens an image when it reaches it, checks
 * that it is the parent that the child was made from (see {@linkcode openParent}), and closes it
 * when the walk goes on or ends, unless it is kept. The top stays open. The last image has no
 * parent, or a raw one.
 *
 * @throws {VhdChainError} ELOOP for a loop or too many layers; errors of {@linkcode locateParent}
 * and {@linkcode openParent}.
 */
export function* walkImages(
  top: VhdImage,
  options: WalkOptions = {},
): Generator<ImageStep> {
  const { maxDepth, ignoreParentUuid, blamesLayer, ...asOpened } = options;
  const { storage } = top;
  const below = { storage, readOnly: true, lockedBy: undefined, useBackupFooter: false };
  const steps = walkLayers<FoundParent, VhdImage>({
    storage,
    name: top.path,
    topPath: top.path,
    top,
    below: (image) =>
      image.parent === null ? null : locateParent(image, { anyUuid: ignoreParentUuid }),
    open: (parent) => openParent(parent, { ...asOpened, ...below }),
    limit: maxDepth,
    blamesLayer,
  });
  for (const step of steps) {
    const imageStep = new ImageStep(step);
    try {
      yield imageStep;
      if (imageStep.parent === null || imageStep.parent.raw) return;
    } finally {
      if (step.layer !== top && !imageStep.isKept) step.layer.close();
    }
  }
}

/**
 * Opens an image and all of its parents.
 *
 * @throws {VhdChainError} for a loop, a missing or wrong parent, or too many layers.
 * @throws {VhdFormatError} for a damaged image.
 * @throws {SystemError} for a file that cannot be read.
 */
export function openChain(path: string, options: ChainOptions = {}): VhdChain {
  const images: VhdImage[] = [];
  const close = (): void => images.forEach((image) => image.close());
  try {
    const top = openVhd(path, options);
    images.push(top);
    let raw: RawParent | null = null;
    for (const step of walkImages(top, options)) {
      if (step.image !== top) images.push(step.keep());
      if (step.parent?.raw) raw = openRawParent(top.storage, step.parent.path, step.parent);
    }
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

/** A layer of a chain that may be incomplete. */
interface LoosePlace extends LayerPlace {
  readonly path: string;
  readonly raw: boolean;
  /** The parent as it was located from its child; undefined for the first layer. */
  readonly found?: FoundParent;
}

/**
 * Refuses a parent below which the child could not be opened: the parent's chain already has the
 * largest number of layers, or the child is one of its layers. An incomplete chain is followed as
 * far as it goes.
 *
 * @param options.parentPath The parent, which must exist.
 * @param options.childPath The child, which need not exist.
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
  // A layer is opened only to locate the layer below it.
  const walk = walkLayers<LoosePlace, LoosePlace | null>({
    storage,
    name: childPath,
    topPath: childPath,
    top: { path: parentPath, raw: rawParent },
    below: (place) => place,
    open: (place) => place.raw ? null : placeBelow(storage, place),
  });
  for (const step of walk) if (step.parent === null) return;
}

/** The place of an image's parent; null without a parent, or when it cannot be located. */
function placeBelow(storage: Storage, { path, found }: LoosePlace): LoosePlace | null {
  try {
    const options = { storage, ignoreDisabled: true, lenient: true };
    const image = found === undefined ? openVhd(path, options) : openParent(found, options);
    try {
      if (image.parent === null) return null;
      const parent = locateParent(image, { anyUuid: true });
      return { path: parent.path, raw: parent.raw, found: parent };
    } finally {
      image.close();
    }
  } catch (error) {
    if (error instanceof SystemError) return null;
    throw error;
  }
}

/** Opens the raw image at the bottom of a chain for reading. */
export function openRawParent(storage: Storage, path: string, same?: FileIdentity): RawParent {
  const file = storage.open(path, "read", { same });
  const sizeBytes = sectorsOf(file.sizeBytes()) * VHD_SECTOR_SIZE;
  return { path, file, sizeBytes };
}
