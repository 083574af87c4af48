import { Errno, SystemError } from "../../ffi/errno.ts";
import { batSectorOf, encodeBat, putBatSector } from "./format/bat.ts";
import { allSet, runEnd, setBits, testBit } from "./format/bitmap.ts";
import { blockEnd } from "./format/layout.ts";
import { PublishOrder } from "./format/publish_order.ts";
import { encodeFooter } from "./format/footer.ts";
import { VHD_SECTOR_SIZE } from "./format/units.ts";
import { growTo, placeFooter, placeOfNewBlock, startGrowth } from "./image/allocation.ts";
import { noteFull, writeBatmap } from "./image/batmap_writer.ts";
import { bitmapOffset, dataOffset, isAllocated, readBitmap } from "./image/block.ts";
import type { VhdImage } from "./image/image.ts";
import { writeZeros } from "./create.ts";

/** The number of new blocks that are collected before the BAT on disk points at them. */
const BLOCKS_AT_ONCE = 64;

/** The new blocks of an image that is being written. */
interface Growth {
  readonly order: PublishOrder;
  /** Blocks that are in the file but not in the BAT on disk, with their stamps. */
  readonly unpublished: Map<number, number>;
}

const growths = new WeakMap<VhdImage, Growth>();

/**
 * Writes to a virtual disk that no tapdisk serves.
 *
 * After a crash at any moment the image must open. So a block's data and bitmap are durable before
 * the BAT on disk points at them (see {@linkcode PublishOrder}), and a sector's data is durable before
 * its bit is in the bitmap of a block that the BAT points at. The file always ends in a footer. New blocks are collected;
 * {@linkcode finishWriting} makes the BAT point at the last of them.
 *
 * @param from Whole sectors.
 * @param offsetBytes A multiple of 512.
 * @throws {SystemError} ERANGE beyond the end of the disk; EFBIG when the file would be too long
 * for a sector number of 32 bits; errors of the file system.
 */
export function writeRange(
  image: VhdImage,
  from: Uint8Array<ArrayBuffer>,
  offsetBytes: number,
): void {
  const { path, sizeBytes } = image;
  if (offsetBytes % VHD_SECTOR_SIZE !== 0 || from.length % VHD_SECTOR_SIZE !== 0) {
    throw new RangeError(`Cannot write ${from.length} bytes at ${offsetBytes}: not whole sectors`);
  }
  if (offsetBytes < 0 || offsetBytes + from.length > sizeBytes) {
    throw new SystemError(
      Errno.ERANGE,
      `Cannot write ${from.length} bytes at ${offsetBytes} of ${path}, a disk of ${sizeBytes} bytes`,
    );
  }
  if (image.type === "fixed") return image.file.writeAt(from, offsetBytes);
  const blockBytes = image.blockSizeBytes;
  for (let done = 0; done < from.length;) {
    const inBlock = (offsetBytes + done) % blockBytes;
    const end = Math.min(from.length, done + blockBytes - inBlock);
    writeInBlock(image, from.subarray(done, end), {
      block: Math.floor((offsetBytes + done) / blockBytes),
      sector: inBlock / VHD_SECTOR_SIZE,
    });
    done = end;
  }
}

/**
 * Makes sectors of a block read as zeros, whatever images below hold; also sectors behind the end of the
 * disk, and of blocks that only the BAT in memory has.
 */
export function writeZerosInBlock(
  image: VhdImage,
  { block, sector, count }: { block: number; sector: number; count: number },
): void {
  if (!isAllocated(image, block)) return addBlock(image, block, { sector, count, from: null });
  writeInBlock(image, new Uint8Array(count * VHD_SECTOR_SIZE), { block, sector });
}

/** Completes the image after {@linkcode writeRange} and makes all writes durable. */
export function finishWriting(image: VhdImage): void {
  publish(image);
  image.file.sync();
  if (image.batmap?.dirty) writeBatmap(image);
  writeFooters(image);
  image.file.sync();
}

/**
 * Writes both footers: one behind the data, or at the end of a block device, and one at the start.
 */
export function writeFooters(image: VhdImage): void {
  const { file } = image;
  if (image.type !== "fixed") file.writeAt(encodeFooter(image.footer), 0);
  placeFooter(image);
}

interface BlockPlace {
  readonly block: number;
  readonly sector: number;
}

