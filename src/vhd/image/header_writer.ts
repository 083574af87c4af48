/**
 * Changes the header of an image in its place. The header has two sectors, and a power cut may leave
 * one of them old and one new: then its checksum is wrong and the image does not open. So the new
 * header is on stable storage as a copy first, in room that belongs to nothing. `repair` finds the copy
 * and completes the change.
 *
 * The copy is in one of two places, which can be found with a torn header, since the fields that lead
 * to the block table never change here: right in front of the footer at the end, or right in front of
 * the first block. An image without room in either gets some in front of its footer. The copy is gone
 * when the change is complete.
 *
 * @module
 */
import { assert } from "../../../ffi/assert.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { DD_BLK_UNUSED } from "../format/bat.ts";
import { encodeFooter, type Footer, HD_FOOTER_SIZE, HD_TYPE_FIXED } from "../format/footer.ts";
import {
  DD_COOKIE,
  DD_HEADER_SIZE,
  decodeHeader,
  type DynamicHeader,
  encodeHeader,
  headerChecksum,
} from "../format/header.ts";
import {
  bitmapSectors,
  blockEnd,
  blocksOf,
  nextBlockSector,
  sectorsPerBlock,
} from "../format/layout.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";
import type { StorageFile } from "../../files/storage.ts";
import { readFooter } from "./footer_reader.ts";
import { headerFault, tableFault } from "./header_reader.ts";
import { readBat, type VhdImage } from "./image.ts";

/**
 * Writes the header of an image anew, and syncs the file before and after. The block table, its size
 * and the block size stay as they are. Beside a tapdisk that serves the image the copy is only where no block can come
 * (see {@linkcode placeBesideTapdisk}); without such a place there is none.
 *
 * @throws {SystemError} ENOSPC when there is no room for the copy; what the file system says.
 */
export function rewriteHeader(image: VhdImage, header: DynamicHeader): void {
  const { file, footer } = image;
  assert(Number(header.tableOffset) === image.batOffsetBytes, "the block table stays in its place");
  const bytes = encodeHeader(header);
  file.sync();
  const removeCopy = putCopy(image, bytes);
  file.writeAt(bytes, Number(footer.dataOffset));
  file.sync();
  removeCopy();
}

/** Writes the copy and syncs the file; returns what removes the copy again. */
function putCopy(image: VhdImage, bytes: Uint8Array<ArrayBuffer>): () => void {
  const { file } = image;
  const free = file.isShared ? placeBesideTapdisk(image) : freePlace(image);
  if (free === undefined) return file.isShared ? (): void => {} : appendCopy(image, bytes);
  file.writeAt(bytes, free);
  file.sync();
  return () => {
    file.writeAt(new Uint8Array(DD_HEADER_SIZE), free);
    file.sync();
  };
}

function freePlace(image: VhdImage): number | undefined {
  return copyPlaces(image.file, image.bat)
    .find((offsetBytes) => offsetBytes >= image.endOfHeadersBytes && isFree(image, offsetBytes));
}

/**
 * The place in front of the first block, if that block lies where the first of all goes: a tapdisk adds
 * blocks behind it only. Elsewhere there may be blocks that the table on disk does not name yet.
 */
function placeBesideTapdisk(image: VhdImage): number | undefined {
  const { bat, endOfHeadersBytes } = image;
  const first = nextBlockSector(image, sectorsOf(endOfHeadersBytes));
  const offsetBytes = first * VHD_SECTOR_SIZE - DD_HEADER_SIZE;
  return bat.includes(first) && offsetBytes >= endOfHeadersBytes ? offsetBytes : undefined;
}

/** Makes a file longer for the copy, with a footer behind it. The old footer stays where it is. */
function appendCopy(image: VhdImage, bytes: Uint8Array<ArrayBuffer>): () => void {
  const { file, path } = image;
  if (file.isBlockDevice) {
    throw new SystemError(
      Errno.ENOSPC,
      `Cannot change the header of ${path}: the device needs ${DD_HEADER_SIZE} free bytes in front ` +
        `of the footer at its end; make the device larger`,
    );
  }
  const oldBytes = file.sizeBytes();
  const added = new Uint8Array(DD_HEADER_SIZE + HD_FOOTER_SIZE);
  added.set(bytes);
  added.set(encodeFooter(image.footer), DD_HEADER_SIZE);
  try {
    file.writeAt(added, footerStart(file) + HD_FOOTER_SIZE);
    file.sync();
  } catch (error) {
    if (file.sizeBytes() > oldBytes) file.truncate(oldBytes);
    throw error;
  }
  return () => {
    // Without a footer at its old end, the file keeps the one behind the copy.
    if (image.footerSource === "backup") return;
    file.truncate(oldBytes);
    file.sync();
  };
}

