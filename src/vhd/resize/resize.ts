/**
 * `src/vhd/resize`: changes that move an image's metadata, under an undo journal: the plan, the
 * journal, the change, the revert.
 *
 * This folder must not change an image before its journal is durable, and it must not be used on an
 * image that is being served, which the lock ensures. docs/on-disk-order.md has the order of
 * writes.
 *
 * This file resizes a disk.
 *
 * @module
 */

import { Errno, SystemError } from "../../../ffi/errno.ts";
import { BAT_ENTRIES_PER_SECTOR, DD_BLK_UNUSED, encodeBat, unusedPadding } from "../format/bat.ts";
import { batmapBytes } from "../format/batmap.ts";
import { setBits } from "../format/bitmap.ts";
import { validateSize, writeZeros } from "../create.ts";
import { createdByTap, encodeFooter, HD_FOOTER_SIZE } from "../format/footer.ts";
import { updateFooters } from "../image/footer_writer.ts";
import { geometryOfSize, packGeometry } from "../format/geometry.ts";
import { encodeHeader } from "../format/header.ts";
import { openVhd, readBat, type VhdImage } from "../image/image.ts";
import {
  changeJournaled,
  disableImage,
  footerOffsetOf,
  type JournalOptions,
  requireGoodEnd,
} from "./journal.ts";
import { batmapHeaderOffset, blocksOf } from "../format/layout.ts";
import { locatorSpaceBytes, PLAT_CODE_NONE } from "../format/locator.ts";
import { PublishOrder } from "../format/publish_order.ts";
import { planResize, type ResizePlan } from "./resize_plan.ts";
import type { ProgressListener } from "../../files/progress.ts";
import { osStorage, type Storage } from "../../files/storage.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";
import { clearImpossible, noteFull, writeBatmap } from "../image/batmap_writer.ts";
import { finishWriting, syncBlocks, writeBatOf, writeZerosInBlock } from "../write.ts";
import { blocksBehindEnd } from "./behind_end.ts";

/** Bytes of zeros between two progress reports. */
const ZEROS_AT_ONCE = 64 * 1024 * 1024;

/** Options of a resize. */
export interface ResizeOptions {
  readonly storage?: Storage;
  /** Rounded up to whole blocks. A fixed image may have any number of whole sectors. */
  readonly sizeBytes: number;
  /**
   * Called with the number of blocks that were moved, or of bytes that were written in a fixed
   * image.
   */
  readonly onProgress?: ProgressListener;
}

/** An image with another program's layout, which cannot be resized. */
export class ForeignImageError extends SystemError {
  constructor(path: string) {
    super(Errno.EINVAL, `Cannot resize ${path}: it was made by another program`);
  }
}

/**
 * Changes the size of a disk that is not in use. Growing moves metadata and blocks when necessary.
 * Shrinking is refused when it would cut off an allocated block or, in a fixed image, data other
 * than zeros. What is added reads as zeros: where a longer parent would show, the image gets blocks of
 * zeros.
 *
 * After an interruption, `revertJournal` restores the old state; without a journal the change is
 * complete.
 *
 * @throws {SystemError} EINVAL for a size that is out of range or that cuts off data; EEXIST when
 * the journal exists; errors of the file system. The image is unchanged then, except after a
 * {@linkcode RevertError}.
 */
export function resizeVhd(path: string, options: ResizeOptions & JournalOptions): void {
  const { storage = osStorage, sizeBytes } = options;
  validateNewSize(path, sizeBytes);
  const image = openVhd(path, { storage, readOnly: false });
  try {
    requireOurs(image);
    if (image.type === "fixed") resizeFixed(image, options);
    else resizeSparse(image, options);
  } finally {
    image.close();
  }
}

/**
 * Grows the disk within the reserve of its metadata. Only the footers are written, and new BAT
 * entries that are not marked as unused on disk, besides blocks of zeros that hide what a longer parent
 * holds. A tapdisk that serves the image must be paused
 * during the call.
 *
 * @throws {SystemError} EINVAL when the reserve or the size is too small; EBUSY when a tapdisk
 * serves the image.
 */
