/**
 * `src/vhd`: offline operations on VHD images: create, snapshot, write, fill, modify, repair, keys.
 *
 * Each operation works on one image at a time, synchronously, under the image's lock, in the order
 * of writes of docs/on-disk-order.md. This folder must not know the disk queue or tapdisk, and it
 * must not print. Operations that stream whole images are in `src/bulk`.
 *
 * This file creates images.
 *
 * @module
 */

import { Errno, SystemError } from "../../ffi/errno.ts";
import { DD_BLK_UNUSED, encodeBat } from "./format/bat.ts";
import {
  encodeFooter,
  type Footer,
  HD_COOKIE,
  HD_FF_VERSION,
  HD_FOOTER_SIZE,
  HD_RESERVED,
  HD_TYPE_DIFF,
  HD_TYPE_DYNAMIC,
  HD_TYPE_FIXED,
  VHD_CREATOR_TAP,
  VHD_CURRENT_VERSION,
  VHD_NO_OFFSET,
} from "./format/footer.ts";
import { geometryOfSize, packGeometry } from "./format/geometry.ts";
import { type DynamicHeader, emptyHeader, encodeHeader } from "./format/header.ts";
import { blocksOf, newBatmapHeader } from "./format/layout.ts";
import type { ParentLocator } from "./format/locator.ts";
import { emptyBatmap, writeBatmap } from "./image/batmap_writer.ts";
import { writeNewImage } from "../files/new_file.ts";
import {
  type FileIdentity,
  type OnStorage,
  osStorage,
  type Storage,
  type StorageFile,
} from "../files/storage.ts";
import { vhdTimeNow } from "./format/time.ts";
import { paddedBytes, VHD_BLOCK_SIZE, VHD_MAX_SIZE, VHD_SECTOR_SIZE } from "./format/units.ts";
import { generateUuid } from "./format/uuid.ts";

/** Options of every new image. */
export interface CreateOptions {
  /** Size of the virtual disk, bytes; 2040 GiB at most. Rounded up to whole blocks of 2 MiB. */
  readonly sizeBytes: number;
}

/** The place of a new image. */
interface Place extends OnStorage {
  /** Write into this file, which the caller has made under this name (ESTALE for another file). */
  readonly same?: FileIdentity;
}

/** Options of a new fixed image. */
export interface CreateFixedOptions extends CreateOptions {
  /** Leave the data as a hole instead of writing zeros. */
  readonly sparse?: boolean;
}

/** Options of a new dynamic image. */
export interface CreateDynamicOptions extends CreateOptions {
  /**
   * The size that the disk can grow to without moving data, in bytes. The BAT and the batmap are
   * made for it.
   */
  readonly reserveBytes?: number;
}

/** The parent's fields in a new differencing image. */
export interface ParentToWrite {
  readonly uuid: Uint8Array;
  /** VHD time stamp of the parent's last change. */
  readonly timestamp: number;
  /** 512 bytes; see `encodeParentName`. */
  readonly name: Uint8Array;
  /** In the order of the header's entries. */
  readonly locators: readonly { readonly code: number; readonly bytes: Uint8Array }[];
}

/** Rounds up to whole blocks of 2 MiB. */
export function roundToBlocks(sizeBytes: number): number {
  return blocksOf(sizeBytes, VHD_BLOCK_SIZE) * VHD_BLOCK_SIZE;
}

/**
 * Refuses sizes outside the range of the format.
 *
 * @throws {SystemError} EINVAL below 1 byte and above 2040 GiB.
 */
export function validateSize(path: string, sizeBytes: number): void {
  if (sizeBytes > 0 && sizeBytes <= VHD_MAX_SIZE) return;
  const problem = Number.isNaN(sizeBytes) || sizeBytes <= 0
    ? "its size must be at least 1 MiB"
    : `${sizeBytes} bytes is more than the 2040 GiB that a VHD can hold`;
  throw new SystemError(Errno.EINVAL, `Cannot create ${path}, as ${problem}`);
}

/**
 * Creates a fixed image. All sectors are zero.
 *
 * @throws {SystemError} EINVAL for a size that is out of range; errors of the file system. An
 * incomplete file is removed.
 */
export function createFixed(path: string, options: CreateFixedOptions & Place): void {
  const { storage = osStorage, sparse = false, same } = options;
  validateSize(path, options.sizeBytes);
  writeFixed(path, { storage, sparse, same, sizeBytes: roundToBlocks(options.sizeBytes) });
}

/**
 * Writes a fixed image of exactly this size, in whole sectors.
 *
 * @throws {SystemError} for errors of the file system. An incomplete file is removed.
 */
export function writeFixed(
  path: string,
  { storage, sparse, same, sizeBytes }:
    & Required<CreateFixedOptions>
    & { readonly storage: Storage }
    & Pick<Place, "same">,
): void {
  writeNewImage(storage, { path, same }, (file) => {
    if (sparse && !file.isBlockDevice) file.truncate(sizeBytes);
    else writeZeros(file, 0, sizeBytes);
    const footer = encodeFooter(newFooter(HD_TYPE_FIXED, sizeBytes));
    file.writeAt(footer, file.isBlockDevice ? file.sizeBytes() - HD_FOOTER_SIZE : sizeBytes);
  });
}

