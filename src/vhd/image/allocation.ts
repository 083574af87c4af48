import { Errno, SystemError } from "../../../ffi/errno.ts";
import { allocatedBlocks } from "../format/bat.ts";
import { encodeFooter, HD_FOOTER_SIZE } from "../format/footer.ts";
import { blockEnd, blocksThatFit, endOfDataSector, nextBlockSector } from "../format/layout.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";
import { readFooterBytes } from "./footer_reader.ts";
import type { VhdImage } from "./image.ts";

/**
 * Finds the place of a new block: behind all that there is, its data on a 4 KiB boundary, in front
 * of a block device's footer, within reach of a BAT entry. Nothing is changed: once the room is
 * made, the writer moves `endOfDataSector` behind the block.
 *
 * Every writer of blocks comes here: tapdisk, the bulk engine, and the writes one at a time.
 *
 * @param endSector From where on, if not the image's end: behind blocks that are planned already.
 * @throws {SystemError} EFBIG when sector numbers end, ENOSPC when the block device does.
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
 * Makes sure that what ends at a sector lies in front of a block device's footer.
 *
 * @throws {SystemError} ENOSPC when it does not.
 */
export function requireRoom({ file, path }: VhdImage, endSector: number): void {
  const neededBytes = endSector * VHD_SECTOR_SIZE + HD_FOOTER_SIZE;
  if (!file.isBlockDevice || neededBytes <= file.sizeBytes()) return;
  throw new SystemError(
    Errno.ENOSPC,
    `Cannot add to ${path}: the device must have ${neededBytes} bytes`,
  );
}

/** How many of the disk's blocks have no place and never can have one in this file. */
export function blocksWithoutRoom(image: VhdImage): number {
  const missing = image.blocks - allocatedBlocks(image.bat.subarray(0, image.blocks));
  return Math.max(0, missing - blocksThatFit(image, image.endOfDataSector));
}

/**
 * Refuses an image that could not hold its disk even with nothing in its file but its blocks.
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
 * Prepares an image for new blocks: from the first one on, the old footer's place may be written
 * over, so the backup at the start of the file must be the same; what lies between the last block
 * and the footer of a file, and belongs to nothing, goes away, so that new blocks read as zeros.
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
 * Makes a file longer for blocks up to `endSector`. Its footer is written at the new end at the same
 * stroke, before anything is written where the old one is: so the file always ends in a footer, and
 * its room is taken before data can use it up. On a full disk nothing has changed.
 *
 * @throws {SystemError} ENOSPC, or what else the file system says.
 */
export function growTo(image: VhdImage, endSector: number): void {
  const { file, footer } = image;
  if (!file.isBlockDevice) file.writeAt(encodeFooter(footer), endSector * VHD_SECTOR_SIZE);
  image.endOfDataSector = endSector;
}

/**
 * Puts the footer where it belongs: behind the last block that the BAT has, or at the end of a block
 * device. On a disk so full that it cannot move, it stays at the end of the file, behind room that
 * belongs to nothing.
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
    // There is no footer to lose: what blocks took up that no BAT names makes room for one.
    file.truncate(endBytes);
    endFile(image, endBytes);
  }
}

/** Puts the footer at a place and ends the file behind it: at each moment one ends the file. */
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
