import { writeFixed } from "../vhd/create.ts";
import { openVhd, type VhdImage } from "../vhd/image/image.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import { type BulkContext, createBulkContext, type InContext } from "./bulk_context.ts";
import { type Layer, openForQueue, rawLayer, requireSameEncryption } from "./layers.ts";
import { addLayer, Closer, mergeIntoNew, openAllBelow, writeOutput } from "./merge.ts";
import type { ProgressListener } from "../files/progress.ts";
import { moveData, openMover } from "./mover.ts";
import { planRecoding, type Recoding } from "./recoding.ts";
import { FlatTarget } from "./target.ts";

/** Options of a copy. */
export interface CopyOptions {
  /** Encrypt the copy with this key of 32 or 64 bytes. */
  readonly key?: Uint8Array<ArrayBuffer>;
  /** The key of the image. Only for an encrypted image whose copy gets another key or none. */
  readonly sourceKey?: Uint8Array<ArrayBuffer>;
  /** Called with the number of units that are done and the total. */
  readonly onProgress?: ProgressListener;
  /** Cancels the copy, which then fails with ECANCELED. No file is left. */
  readonly signal?: AbortSignal;
}

/**
 * Copies an image and its parents into one new image without a parent. The copy of a fixed image is
 * fixed; every other copy is dynamic. Blocks of zeros are left out. Without keys, a copy of an
 * encrypted image is encrypted with the same key.
 *
 * @returns The number of sectors that were moved.
 * @throws {SystemError} EEXIST when the file exists; errors of the chain and of the file system.
 */
export async function copyImage(
  path: string,
  output: string,
  options: CopyOptions & InContext = {},
): Promise<number> {
  const context = openMover(options.makeContext ?? createBulkContext);
  const closer = new Closer();
  try {
    const top = closer.add(openVhd(path, { storage: context.files.storage }));
    const recoding = planRecoding(top, options);
    closer.add(recoding);
    const copy: Copy = {
      top,
      output,
      closer,
      recoding,
      onProgress: options.onProgress,
      signal: options.signal,
    };
    return top.type === "fixed" ? await copyFixed(context, copy) : await copyChain(context, copy);
  } finally {
    closer.close();
    context.close();
  }
}

interface Copy {
  readonly top: VhdImage;
  readonly output: string;
  readonly closer: Closer;
  readonly recoding: Recoding;
  readonly onProgress?: ProgressListener;
  readonly signal?: AbortSignal;
}

async function copyChain(
  context: BulkContext,
  { top, output, closer, recoding, onProgress, signal }: Copy,
): Promise<number> {
  const { images, raw } = openAllBelow(top, closer);
  requireSameEncryption(images, { raw: raw?.path ?? null });
  const layers: Layer[] = images.map((image) => addLayer(context, image, closer));
  if (raw !== null) {
    const layer = rawLayer(context, raw);
    closer.add(layer.disk);
    layers.push(layer);
  }
  const { keyhash, transform } = recoding;
  const wanted = { output, top, parent: null, layers, keyhash, transform, onProgress, signal };
  return await mergeIntoNew(context, wanted);
}

async function copyFixed(
  context: BulkContext,
  { top, output, closer, onProgress, signal }: Copy,
): Promise<number> {
  const { storage } = context.files;
  const layers = [addLayer(context, top, closer)];
  return await writeOutput(context, { output, signal }, async ({ path, same }) => {
    writeFixed(path, { storage, sizeBytes: top.sizeBytes, sparse: true, same });
    const disk = closer.add(openForQueue(context, path, { readOnly: false, same }));
    const target = new FlatTarget(disk, context.queue, top.sizeBytes / VHD_SECTOR_SIZE);
    return await moveData(context, { layers, target, onProgress, signal });
  });
}
