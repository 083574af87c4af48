import { Errno, SystemError } from "../../ffi/errno.ts";
import { walkImages } from "../vhd/image/chain.ts";
import { type FoundParent, openParent, resolveParent } from "../vhd/image/parent.ts";
import { VhdChainError } from "../vhd/image/errors.ts";
import { openVhd, type VhdImage } from "../vhd/image/image.ts";
import { canonicalPath } from "../files/paths.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import { type BulkContext, createBulkContext, type InContext } from "./bulk_context.ts";
import {
  hiddenStretch,
  type Layer,
  mayHold,
  openForQueue,
  requireSameEncryption,
  shownLayers,
} from "./layers.ts";
import { addLayer, Closer, mergeInto, mergeIntoNew, openAllBelow } from "./merge.ts";
import type { ProgressListener } from "../files/progress.ts";
import { moveData, openMover } from "./mover.ts";
import { FlatTarget } from "./target.ts";

/** Options of coalesce. */
export interface CoalesceOptions {
  /**
   * Write into this image of the chain, including all layers above it, instead of into the parent.
   */
  readonly ancestor?: string;
  /** Write a new image instead: the layers from the given one down to `oldest`. */
  readonly output?: string;
  /** With `output`: the last layer that is merged; the whole chain by default. */
  readonly oldest?: string;
  /** Leave out zeros where no other data would show through. */
  readonly sparse?: boolean;
  /** Called with the number of units that are done and the total. */
  readonly onProgress?: ProgressListener;
  /** Cancels the operation, which then fails with ECANCELED. All images stay valid. */
  readonly signal?: AbortSignal;
}

/**
 * Writes an image's data into its parent, an ancestor or a new image. The image itself and the
 * layers between do not change. They hide the data that is written below them, so the chain reads
 * the same at every moment, and the operation may be killed and repeated.
 *
 * @returns The number of sectors that the merged layers held.
 * @throws {SystemError} | {VhdFormatError} | {VhdChainError} when the chain down to the target
 * cannot be followed, an image is not differencing, the target is too small, or a write fails.
 */
export async function coalesce(
  path: string,
  options: CoalesceOptions & InContext = {},
): Promise<number> {
  const context = openMover(options.makeContext ?? createBulkContext);
  const closer = new Closer();
  try {
    const { storage } = context.files;
    const top = closer.add(openVhd(path, { storage }));
    if (options.output !== undefined) {
      return await coalesceIntoNew(context, top, { ...options, output: options.output, closer });
    }
    return await coalesceDown(context, top, { ...options, closer });
  } finally {
    closer.close();
    context.close();
  }
}

function requireParent(image: VhdImage): void {
  if (image.parent !== null) return;
  throw new SystemError(
    Errno.EINVAL,
    `Cannot coalesce ${image.path}: it is no differencing image and has no parent`,
  );
}

/**
 * Opens the images from the top down to the one above the target, and returns them with the
 * target's place. The target will be written to, so its place must be allowed for a parent.
 */
function walkDown(
  top: VhdImage,
  { ancestor, closer }: { ancestor?: string; closer: Closer },
): { images: VhdImage[]; target: FoundParent } {
  const { storage } = top;
  const wanted = ancestor === undefined ? null : canonicalPath(storage, ancestor);
  const images: VhdImage[] = [];
  for (const step of walkImages(top)) {
    const { image } = step;
    images.push(image === top ? top : closer.add(step.keep()));
    if (wanted === null) requireParent(image);
    const target = step.parent;
    if (target === null) break;
    if (wanted === null || canonicalPath(storage, target.path) === wanted) {
      return { images, target };
    }
  }
  throw new VhdChainError(top.path, Errno.ENOENT, `${ancestor} is no ancestor of it`);
}

type Coalescing = CoalesceOptions & { readonly closer: Closer };

async function coalesceDown(
  context: BulkContext,
  top: VhdImage,
  { closer, ancestor, sparse = false, onProgress, signal }: Coalescing,
): Promise<number> {
  const { images, target: found } = walkDown(top, { ancestor, closer });
  const targetPath = found.path;
  const lowest = images[images.length - 1];
  // Opening for writing takes the lock, so the metadata that is read next cannot change.
  const disk = closer.add(openForQueue(context, targetPath, { readOnly: false, same: found }));
  const layers = images.map((image) => addLayer(context, image, closer));
  if (lowest.parent?.raw) {
    requireSameEncryption(images, { raw: targetPath });
    const fileSectors = Math.ceil(disk.sizeBytes() / VHD_SECTOR_SIZE);
    const childSectors = top.sizeBytes / VHD_SECTOR_SIZE;
    const sizeSectors = disk.isBlockDevice ? fileSectors : Math.max(fileSectors, childSectors);
    requireRoom(layers, { path: targetPath, sizeSectors });
    const target = new FlatTarget(disk, context.queue, sizeSectors);
    const hidden = hiddenStretch(layers, sizeSectors);
    return await moveData(context, { layers, target, hidden, onProgress, signal });
  }
  const { storage } = top;
  const image = closer.add(
    openParent(found, { storage, readOnly: false, lockedBy: disk.identity }),
  );
  requireSameEncryption([...images, image], { raw: null });
  const sizeSectors = image.sizeBytes / VHD_SECTOR_SIZE;
  requireRoom(layers, { path: targetPath, sizeSectors });
  const hidden = hiddenStretch(layers, sizeSectors);
  if (image.type === "fixed") {
    const target = new FlatTarget(disk, context.queue, sizeSectors);
    return await moveData(context, { layers, target, hidden, onProgress, signal });
  }
  return await mergeInto(context, { image, disk, sparse, layers, hidden, onProgress, signal });
}

/**
 * Refuses a target that is too small. A child may be larger than the target, unless it holds data
 * behind the target's end.
 */
function requireRoom(
  layers: readonly Layer[],
  { path, sizeSectors }: { path: string; sizeSectors: number },
): void {
  for (const layer of shownLayers(layers)) {
    if (layer.sizeSectors <= sizeSectors) continue;
    if (!mayHold(layer, sizeSectors, layer.sizeSectors)) continue;
    throw new SystemError(
      Errno.ERANGE,
      `Cannot coalesce into ${path}: ${layer.disk.path} holds data behind the end of its disk ` +
        `of ${sizeSectors} sectors; resize it first`,
    );
  }
}

async function coalesceIntoNew(
  context: BulkContext,
  top: VhdImage,
  { closer, output, oldest, onProgress, signal }: Coalescing & { output: string },
): Promise<number> {
  const images = walkToOldest(top, { oldest, closer });
  const lowest = images[images.length - 1];
  const layers = images.map((image) => addLayer(context, image, closer));
  requireSameEncryption(images, { raw: null });
  const parent = lowest.parent === null
    ? null
    : { path: resolveParent(lowest), uuid: lowest.parent.uuid };
  return await mergeIntoNew(context, { output, top, parent, layers, onProgress, signal });
}

function walkToOldest(
  top: VhdImage,
  { oldest, closer }: { oldest?: string; closer: Closer },
): VhdImage[] {
  const { storage } = top;
  if (oldest !== undefined && canonicalPath(storage, oldest) === canonicalPath(storage, top.path)) {
    return [top];
  }
  if (top.parent === null || top.parent.raw) {
    if (oldest === undefined) return [top];
    throw new VhdChainError(top.path, Errno.ENOENT, `${oldest} is no ancestor of it`);
  }
  if (oldest !== undefined) {
    const { images, target } = walkDown(top, { ancestor: oldest, closer });
    return [...images, closer.add(openParent(target, { storage }))];
  }
  return openAllBelow(top, closer).images;
}
