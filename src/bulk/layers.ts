import { Errno, SystemError } from "../../ffi/errno.ts";
import type { DiskFile } from "../queue/disk_files.ts";
import { isAllocated } from "../vhd/image/block.ts";
import type { FoundParent } from "../vhd/image/parent.ts";
import type { VhdImage } from "../vhd/image/image.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import type { FileIdentity } from "../files/storage.ts";
import type { BulkContext } from "./bulk_context.ts";

/**
 * An image that data is read from: a VHD with blocks, or a flat one (a fixed VHD or a raw image).
 */
export interface Layer {
  readonly disk: DiskFile;
  /** Null for a flat layer. */
  readonly image: VhdImage | null;
  /** Size of the virtual disk. A raw image may end within its last sector. */
  readonly sizeSectors: number;
  /** The number of bytes of the file that can be read. */
  readonly fileBytes: number;
  /** The bytes behind the file's last whole sector. The queue moves only whole sectors. */
  readonly tail: Uint8Array<ArrayBuffer>;
}

/** Whether the data of an image is encrypted. The image has a key hash then. */
export function isEncrypted(image: VhdImage): boolean {
  return image.batmap?.header.keyhash.cookie === 1;
}

/**
 * Requires that all images are encrypted or none is. Data is moved as it is in the files, so an
 * image of the other kind could not decode it.
 *
 * @param raw The raw image below them, or null. It is never encrypted.
 * @throws {SystemError} EINVAL for a mix of both.
 */
export function requireSameEncryption(
  images: readonly VhdImage[],
  { raw }: { raw: string | null },
): void {
  const [first] = images;
  const other = images.find((image) => isEncrypted(image) !== isEncrypted(first))?.path ??
    (isEncrypted(first) ? raw : null);
  if (other === null) return;
  throw new SystemError(
    Errno.EINVAL,
    `Cannot merge ${first.path} and ${other}: one is encrypted, the other is not`,
  );
}

/**
 * Opens a file for the queue. Block devices bypass the page cache, as other hosts may see them;
 * files use it. Opening for writing takes the file's lock.
 *
 * @param options.same The expected file (ESTALE for another one).
 */
export function openForQueue(
  { files, queue }: BulkContext,
  path: string,
  { readOnly, same }: { readOnly: boolean; same?: FileIdentity },
): DiskFile {
  const direct = files.storage.status(path).kind === "block";
  const disk = files.open(path, { readOnly, direct, same });
  queue.register(disk.file);
  return disk;
}

/** The layer of an open VHD. The caller closes the layer's file. */
export function layerOf(context: BulkContext, image: VhdImage): Layer {
  const same = image.file.identity;
  const disk = openForQueue(context, image.path, { readOnly: true, same });
  const fileBytes = image.type === "fixed" ? image.sizeBytes : disk.sizeBytes();
  return {
    disk,
    image: image.type === "fixed" ? null : image,
    sizeSectors: image.sizeBytes / VHD_SECTOR_SIZE,
    fileBytes,
    tail: readTail(context, disk, fileBytes),
  };
}

/** The layer of a raw image at the bottom of a chain. */
export function rawLayer(context: BulkContext, { path, device, inode }: FoundParent): Layer {
  const disk = openForQueue(context, path, { readOnly: true, same: { device, inode } });
  const fileBytes = disk.sizeBytes();
  return {
    disk,
    image: null,
    sizeSectors: Math.ceil(fileBytes / VHD_SECTOR_SIZE),
    fileBytes,
    tail: readTail(context, disk, fileBytes),
  };
}

function readTail(
  { files }: BulkContext,
  { path, identity }: DiskFile,
  fileBytes: number,
): Uint8Array<ArrayBuffer> {
  const tail = new Uint8Array(fileBytes % VHD_SECTOR_SIZE);
  if (tail.length === 0) return tail;
  const file = files.storage.open(path, "read", { same: identity });
  try {
    file.readAt(tail, fileBytes - tail.length);
  } finally {
    file.close();
  }
  return tail;
}

/**
 * The layers with their visible sizes. Layers below an image do not show behind its end; that part
 * reads as zeros, as a tapdisk serves it.
 *
 * @param layers Topmost first.
 */
export function shownLayers(layers: readonly Layer[]): Layer[] {
  let shown = Infinity;
  return layers.map((layer) => {
    shown = Math.min(shown, layer.sizeSectors);
    return { ...layer, sizeSectors: shown };
  });
}

/** A range of a disk that reads as zeros and hides the layers below. */
export interface HiddenStretch {
  readonly sector: number;
  /** The first sector behind the range. */
  readonly end: number;
}

/**
 * The end of the topmost layer's disk that a smaller layer hides: the layers below do not show
 * there. The range is empty unless a layer is smaller than the topmost one.
 *
 * @param sizeSectors Size of the disk that the layers are merged into.
 * @throws {SystemError} EINVAL for encrypted layers, as zeros cannot be written without their key.
 */
export function hiddenStretch(layers: readonly Layer[], sizeSectors: number): HiddenStretch {
  const end = Math.min(sizeSectors, layers[0].sizeSectors);
  const sector = Math.min(end, ...layers.map((layer) => layer.sizeSectors));
  const encrypted = layers.find(({ image }) => image !== null && isEncrypted(image));
  if (sector === end || encrypted === undefined) return { sector, end };
  throw new SystemError(
    Errno.EINVAL,
    `Cannot merge ${encrypted.disk.path}: it is encrypted, and an image of its chain is smaller ` +
      `than the one above it; resize that first`,
  );
}

/** Whether a layer may hold any of these sectors, by its BAT or by the holes of its file. */
export function mayHold({ image, disk, sizeSectors }: Layer, sector: number, end: number): boolean {
  const last = Math.min(end, sizeSectors);
  if (image === null) {
    const lengthBytes = (last - sector) * VHD_SECTOR_SIZE;
    return lengthBytes > 0 &&
      disk.allocatedRun(sector * VHD_SECTOR_SIZE, lengthBytes) !== -lengthBytes;
  }
  for (let at = sector; at < last;) {
    const block = Math.floor(at / image.sectorsPerBlock);
    if (isAllocated(image, block)) return true;
    at = (block + 1) * image.sectorsPerBlock;
  }
  return false;
}
