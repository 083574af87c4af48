import { Errno, SystemError } from "../../ffi/errno.ts";
import type { DiskFile } from "../queue/disk_files.ts";
import type { KeyHash } from "../vhd/format/batmap.ts";
import { walkImages } from "../vhd/image/chain.ts";
import type { FoundParent } from "../vhd/image/parent.ts";
import { type NewFile, writeNewImage } from "../files/new_file.ts";
import { writeSparseImage } from "../vhd/create.ts";
import { openVhd, type VhdImage } from "../vhd/image/image.ts";
import type { ProgressListener } from "../files/progress.ts";
import { canonicalPath } from "../files/paths.ts";
import { parentToWrite, setKeyhash } from "../vhd/snapshot.ts";
import { removeOwn } from "../files/storage.ts";
import { finishWriting } from "../vhd/write.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import type { BulkContext } from "./bulk_context.ts";
import { hiddenStretch, type Layer, layerOf, openForQueue } from "./layers.ts";
import { type Move, moveData, refuseAborted } from "./mover.ts";
import { VhdTarget } from "./vhd_target.ts";

/** Closes all resources of an operation, last opened first. */
export class Closer {
  readonly #closing: (() => void)[] = [];

  /** Registers a resource to close at the end. Returns it. */
  add<T extends { close(): void }>(opened: T): T {
    this.#closing.push(() => opened.close());
    return opened;
  }

  close(): void {
    for (const close of this.#closing.splice(0).reverse()) close();
  }
}

/** Opens the layer of an image. The closer closes the layer's file. */
export function addLayer(context: BulkContext, image: VhdImage, closer: Closer): Layer {
  const layer = layerOf(context, image);
  closer.add(layer.disk);
  return layer;
}

/**
 * Opens all VHDs below an image.
 *
 * @returns The images, the given one first, and the raw image below them, or null.
 * @throws {VhdChainError} for a loop, too many layers, or a missing or wrong parent.
 */
export function openAllBelow(
  top: VhdImage,
  closer: Closer,
): { images: VhdImage[]; raw: FoundParent | null } {
  const images: VhdImage[] = [];
  for (const step of walkImages(top)) {
    images.push(step.image === top ? top : closer.add(step.keep()));
    if (step.parent?.raw) return { images, raw: step.parent };
  }
  return { images, raw: null };
}

/** A new image for merged layers. */
export interface NewImage {
  readonly output: string;
  /** The topmost layer. The new image has its size and its key hash. */
  readonly top: VhdImage;
  /** The new image's parent, which is that of the lowest layer; null without one. */
  readonly parent: { readonly path: string; readonly uuid: Uint8Array } | null;
  readonly layers: readonly Layer[];
  /** The key hash of the new image, null without one; that of the topmost layer by default. */
  readonly keyhash?: KeyHash | null;
  readonly transform?: Move["transform"];
  readonly onProgress?: ProgressListener;
  readonly signal?: AbortSignal;
}

/**
 * Merges layers into a new image; see {@linkcode writeOutput}.
 *
 * @returns The number of sectors that were moved.
 * @throws {SystemError} EEXIST when the file exists.
 */
export async function mergeIntoNew(context: BulkContext, wanted: NewImage): Promise<number> {
  const { storage } = context.files;
  const { top } = wanted;
  return await writeOutput(context, wanted, async ({ path, same }) => {
    writeNewImage(storage, { path, same }, (file) => {
      const childPath = canonicalPath(storage, path);
      const parent = wanted.parent === null ? undefined : parentToWrite(storage, {
        childPath,
        parentPath: wanted.parent.path,
        parent: wanted.parent,
      });
      writeSparseImage(file, { sizeBytes: top.sizeBytes, maxBytes: top.sizeBytes, parent });
    });
    const keyhash = wanted.keyhash === undefined ? top.batmap?.header.keyhash : wanted.keyhash;
    if (keyhash?.cookie === 1) setKeyhash(storage, { path, same }, keyhash);
    const closer = new Closer();
    try {
      const disk = closer.add(openForQueue(context, path, { readOnly: false, same }));
      const lockedBy = disk.identity;
      const image = closer.add(openVhd(path, { storage, readOnly: false, lockedBy }));
      // Without a parent, sectors that are not present read as zeros.
      const hidden = wanted.parent === null
        ? undefined
        : hiddenStretch(wanted.layers, top.sizeBytes / VHD_SECTOR_SIZE);
      return await mergeInto(context, { image, disk, sparse: true, ...wanted, hidden });
    } finally {
      closer.close();
    }
  });
}

/**
 * Writes a new file under a temporary name, `OUTPUT.<16 digits>.part`, and renames it to `output`
 * when it is complete. When several processes make the same output, one succeeds. An operation that
 * fails or is cancelled leaves no file; a killed process leaves its `.part` file. A block device is
 * written in place.
 *
 * @param write Gets the name and the identity of the file.
 * @throws {SystemError} EEXIST when the output exists, before or after the write; ECANCELED for a
 * cancelled operation.
 */
export async function writeOutput(
  { files: { storage } }: Pick<BulkContext, "files">,
  { output, signal }: { readonly output: string; readonly signal?: AbortSignal },
  write: (file: Required<NewFile>) => Promise<number>,
): Promise<number> {
  if (storage.exists(output)) {
    const { kind, device, inode } = storage.locate(output);
    if (kind === "block") return await write({ path: output, same: { device, inode } });
    throw new SystemError(Errno.EEXIST, `Cannot create ${output}: choose another name`);
  }
  const part = `${output}.${crypto.getRandomValues(new Uint8Array(8)).toHex()}.part`;
  const file = storage.open(part, "create-new");
  const own = file.identity;
  file.close();
  try {
    const sectors = await write({ path: part, same: own });
    // A turn of the runtime, so that the listener of a pending signal is called.
    if (signal !== undefined) await new Promise((resolve) => setTimeout(resolve, 0));
    refuseAborted(signal);
    storage.renameToNew(part, output);
    return sectors;
  } catch (error) {
    removeOwn(storage, part, own);
    // The file was already renamed if the sync of the folder failed.
    removeOwn(storage, output, own);
    throw error;
  }
}

/** Merges layers into an open VHD with blocks, and completes it. */
export async function mergeInto(
  context: BulkContext,
  { image, disk, sparse, ...move }: Omit<Move, "target"> & {
    image: VhdImage;
    disk: DiskFile;
    sparse: boolean;
  },
): Promise<number> {
  const target = new VhdTarget(image, { disk, queue: context.queue, options: { sparse } });
  let sectors: number;
  try {
    sectors = await moveData(context, { ...move, target });
  } catch (error) {
    settle(image);
    throw error;
  }
  finishWriting(image);
  return sectors;
}

/**
 * Completes an image after a failure. The data that was written stays. The first error is the one
 * that is reported.
 */
function settle(image: VhdImage): void {
  try {
    finishWriting(image);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
}