export function growWithinMetadata(path: string, options: ResizeOptions): void {
  const { storage = osStorage } = options;
  validateNewSize(path, options.sizeBytes);
  const image = openVhd(path, { storage, readOnly: false });
  try {
    requireOurs(image);
    if (image.type === "fixed") {
      throw new SystemError(Errno.EINVAL, `Cannot resize ${path} without a journal: it is fixed`);
    }
    const blocks = blocksOf(options.sizeBytes, image.blockSizeBytes);
    const sizeBytes = blocks * image.blockSizeBytes;
    if (sizeBytes === image.sizeBytes) return;
    const room = image.header?.maxBatEntries ?? 0;
    if (sizeBytes < image.sizeBytes || blocks > room) {
      const problem = sizeBytes < image.sizeBytes
        ? `${sizeBytes} bytes is less than its size of ${image.sizeBytes}`
        : `its metadata has room for ${room} blocks, not for ${blocks}`;
      throw new SystemError(Errno.EINVAL, `Cannot resize ${path} without a journal: ${problem}`);
    }
    const shown = blocksBehindEnd(image, sizeBytes);
    if (shown.length > 0) requireGoodEnd(image);
    image.blocks = blocks;
    growBat(image);
    writeNewEntries(image);
    clearNewBits(image);
    hideBlocks(image, shown);
    setSize(image, sizeBytes);
    updateFooters(image);
  } finally {
    image.close();
  }
}

/**
 * Adds zeros that hide what images below hold behind the end of the disk. The footers have the old size,
 * so no program reads there yet.
 *
 * @param shown The blocks that they hold there. The BAT has room for them.
 */
function hideBlocks(image: VhdImage, shown: readonly number[]): void {
  if (shown.length === 0) return;
  for (const block of hideLastBlock(image, shown)) {
    writeZerosInBlock(image, { block, sector: 0, count: image.sectorsPerBlock });
  }
  finishWriting(image);
}

function validateNewSize(path: string, sizeBytes: number): void {
  try {
    validateSize(path, sizeBytes);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    throw new SystemError(
      error.errno,
      `Cannot resize ${path} to ${sizeBytes} bytes: a disk has 1 MiB to 2040 GiB`,
    );
  }
}

function requireOurs(image: VhdImage): void {
  if (!createdByTap(image.footer)) throw new ForeignImageError(image.path);
}

function setSize(image: VhdImage, sizeBytes: number): void {
  image.footer.currentSize = BigInt(sizeBytes);
  image.footer.geometry = packGeometry(geometryOfSize(sizeBytes));
  image.sizeBytes = sizeBytes;
  if (image.header !== null) image.blocks = blocksOf(sizeBytes, image.blockSizeBytes);
}

function resizeSparse(
  image: VhdImage,
  { journal, sizeBytes: wantedBytes, onProgress }: ResizeOptions & JournalOptions,
): void {
  const blocks = blocksOf(wantedBytes, image.blockSizeBytes);
  if (blocks * image.blockSizeBytes === image.sizeBytes) return;
  for (let block = blocks; block < image.blocks; block++) {
    if (image.bat[block] === DD_BLK_UNUSED) continue;
    throw new SystemError(
      Errno.EINVAL,
      `Cannot shrink ${image.path} to ${wantedBytes} bytes: block ${block} holds data behind that`,
    );
  }
  const sizeBytes = blocks * image.blockSizeBytes;
  const shown = blocksBehindEnd(image, sizeBytes);
  if (shown.length > 0) {
    requireGoodEnd(image);
    image.file.refuseReaders();
  }
  const plan = planResize(image, { sizeBytes, zeroBlocks: hideLastBlock(image, shown) });
  const locators = readLocators(image);
  const { overwritten } = plan;
  changeJournaled(
    image,
    { journal, overwritten },
    () => carryOut(image, plan, { locators, onProgress }),
  );
}

/**
 * Carries out a plan. The caller has written the journal.
 *
 * @param options.locators The data of the header's locators, by index; null for unused ones.
 */
