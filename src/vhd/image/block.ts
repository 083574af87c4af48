import { DD_BLK_UNUSED } from "../format/bat.ts";
import { testBit } from "../format/bitmap.ts";
import type { VhdImage } from "./image.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";

/** Whether a block is allocated in the file. */
export function isAllocated(image: VhdImage, block: number): boolean {
  return image.bat[block] !== DD_BLK_UNUSED;
}

/**
 * Whether the batmap says that all sectors of the block are present. This is a hint, used to show
 * and check the map. Reads and writes use the blocks' bitmaps.
 */
export function isMarkedFull(image: VhdImage, block: number): boolean {
  const { batmap } = image;
  return batmap !== null && block < batmap.bits.length * 8 && testBit(batmap.bits, block);
}

/** Byte offset of an allocated block's bitmap. */
export function bitmapOffset(image: VhdImage, block: number): number {
  return image.bat[block] * VHD_SECTOR_SIZE;
}

/** Byte offset of an allocated block's data. */
export function dataOffset(image: VhdImage, block: number): number {
  return (image.bat[block] + image.bitmapSectors) * VHD_SECTOR_SIZE;
}

/** The bitmap of an allocated block on disk: one bit a sector, padded to whole sectors. */
export function readBitmap(image: VhdImage, block: number): Uint8Array<ArrayBuffer> {
  const bitmap = new Uint8Array(image.bitmapSectors * VHD_SECTOR_SIZE);
  image.file.readAt(bitmap, bitmapOffset(image, block));
  return bitmap;
}

/**
 * The sectors of a block that this image holds, as a bitmap. All bits are clear when the block is
 * not allocated. The batmap is not used, as it may be wrong.
 */
export function presentSectors(image: VhdImage, block: number): Uint8Array<ArrayBuffer> {
  if (isAllocated(image, block)) return readBitmap(image, block);
  return new Uint8Array(image.bitmapSectors * VHD_SECTOR_SIZE);
}

/** Reads sectors of an allocated block. Sectors past the end of the file are zero. */
export function readBlockData(
  image: VhdImage,
  into: Uint8Array<ArrayBuffer>,
  { block, sector }: { block: number; sector: number },
): void {
  const got = image.file.readAt(into, dataOffset(image, block) + sector * VHD_SECTOR_SIZE);
  into.fill(0, got);
}