function writeInBlock(
  image: VhdImage,
  from: Uint8Array<ArrayBuffer>,
  { block, sector }: BlockPlace,
): void {
  const count = from.length / VHD_SECTOR_SIZE;
  if (!isAllocated(image, block)) return addBlock(image, block, { sector, count, from });
  image.file.writeAt(from, dataOffset(image, block) + sector * VHD_SECTOR_SIZE);
  const bitmap = readBitmap(image, block);
  const end = sector + count;
  if (!testBit(bitmap, sector) || runEnd(bitmap, sector, end) < end) {
    const isNew = growths.get(image)?.unpublished.has(block) ?? false;
    if (!isNew) image.file.sync();
    setBits(bitmap, sector, end - sector);
    image.file.writeAt(bitmap, bitmapOffset(image, block));
  }
  noteFull(image, block, allSet(bitmap, image.sectorsPerBlock));
}

interface NewData {
  /** Where in the block it begins. */
  readonly sector: number;
  readonly count: number;
  /** Null for zeros. */
  readonly from: Uint8Array<ArrayBuffer> | null;
}

function addBlock(image: VhdImage, block: number, { sector, count, from }: NewData): void {
  const { file, bitmapSectors, sectorsPerBlock } = image;
  const growth = growthOf(image);
  const place = placeOfNewBlock(image, block);
  growTo(image, blockEnd(image, place));
  const data = place + bitmapSectors;
  // A file reads as zeros where nothing was written.
  if (file.isBlockDevice) {
    clearAround(image, data, from === null ? { sector: 0, count: 0 } : { sector, count });
  }
  if (from !== null) file.writeAt(from, (data + sector) * VHD_SECTOR_SIZE);
  const bitmap = new Uint8Array(bitmapSectors * VHD_SECTOR_SIZE);
  setBits(bitmap, sector, count);
  file.writeAt(bitmap, place * VHD_SECTOR_SIZE);
  image.bat[block] = place;
  noteFull(image, block, allSet(bitmap, sectorsPerBlock));
  growth.unpublished.set(block, growth.order.written());
  if (growth.unpublished.size >= BLOCKS_AT_ONCE) publish(image);
}

function growthOf(image: VhdImage): Growth {
  const known = growths.get(image);
  if (known !== undefined) return known;
  startGrowth(image);
  const growth = { order: new PublishOrder(), unpublished: new Map<number, number>() };
  growths.set(image, growth);
  return growth;
}

/**
 * Writes zeros to the rest of a new block. Only for block devices, whose old content is arbitrary.
 */
function clearAround(
  { file, sectorsPerBlock }: VhdImage,
  dataSector: number,
  { sector, count }: { sector: number; count: number },
): void {
  const end = sector + count;
  writeZeros(file, dataSector * VHD_SECTOR_SIZE, sector * VHD_SECTOR_SIZE);
  writeZeros(
    file,
    (dataSector + end) * VHD_SECTOR_SIZE,
    (sectorsPerBlock - end) * VHD_SECTOR_SIZE,
  );
}

/** Makes the BAT on disk point at the collected blocks. */
function publish(image: VhdImage): void {
  const growth = growths.get(image);
  if (growth === undefined || growth.unpublished.size === 0) return;
  const { order, unpublished } = growth;
  syncBlocks(image, order);
  publishBlocks(image, order, unpublished);
  unpublished.clear();
}

/**
 * Makes the BAT on disk point at blocks that {@linkcode syncBlocks} has made durable.
 *
 * @param blocks The blocks, whose entries are in the BAT in memory, and their stamps.
 */
export function publishBlocks(
  image: VhdImage,
  order: PublishOrder,
  blocks: ReadonlyMap<number, number>,
): void {
  for (const stamp of blocks.values()) order.requireDurable(stamp);
  writeBatOf(image, blocks.keys());
}

/**
 * Makes all writes durable. Only then may the BAT point at the new blocks, or a footer be written
 * behind them.
 */
export function syncBlocks(image: VhdImage, order: PublishOrder): void {
  let succeeded = false;
  order.syncStarts();
  try {
    image.file.sync();
    succeeded = true;
  } finally {
    order.syncEnded(succeeded);
  }
}

/** Writes the sectors of the BAT that hold the entries of the disk's blocks. */
export function writeBat(image: VhdImage): void {
  image.file.writeAt(encodeBat(image), image.batOffsetBytes);
}

/** Writes the sectors of the BAT that hold the entries of these blocks. */
export function writeBatOf(image: VhdImage, blocks: Iterable<number>): void {
  const sectors = new Set<number>();
  for (const block of blocks) sectors.add(batSectorOf(block));
  const bytes = new Uint8Array(VHD_SECTOR_SIZE);
  const view = new DataView(bytes.buffer);
  for (const sector of sectors) {
    putBatSector(image, sector, view, 0);
    image.file.writeAt(bytes, image.batOffsetBytes + sector * VHD_SECTOR_SIZE);
  }
}