export function carryOut(
  image: VhdImage,
  plan: ResizePlan,
  { locators, onProgress }: {
    locators: readonly (Uint8Array<ArrayBuffer> | null)[];
    onProgress?: ProgressListener;
  },
): void {
  const { file, header } = image;
  if (header === null) throw new RangeError(`${image.path} has no header`);
  // The image is disabled until the footers are written, and the journal has its old content. So
  // the BAT need not wait for the blocks, but the footers must wait for all other writes.
  const order = new PublishOrder();
  disableImage(image);
  moveBlocks(image, plan, onProgress);
  setSize(image, plan.sizeBytes);
  growBat(image);
  addZeroBlocks(image, plan);
  header.maxBatEntries = plan.batEntries;
  moveBatmap(image, plan);
  for (const [index, bytes] of locators.entries()) {
    if (bytes !== null) file.writeAt(bytes, plan.locatorOffsets[index]);
    const dataOffset = BigInt(plan.locatorOffsets[index]);
    header.locators[index] = { ...header.locators[index], dataOffset };
  }
  const bat = new Uint32Array(plan.batEntries).fill(DD_BLK_UNUSED);
  bat.set(image.bat);
  const batPadding = new Uint32Array(0);
  file.writeAt(encodeBat({ bat, batPadding }), image.batOffsetBytes);
  file.writeAt(encodeHeader(header), Number(image.footer.dataOffset));
  const stamp = order.written();
  syncBlocks(image, order);
  order.requireDurable(stamp);
  const bytes = encodeFooter(image.footer);
  file.writeAt(bytes, 0);
  file.sync();
  // The footer at the end comes last. From here on the image opens, and a revert changes nothing.
  file.writeAt(bytes, plan.footerOffsetBytes);
  file.sync();
}

/** The data of the locators, each with its whole space; null for unused ones. */
export function readLocators(image: VhdImage): (Uint8Array<ArrayBuffer> | null)[] {
  return (image.header?.locators ?? []).map((locator) => {
    if (locator.code === PLAT_CODE_NONE) return null;
    const bytes = new Uint8Array(locatorSpaceBytes(locator));
    image.file.readAt(bytes, Number(locator.dataOffset));
    return bytes;
  });
}

/**
 * Hides what images below hold in the last block behind the end of the disk. The disk reads the same
 * before and afterwards.
 *
 * @param shown The blocks that they hold behind that end.
 * @returns Those of them that the disk does not have yet.
 */
function hideLastBlock(image: VhdImage, shown: readonly number[]): readonly number[] {
  const { sizeBytes, blockSizeBytes, sectorsPerBlock } = image;
  const sector = (sizeBytes % blockSizeBytes) / VHD_SECTOR_SIZE;
  if (sector === 0 || shown.length === 0) return shown;
  const [block, ...rest] = shown;
  if (block * blockSizeBytes > sizeBytes) return shown;
  writeZerosInBlock(image, { block, sector, count: sectorsPerBlock - sector });
  finishWriting(image);
  return rest;
}

/** Adds blocks of zeros, which hide what images below hold, to the file and to the BAT in memory. */
function addZeroBlocks(image: VhdImage, { zeroBlocks }: ResizePlan): void {
  if (zeroBlocks.length === 0) return;
  const { file, bat, bitmapSectors, sectorsPerBlock, blockSizeBytes } = image;
  const bitmap = new Uint8Array(bitmapSectors * VHD_SECTOR_SIZE);
  setBits(bitmap, 0, sectorsPerBlock);
  const oldEnd = file.sizeBytes();
  for (const { block, toSector } of zeroBlocks) {
    const dataBytes = (toSector + bitmapSectors) * VHD_SECTOR_SIZE;
    // Behind its old end a file reads as zeros. A device may hold any old content.
    const lengthBytes = Math.min(oldEnd - dataBytes, blockSizeBytes);
    if (lengthBytes > 0) writeZeros(file, dataBytes, lengthBytes);
    file.writeAt(bitmap, toSector * VHD_SECTOR_SIZE);
    bat[block] = toSector;
  }
}

/** Copies the blocks in the way behind the end, and updates the BAT in memory. */
function moveBlocks(
  image: VhdImage,
  { moves, zeroBlocks }: ResizePlan,
  onProgress: ProgressListener | undefined,
): void {
  const { file, bat } = image;
  const [first = zeroBlocks[0]] = moves;
  if (first === undefined) return;
  const footerOffset = footerOffsetOf(image);
  const gapBytes = first.toSector * VHD_SECTOR_SIZE - footerOffset;
  if (!file.isBlockDevice && gapBytes > 0) file.writeAt(new Uint8Array(gapBytes), footerOffset);
  const bytes = new Uint8Array((image.bitmapSectors + image.sectorsPerBlock) * VHD_SECTOR_SIZE);
  for (const [index, { block, toSector }] of moves.entries()) {
    onProgress?.(index, moves.length);
    bytes.fill(0, file.readAt(bytes, bat[block] * VHD_SECTOR_SIZE));
    file.writeAt(bytes, toSector * VHD_SECTOR_SIZE);
    bat[block] = toSector;
  }
}

/**
 * Marks the entries on disk that now belong to a block as unused. Their old content is arbitrary,
 * as no block had them before. In our own images they are already unused.
 */