/** Where the last sector of a file begins, which may lack its last byte. */
function footerStart(file: StorageFile): number {
  return Math.floor((file.sizeBytes() - 1) / VHD_SECTOR_SIZE) * VHD_SECTOR_SIZE;
}

/** The places where a copy may be; see the head of this file. */
function copyPlaces(file: StorageFile, bat: Uint32Array): number[] {
  const places = [footerStart(file) - DD_HEADER_SIZE];
  let first = DD_BLK_UNUSED;
  for (const sector of bat) if (sector < first) first = sector;
  if (first !== DD_BLK_UNUSED) places.push(first * VHD_SECTOR_SIZE - DD_HEADER_SIZE);
  return places;
}

interface Blocks {
  readonly bat: Uint32Array;
  readonly sectorsPerBlock: number;
  readonly bitmapSectors: number;
}

/** Whether no block lies where a copy would be. */
function isFree(blocks: Blocks, offsetBytes: number): boolean {
  const start = offsetBytes / VHD_SECTOR_SIZE;
  const end = start + DD_HEADER_SIZE / VHD_SECTOR_SIZE;
  return blocks.bat.every((sector) =>
    sector === DD_BLK_UNUSED || sector >= end || blockEnd(blocks, sector) <= start
  );
}

/**
 * Completes a change of the header that a power cut broke off. A header that is good, or torn without
 * a copy of the new one, stays as it is.
 *
 * @returns Whether the header was written.
 * @throws {VhdFormatError} when there is no footer; what the file system says.
 */
export function completeHeader(
  file: StorageFile,
  { useBackupFooter }: { useBackupFooter: boolean },
): boolean {
  const { footer } = readFooter(file, { useBackupFooter });
  if (footer.diskType === HD_TYPE_FIXED) return false;
  const torn = readHeaderBytes(file, Number(footer.dataOffset));
  if (torn === null || headerFault(decodeHeader(torn), torn)?.field !== "checksum") return false;
  const at = findCopy(file, footer, torn);
  if (at === null) return false;
  const copy = readHeaderBytes(file, at);
  assert(copy !== null, "a copy that was found can be read again");
  file.writeAt(copy, Number(footer.dataOffset));
  file.sync();
  file.writeAt(new Uint8Array(DD_HEADER_SIZE), at);
  file.sync();
  return true;
}

function readHeaderBytes(file: StorageFile, offsetBytes: number): Uint8Array<ArrayBuffer> | null {
  if (offsetBytes < HD_FOOTER_SIZE || offsetBytes + DD_HEADER_SIZE > file.sizeBytes()) return null;
  const bytes = new Uint8Array(DD_HEADER_SIZE);
  return file.readAt(bytes, offsetBytes) < DD_HEADER_SIZE ? null : bytes;
}

/** Where the copy is that a torn header has one sector of. Blocks, which guests write, do not count. */
function findCopy(file: StorageFile, footer: Footer, torn: Uint8Array): number | null {
  const header = decodeHeader(torn);
  if (tableFault(header, footer, file.sizeBytes()) !== null) return null;
  const sectors = sectorsPerBlock(header.blockSize);
  const bat = readBat(file, header, blocksOf(Number(footer.currentSize), header.blockSize));
  const blocks = { bat, sectorsPerBlock: sectors, bitmapSectors: bitmapSectors(sectors) };
  const found = copyPlaces(file, bat).find((offsetBytes) => {
    const copy = isFree(blocks, offsetBytes) ? readHeaderBytes(file, offsetBytes) : null;
    return copy !== null && isCopyOf(torn, copy);
  });
  return found ?? null;
}

/** Whether a copy is good, says the same of the blocks, and has a sector of the torn header. */
function isCopyOf(torn: Uint8Array, copy: Uint8Array): boolean {
  const [was, becomes] = [decodeHeader(torn), decodeHeader(copy)];
  if (becomes.cookie !== DD_COOKIE || becomes.checksum !== headerChecksum(copy)) return false;
  const sameBlocks = was.tableOffset === becomes.tableOffset &&
    was.maxBatEntries === becomes.maxBatEntries && was.blockSize === becomes.blockSize;
  return sameBlocks && [0, VHD_SECTOR_SIZE].some((start) => {
    const part = torn.subarray(start, start + VHD_SECTOR_SIZE);
    return part.every((byte, i) => byte === copy[start + i]);
  });
}