/**
 * Creates a dynamic image.
 *
 * @throws {SystemError} EINVAL for a size that is out of range or a reserve below the size; errors
 * of the file system. An incomplete file is removed.
 */
export function createDynamic(path: string, options: CreateDynamicOptions & Place): void {
  const { storage = osStorage, reserveBytes = 0, same } = options;
  validateSize(path, options.sizeBytes);
  const sizeBytes = roundToBlocks(options.sizeBytes);
  const maxBytes = reserveSize(path, sizeBytes, reserveBytes);
  writeNewImage(
    storage,
    { path, same },
    (file) => writeSparseImage(file, { sizeBytes, maxBytes }),
  );
}

/** The size that the BAT and the batmap are made for. */
export function reserveSize(path: string, sizeBytes: number, reserveBytes: number): number {
  if (reserveBytes === 0) return sizeBytes;
  validateSize(path, reserveBytes);
  const maxBytes = roundToBlocks(reserveBytes);
  if (maxBytes >= sizeBytes) return maxBytes;
  const problem = `metadata for ${reserveBytes} bytes is less than its size of ${sizeBytes} bytes`;
  throw new SystemError(Errno.EINVAL, `Cannot create ${path}, as ${problem}`);
}

/** A footer with every field at its default. */
export function newFooter(diskType: number, sizeBytes: number): Footer {
  return {
    cookie: HD_COOKIE,
    features: HD_RESERVED,
    fileFormatVersion: HD_FF_VERSION,
    dataOffset: diskType === HD_TYPE_FIXED ? VHD_NO_OFFSET : BigInt(VHD_SECTOR_SIZE),
    timestamp: vhdTimeNow(),
    creatorApplication: VHD_CREATOR_TAP,
    creatorVersion: VHD_CURRENT_VERSION,
    creatorHostOs: 0,
    originalSize: BigInt(sizeBytes),
    currentSize: BigInt(sizeBytes),
    geometry: packGeometry(geometryOfSize(sizeBytes)),
    diskType,
    checksum: 0,
    uuid: generateUuid(),
    savedState: 0,
    hidden: 0,
    reserved: new Uint8Array(426),
  };
}

/**
 * Writes a dynamic or differencing image without data: the backup footer at 0, the header at 512,
 * the BAT at 1536, then the batmap, the parent locators and the footer.
 */
export function writeSparseImage(
  file: StorageFile,
  { sizeBytes, maxBytes, parent }: {
    sizeBytes: number;
    maxBytes: number;
    parent?: ParentToWrite;
  },
): void {
  const footer = newFooter(parent === undefined ? HD_TYPE_DYNAMIC : HD_TYPE_DIFF, sizeBytes);
  const header = newHeader(maxBytes);
  const mapBytes = newBatmapHeader(header).batmapSectors * VHD_SECTOR_SIZE;
  const batmap = emptyBatmap(header, mapBytes);
  let end = batmap.offsetBytes + mapBytes;
  if (parent !== undefined) end = writeParent(file, { header, parent, offsetBytes: end });
  writeBatmap({ batmap, file });
  const bat = new Uint32Array(header.maxBatEntries).fill(DD_BLK_UNUSED);
  file.writeAt(encodeBat({ bat, batPadding: new Uint32Array(0) }), Number(header.tableOffset));
  file.writeAt(encodeHeader(header), Number(footer.dataOffset));
  const footerBytes = encodeFooter(footer);
  file.writeAt(footerBytes, 0);
  file.writeAt(footerBytes, file.isBlockDevice ? file.sizeBytes() - HD_FOOTER_SIZE : end);
}

function newHeader(maxBytes: number): DynamicHeader {
  const header = emptyHeader();
  header.tableOffset = BigInt(3 * VHD_SECTOR_SIZE);
  header.maxBatEntries = blocksOf(maxBytes, VHD_BLOCK_SIZE);
  header.blockSize = VHD_BLOCK_SIZE;
  return header;
}

/** Writes the locators' names one behind the other, and sets the parent's fields in the header. */
function writeParent(
  file: StorageFile,
  { header, parent, offsetBytes }: {
    header: DynamicHeader;
    parent: ParentToWrite;
    offsetBytes: number;
  },
): number {
  header.parentUuid = parent.uuid;
  header.parentTimestamp = parent.timestamp;
  header.parentName = parent.name;
  for (const [index, { code, bytes }] of parent.locators.entries()) {
    const locator: ParentLocator = {
      code,
      dataSpace: paddedBytes(bytes.length),
      dataLength: bytes.length,
      reserved: 0,
      dataOffset: BigInt(offsetBytes),
    };
    const padded = new Uint8Array(locator.dataSpace);
    padded.set(bytes);
    file.writeAt(padded, offsetBytes);
    header.locators[index] = locator;
    offsetBytes += locator.dataSpace;
  }
  return offsetBytes;
}

/** Writes zeros, at most 2 MiB at once. */
export function writeZeros(file: StorageFile, offsetBytes: number, lengthBytes: number): void {
  const zeros = new Uint8Array(Math.min(VHD_BLOCK_SIZE, lengthBytes));
  for (let done = 0; done < lengthBytes; done += zeros.length) {
    const count = Math.min(zeros.length, lengthBytes - done);
    file.writeAt(zeros.subarray(0, count), offsetBytes + done);
  }
}
