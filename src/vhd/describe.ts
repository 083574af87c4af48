import { messageOf, SystemError } from "../../ffi/errno.ts";
import type { OnStorage } from "../files/storage.ts";
import { allocatedBlocks } from "./format/bat.ts";
import { formatUuid } from "./format/uuid.ts";
import { walkImages } from "./image/chain.ts";
import { openVhd, type VhdImage, type VhdType } from "./image/image.ts";
import { unresolvedParent } from "./image/parent.ts";
import { keyhashOf } from "./snapshot.ts";

/** The reference of a differencing image to its parent. */
export interface ParentDescription {
  /** Whether the parent is a raw image. */
  readonly raw: boolean;
  /** The parent's UUID as text; null for a raw image. */
  readonly uuid: string | null;
  /**
   * The parent's path as stored in the image, often relative to the image's folder; null without
   * one.
   */
  readonly storedPath: string | null;
}

/** The description of an image at the time of opening. It is immutable. */
export interface VhdDescription {
  /** The path that was opened. */
  readonly path: string;
  /** The kind of image. */
  readonly type: VhdType;
  /** The image's UUID as text, such as `6ba7b810-9dad-11d1-80b4-00c04fd430c8`. */
  readonly uuid: string;
  /** Size of the virtual disk, bytes. */
  readonly sizeBytes: number;
  /** Size that the disk can grow to without moving data, bytes. */
  readonly maxSizeBytes: number;
  /** Length of the file or device, bytes. */
  readonly fileBytes: number;
  /** Bytes of data in a block; null for a fixed image. */
  readonly blockSizeBytes: number | null;
  /** The number of blocks of the disk; null for a fixed image. */
  readonly blocks: number | null;
  /** The number of allocated blocks; null for a fixed image. */
  readonly allocatedBlocks: number | null;
  /** The parent; null for fixed and dynamic images. */
  readonly parent: ParentDescription | null;
  /**
   * The paths of the images that the disk is read from: the image itself, its parent, and so on,
   * including a raw image. The list ends at the first parent that cannot be used; see `chainError`.
   */
  readonly layers: readonly string[];
  /** The error that ended `layers` before the end of the chain; null for a complete list. */
  readonly chainError: string | null;
  /** Whether the storage manager's hidden flag is set. */
  readonly hidden: boolean;
  /** Whether the image belongs to the saved state of a machine. */
  readonly savedState: boolean;
  /** Whether the data is encrypted. */
  readonly encrypted: boolean;
  /** The storage manager's marker byte, 0 to 255; 0 for an image without a batmap. */
  readonly marker: number;
}

/**
 * Reads an image's metadata and follows its chain. All files are closed again.
 *
 * @throws {VhdFormatError} for a file that is no VHD or contradicts itself.
 * @throws {SystemError} for a file that cannot be read.
 */
export function describeVhd(path: string, { storage }: OnStorage = {}): VhdDescription {
  const image = openVhd(path, { storage });
  try {
    return Object.freeze({ ...describeImage(image), ...describeChain(image) });
  } finally {
    image.close();
  }
}

function describeImage(
  image: VhdImage,
): Omit<VhdDescription, "layers" | "chainError"> {
  const { path, type, sizeBytes, header, file, hidden, savedState } = image;
  const isFixed = header === null;
  return {
    path,
    type,
    uuid: formatUuid(image.footer.uuid),
    sizeBytes,
    maxSizeBytes: isFixed ? sizeBytes : header.maxBatEntries * image.blockSizeBytes,
    fileBytes: file.sizeBytes(),
    blockSizeBytes: isFixed ? null : image.blockSizeBytes,
    blocks: isFixed ? null : image.blocks,
    allocatedBlocks: isFixed ? null : allocatedBlocks(image.bat),
    parent: describeParent(image),
    hidden,
    savedState,
    encrypted: keyhashOf(image) !== null,
    marker: image.batmap?.header.marker ?? 0,
  };
}

function describeParent(image: VhdImage): ParentDescription | null {
  if (image.parent === null) return null;
  const { raw, uuid } = image.parent;
  return Object.freeze({
    raw,
    uuid: raw ? null : formatUuid(uuid),
    storedPath: unresolvedParent(image),
  });
}

function describeChain(top: VhdImage): Pick<VhdDescription, "layers" | "chainError"> {
  const layers: string[] = [];
  let chainError: string | null = null;
  try {
    for (const step of walkImages(top)) {
      layers.push(step.image.path);
      if (step.parent?.raw) layers.push(step.parent.path);
    }
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    chainError = messageOf(error);
  }
  return { layers: Object.freeze(layers), chainError };
}
