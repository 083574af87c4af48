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

/** How a chain is made shorter. */
export interface CoalesceOptions {
  /** Write into this image of the chain, with all layers above it, instead of into the parent. */
  readonly ancestor?: string;
  /** Write a new image instead: the layers from the given one down to `oldest`. */
  readonly output?: string;
  /** With `output`: the last layer that is merged; the whole chain without it. */
  readonly oldest?: string;
  /** Leave zeros out where nothing would show through them. */
  readonly sparse?: boolean;
  /** Called with units of work that are done, and how many there are. */
  readonly onProgress?: ProgressListener;
  /** Calls the work off, which fails with ECANCELED then; the images are in order. */
  readonly signal?: AbortSignal;
}

/**
 * Writes what an image holds into its parent, an ancestor or a new image. The image itself and the
 * layers between stay as they are: they hide what is written below them, so the chain reads the
 * same at every moment, and the work may be killed and done again.
 *
 * @returns How many sectors the merged layers held.
 * @throws {SystemError} | {VhdFormatError} | {VhdChainError} when the chain does not hold together
 * down to there, an image is no differencing one, the target is too small, or writing fails.
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
 * The images from the top down to the one above the target, and where the target is: which is where
 * a parent may be, as it will be written to.
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
  // Opening for writing takes the lock: the metadata that is read next cannot change.
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

/** A child may be larger than its parent, but not what it holds. */
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