function writeNewEntries(image: VhdImage): void {
  if (image.header === null) return;
  const stored = readBat(image.file, image.header, image.blocks);
  let written = -1;
  for (let block = 0; block < image.blocks; block++) {
    const sector = Math.floor(block / BAT_ENTRIES_PER_SECTOR);
    if (stored[block] === image.bat[block] || sector === written) continue;
    writeBatOf(image, [block]);
    written = sector;
  }
  if (written >= 0) image.file.sync();
}

/** Clears the batmap's bits of the blocks that the disk did not have before. */
function clearNewBits(image: VhdImage): void {
  if (clearImpossible(image) === 0) return;
  writeBatmap(image);
  image.file.sync();
}

/** Extends the BAT in memory to the disk's number of blocks. */
function growBat(image: VhdImage): void {
  const bat = new Uint32Array(image.blocks).fill(DD_BLK_UNUSED);
  bat.set(image.bat.subarray(0, image.blocks));
  image.bat = bat;
  image.batPadding = unusedPadding(bat.length, image.header?.maxBatEntries ?? 0);
}

/** Moves the batmap to its new place and length. The whole new place is written. */
function moveBatmap(image: VhdImage, plan: ResizePlan): void {
  const { batmap, header } = image;
  if (batmap === null || header === null || plan.batmap === null) return;
  const bits = new Uint8Array(batmapBytes(plan.sizeBytes, image.blockSizeBytes));
  bits.set(batmap.bits.subarray(0, bits.length));
  batmap.header.batmapOffset = BigInt(plan.batmap.offsetBytes);
  batmap.header.batmapSectors = plan.batmap.sectors;
  const all = new Uint8Array(plan.batmap.sectors * VHD_SECTOR_SIZE);
  image.file.writeAt(all, plan.batmap.offsetBytes);
  image.batmap = {
    ...batmap,
    bits,
    headerOffsetBytes: batmapHeaderOffset(header),
    offsetBytes: plan.batmap.offsetBytes,
  };
  for (const { block } of plan.zeroBlocks) noteFull(image, block, true);
  clearImpossible(image);
  writeBatmap(image);
}

function resizeFixed(
  image: VhdImage,
  { journal, sizeBytes, onProgress }: ResizeOptions & JournalOptions,
): void {
  const { file, path } = image;
  const oldBytes = image.sizeBytes;
  if (sizeBytes === oldBytes) return;
  if (sizeBytes < oldBytes) requireZeros(image, sizeBytes);
  if (file.isBlockDevice && sizeBytes > footerOffsetOf(image)) {
    throw new SystemError(
      Errno.ENOSPC,
      `Cannot resize ${path}: the device must have ${sizeBytes + HD_FOOTER_SIZE} bytes at least`,
    );
  }
  // The bytes between data and footer, if any, and the zeros in the new footer's place.
  const slack = { offsetBytes: oldBytes, lengthBytes: footerOffsetOf(image) - oldBytes };
  const place = { offsetBytes: sizeBytes, lengthBytes: HD_FOOTER_SIZE };
  const overwritten = file.isBlockDevice ? [] : sizeBytes < oldBytes ? [place, slack] : [slack];
  changeJournaled(image, { journal, overwritten }, () => {
    disableImage(image);
    const endBytes = file.isBlockDevice ? footerOffsetOf(image) : sizeBytes;
    for (let at = oldBytes; at < sizeBytes; at += ZEROS_AT_ONCE) {
      onProgress?.(at - oldBytes, sizeBytes - oldBytes);
      writeZeros(file, at, Math.min(ZEROS_AT_ONCE, sizeBytes - at));
    }
    file.sync();
    setSize(image, sizeBytes);
    file.writeAt(encodeFooter(image.footer), endBytes);
    if (!file.isBlockDevice) file.truncate(endBytes + HD_FOOTER_SIZE);
    file.sync();
  });
}

function requireZeros({ file, path, sizeBytes }: VhdImage, fromBytes: number): void {
  const bytes = new Uint8Array(1 << 20);
  for (let at = fromBytes; at < sizeBytes; at += bytes.length) {
    const part = bytes.subarray(0, Math.min(bytes.length, sizeBytes - at));
    part.fill(0, file.readAt(part, at));
    if (part.every((byte) => byte === 0)) continue;
    throw new SystemError(
      Errno.EINVAL,
      `Cannot shrink ${path} to ${fromBytes} bytes: it holds data behind that`,
    );
  }
}
