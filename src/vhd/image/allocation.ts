import { Errno, SystemError } from "../../../ffi/errno.ts";
import { allocatedBlocks } from "../format/bat.ts";
import { encodeFooter, HD_FOOTER_SIZE } from "../format/footer.ts";
import { blockEnd, blocksThatFit, endOfDataSector, nextBlockSector } from "../format/layout.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";
import { readFooterBytes } from "./footer_reader.ts";
import type { VhdImage } from "./image.ts";

/**
 * Finds the place of a new block. The block goes behind all metadata and blocks, with its data on a
 * 4 KiB boundary. It must end in front of a block device's footer and be within reach of a BAT
 * entry. Nothing is changed: the writer moves `endOfDataSector` behind the block once it has
 * extended the file.
 *
 * All writers of blocks use this function: tapdisk, the bulk engine, and the synchronous writes.
 *
 * @param endSector The first sector to use, by default the image's `endOfDataSector`. A caller that
 * plans several blocks passes the end of the last planned block.
 * @throws {SystemError} EFBIG when a BAT entry cannot point to the block; ENOSPC when the block
 * device is too small.
 */
export function placeOfNewBlock(
  image: VhdImage,
  block: number,
  endSector = image.endOfDataSector,
): number {
  const sector = nextBlockSector(image, endSector);
  if (sector < 0) {
    throw new SystemError(
      Errno.EFBIG,
      `Cannot add block ${block} to ${image.path}: its file is at the 2 TiB that a VHD's block ` +
        `table can point into; copy the image to get rid of unused room`,
    );
  }
  requireRoom(image, blockEnd(image, sector));
  return sector;
}

/**
 * Requires that data up to `endSector` ends in front of a block device's footer.
 *
 * @throws {SystemError} ENOSPC when the device is too small.
 */
export function requireRoom({ file, path }: VhdImage, endSector: number): void {
  const neededBytes = endSector * VHD_SECTOR_SIZE + HD_FOOTER_SIZE;
  if (!file.isBlockDevice || neededBytes <= file.sizeBytes()) return;
  throw new SystemError(
    Errno.ENOSPC,
    `Cannot add to ${path}: the device must have ${neededBytes} bytes`,
  );
}

/** The number of the disk's blocks that are not allocated and cannot be allocated in this file. */
export function blocksWithoutRoom(image: VhdImage): number {
  const missing = image.blocks - allocatedBlocks(image.bat.subarray(0, image.blocks));
  return Math.max(0, missing - blocksThatFit(image, image.endOfDataSector));
}

/**
 * Refuses an image whose disk has more blocks than its file can ever hold.
 *
 * @throws {SystemError} EFBIG.
 */
export function requireHoldable(image: VhdImage): void {
  const most = blocksThatFit(image, sectorsOf(image.endOfHeadersBytes));
  if (image.blocks <= Math.max(most, allocatedBlocks(image.bat))) return;
  throw new SystemError(
    Errno.EFBIG,
    `Cannot open ${image.path} for writing: its disk has ${image.blocks} blocks, but the 2 TiB ` +
      `that its block table can point into hold ${most}; open it for reading only`,
  );
}

/**
 * Prepares an image for new blocks. New blocks may overwrite the old footer, so the backup footer
 * at the start of the file is made equal to it first. Unused space between the last block and the
 * footer of a file is cut off, so that new blocks read as zeros.
 */
export function startGrowth(image: VhdImage): void {
  const { file, footer } = image;
  const bytes = encodeFooter(footer);
  const backup = readFooterBytes(file, 0);
  if (backup === null || !sameBytes(backup, bytes)) {
    file.writeAt(bytes, 0);
    file.sync();
  }
  if (file.isBlockDevice) return;
  const endBytes = image.endOfDataSector * VHD_SECTOR_SIZE;
  if (file.sizeBytes() > endBytes + HD_FOOTER_SIZE) endFile(image, endBytes);
}

/**
 * Extends a file for blocks up to `endSector`. The footer is written at the new end first, before
 * anything overwrites the old footer. So the file always ends in a footer, and the footer's space
 * on the disk is allocated before data can use it up. When the disk is full, nothing has changed.
 *
 * @throws {SystemError} ENOSPC, or another error of the file system.
 */
export function growTo(image: VhdImage, endSector: number): void {
  const { file, footer } = image;
  if (!file.isBlockDevice) file.writeAt(encodeFooter(footer), endSector * VHD_SECTOR_SIZE);
  image.endOfDataSector = endSector;
}

/**
 * Writes the footer to its place: behind the last block in the BAT, or at the end of a block
 * device. When the disk is too full to move the footer, it stays at the end of the file, behind
 * unused space.
 */
export function placeFooter(image: VhdImage): void {
  const { file, footer } = image;
  const bytes = encodeFooter(footer);
  if (file.isBlockDevice) return file.writeAt(bytes, file.sizeBytes() - HD_FOOTER_SIZE);
  if (image.type !== "fixed") image.endOfDataSector = endOfDataSector(image);
  const endBytes = image.endOfDataSector * VHD_SECTOR_SIZE;
  try {
    endFile(image, endBytes);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    if (endsInFooter(image, bytes)) {
      image.endOfDataSector = Math.floor((file.sizeBytes() - HD_FOOTER_SIZE) / VHD_SECTOR_SIZE);
      return;
    }
    // There is no footer to lose: cut off blocks that are not in the BAT, to make space for one.
    file.truncate(endBytes);
    endFile(image, endBytes);
  }
}

/**
 * Writes the footer at `endBytes` and cuts the file behind it. The file ends in a footer at every
 * moment.
 */
function endFile({ file, footer }: VhdImage, endBytes: number): void {
  file.writeAt(encodeFooter(footer), endBytes);
  if (file.sizeBytes() > endBytes + HD_FOOTER_SIZE) file.truncate(endBytes + HD_FOOTER_SIZE);
}

function endsInFooter({ file }: VhdImage, footer: Uint8Array): boolean {
  const bytes = readFooterBytes(file, file.sizeBytes() - HD_FOOTER_SIZE);
  return bytes !== null && sameBytes(bytes, footer);
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
