/**
 * Changes the header of an image in place. The header has two sectors, and a power cut may leave
 * one old and one new. The checksum is wrong then, and the image does not open. So a copy of the
 * new header is made durable first, in unused space. `repair` finds the copy and completes the
 * change.
 *
 * The copy is in one of two places: directly in front of the footer at the end, or directly in
 * front of the first block. Both can be found with a torn header, because the fields that lead to
 * the block table never change here. When both places are in use, a copy and a new footer are
 * appended to the file. The copy is removed when the change is complete.
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
 * Rewrites the header of an image, and syncs the file before and after. The block table, its size
 * and the block size do not change. While a tapdisk serves the image, the copy goes only to a place
 * where no block can be allocated (see {@linkcode placeBesideTapdisk} and
 * {@linkcode appendBesideTapdisk}). Without such a place, no copy is made.
 *
 * @throws {SystemError} ENOSPC without space for the copy; errors of the file system.
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

/** Writes the copy and syncs the file. Returns a function that removes the copy. */
function putCopy(image: VhdImage, bytes: Uint8Array<ArrayBuffer>): () => void {
  const { file } = image;
  const free = file.isShared ? placeBesideTapdisk(image) : freePlace(image);
  if (free === undefined) {
    return file.isShared ? appendBesideTapdisk(image, bytes) : appendCopy(image, bytes);
  }
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
 * The place in front of the first block, if that block is at the lowest place for a block: a
 * tapdisk then allocates blocks only behind it. Any other place may hold blocks that are not in the
 * BAT on disk yet.
 */
function placeBesideTapdisk(image: VhdImage): number | undefined {
  const { bat, endOfHeadersBytes } = image;
  const first = lowestBlockSector(image);
  const offsetBytes = first * VHD_SECTOR_SIZE - DD_HEADER_SIZE;
  return bat.includes(first) && offsetBytes >= endOfHeadersBytes ? offsetBytes : undefined;
}

/** The lowest sector at which a block can begin. */
function lowestBlockSector(image: VhdImage): number {
  return nextBlockSector(image, sectorsOf(image.endOfHeadersBytes));
}

/**
 * Extends a file without blocks, whose disk a tapdisk serves: a copy in front of the lowest place
 * for a block, and a footer behind it. The file keeps its length, as a tapdisk may lengthen it at any
 * time; the next new block uses the room. Without room between the footer and that place, or while
 * the tapdisk is adding the first block, no copy is made.
 */
function appendBesideTapdisk(image: VhdImage, bytes: Uint8Array<ArrayBuffer>): () => void {
  const { file, bat } = image;
  const at = lowestBlockSector(image) * VHD_SECTOR_SIZE - DD_HEADER_SIZE;
  const added = new Uint8Array(DD_HEADER_SIZE + HD_FOOTER_SIZE);
  const sizeBytes = file.sizeBytes();
  const hasRoom = sizeBytes <= at || sizeBytes === at + added.length;
  const isEmpty = bat.every((sector) => sector === DD_BLK_UNUSED);
  if (file.isBlockDevice || !hasRoom || !isEmpty) return (): void => {};
  added.set(bytes);
  added.set(encodeFooter(image.footer), DD_HEADER_SIZE);
  file.writeAt(added, at);
  file.sync();
  return () => {
    file.writeAt(new Uint8Array(DD_HEADER_SIZE), at);
    file.sync();
  };
}

/**
 * Extends the file for the copy, with a footer behind it. The old footer stays in its place. A file
 * that ends within its last block, as after a crash, is extended over that block first.
 */
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
  const at = Math.max(
    footerStart(file) + HD_FOOTER_SIZE,
    image.endOfDataSector * VHD_SECTOR_SIZE,
  );
  const added = new Uint8Array(DD_HEADER_SIZE + HD_FOOTER_SIZE);
  added.set(bytes);
  added.set(encodeFooter(image.footer), DD_HEADER_SIZE);
  try {
    file.writeAt(added, at);
    file.sync();
  } catch (error) {
    if (file.sizeBytes() > oldBytes) file.truncate(oldBytes);
    throw error;
  }
  return () => {
    // The file had no footer at its old end, so it keeps the one behind the copy.
    if (image.footerSource === "backup") return;
    file.truncate(oldBytes);
    file.sync();
  };
}

/** Byte offset of the file's last sector, which may lack its last byte (a short footer). */
function footerStart(file: StorageFile): number {
  return Math.floor((file.sizeBytes() - 1) / VHD_SECTOR_SIZE) * VHD_SECTOR_SIZE;
}

/** The places for a copy; see the head of this file. */
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

/** Whether no block overlaps the place of a copy. */
function isFree(blocks: Blocks, offsetBytes: number): boolean {
  const start = offsetBytes / VHD_SECTOR_SIZE;
  const end = start + DD_HEADER_SIZE / VHD_SECTOR_SIZE;
  return blocks.bat.every((sector) =>
    sector === DD_BLK_UNUSED || sector >= end || blockEnd(blocks, sector) <= start
  );
}

/**
 * Completes a change of the header that a power cut interrupted. A valid header, and a torn header
 * without a copy, stay as they are.
 *
 * @returns Whether the header was written.
 * @throws {VhdFormatError} without a valid footer; errors of the file system.
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

/**
 * Byte offset of a copy that shares a sector with the torn header; null without one. Places inside
 * blocks are skipped, as guests write them.
 */
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

/**
 * Whether a copy is valid, has the same block table and block size, and shares a sector with the
 * torn header.
 */
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
