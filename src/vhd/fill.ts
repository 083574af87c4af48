import { Errno, SystemError } from "../../ffi/errno.ts";
import { allSet, runEnd, setBits, testBit } from "./format/bitmap.ts";
import { blockEnd } from "./format/layout.ts";
import { PublishOrder } from "./format/publish_order.ts";
import { VHD_SECTOR_SIZE } from "./format/units.ts";
import { growTo, placeOfNewBlock, startGrowth } from "./image/allocation.ts";
import { noteFull } from "./image/batmap_writer.ts";
import {
  bitmapOffset,
  dataOffset,
  isAllocated,
  presentSectors,
  readBitmap,
} from "./image/block.ts";
import { openChain, type VhdChain } from "./image/chain.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import type { ProgressListener } from "../files/progress.ts";
import { readRange } from "./image/read.ts";
import { osStorage, type Storage } from "../files/storage.ts";
import { keyhashOf } from "./snapshot.ts";
import { finishWriting, publishBlocks, syncBlocks, writeRange } from "./write.ts";

/** The number of completed blocks that are collected before their bits are set. */
const BLOCKS_AT_ONCE = 64;

/** Options of a fill. */
export interface FillOptions {
  readonly storage?: Storage;
  readonly onProgress?: ProgressListener;
}

/**
 * Allocates all blocks of an image and fills them with the disk's data, so that the parents' data
 * is copied into the image. The disk reads the same at every moment.
 *
 * @throws {SystemError} EINVAL for a fixed or encrypted image; errors of opening the chain and of the
 * file system.
 */
export function fillImage(path: string, options: FillOptions = {}): void {
  const { storage = osStorage, onProgress } = options;
  const chain = openChain(path, { storage, readOnly: false });
  try {
    const [image] = chain.images;
    refuseFixed(image);
    refuseEncrypted(image);
    const buffer = new Uint8Array(image.blockSizeBytes);
    try {
      fillBlocks(chain, { buffer, onProgress });
    } catch (error) {
      settle(image);
      throw error;
    }
    finishWriting(image);
  } finally {
    chain.close();
  }
}

function fillBlocks(
  chain: VhdChain,
  { buffer, onProgress }: { buffer: Uint8Array<ArrayBuffer>; onProgress?: ProgressListener },
): void {
  const [image] = chain.images;
  let completed: number[] = [];
  for (let block = 0; block < image.blocks; block++) {
    onProgress?.(block, image.blocks);
    const bits = presentSectors(image, block);
    if (allSet(bits, image.sectorsPerBlock)) continue;
    const offsetBytes = block * image.blockSizeBytes;
    const part = buffer.subarray(0, Math.min(buffer.length, image.sizeBytes - offsetBytes));
    readRange(chain, part, offsetBytes);
    if (!isAllocated(image, block)) {
      writeRange(image, part, offsetBytes);
      continue;
    }
    writeMissing(image, part, { block, bits });
    completed.push(block);
    if (completed.length >= BLOCKS_AT_ONCE) completed = showCompleted(image, completed);
  }
  showCompleted(image, completed);
}

/** Writes the data of the sectors without a bit. */
function writeMissing(
  image: VhdImage,
  data: Uint8Array<ArrayBuffer>,
  { block, bits }: { block: number; bits: Uint8Array },
): void {
  const end = data.length / VHD_SECTOR_SIZE;
  for (let sector = 0; sector < end;) {
    const stop = Math.min(end, runEnd(bits, sector, image.sectorsPerBlock));
    if (!testBit(bits, sector)) {
      const part = data.subarray(sector * VHD_SECTOR_SIZE, stop * VHD_SECTOR_SIZE);
      image.file.writeAt(part, dataOffset(image, block) + sector * VHD_SECTOR_SIZE);
    }
    sector = stop;
  }
}

/**
 * Sets the bits of blocks whose data is complete. The parents' data shows until then, and it was
 * flushed. So the copies must be durable before the bits hide it.
 */
function showCompleted(image: VhdImage, blocks: readonly number[]): number[] {
  if (blocks.length === 0) return [];
  image.file.sync();
  for (const block of blocks) {
    const bitmap = readBitmap(image, block);
    const inBlock = image.sizeBytes / VHD_SECTOR_SIZE - block * image.sectorsPerBlock;
    setBits(bitmap, 0, Math.min(image.sectorsPerBlock, inBlock));
    image.file.writeAt(bitmap, bitmapOffset(image, block));
    noteFull(image, block, allSet(bitmap, image.sectorsPerBlock));
  }
  return [];
}

/**
 * Finishes the image after a failure, usually a full disk. The first error is the one that is
 * reported.
 */
function settle(image: VhdImage): void {
  try {
    finishWriting(image);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
}

/**
 * The part of the disk whose blocks are allocated. Both ends are included; the default is the whole
 * disk.
 */
export interface PreallocateOptions extends FillOptions {
  readonly fromSector?: number;
  readonly toSector?: number;
}

/**
 * Allocates blocks without writing their data. In a file they read as zeros; on a block device they
 * read as the device's old content. In a dynamic image all of their sectors count as written. In a
 * differencing image none do, so that the parent shows through. Existing blocks do not change.
 *
 * @throws {SystemError} EINVAL for a fixed image and an encrypted dynamic one; ERANGE for a part that is not in the disk; EFBIG
 * when the file would be too long; errors of the file system.
 */
export function preallocate(path: string, options: PreallocateOptions = {}): void {
  const { storage = osStorage, onProgress } = options;
  const image = openVhd(path, { storage, readOnly: false });
  try {
    refuseFixed(image);
    if (isFilled(image)) refuseEncrypted(image);
    const blocks = planBlocks(image, options);
    if (blocks.length === 0) return finishWriting(image);
    const order = new PublishOrder();
    let stamp = 0;
    try {
      startGrowth(image);
      growTo(image, blockEnd(image, blocks[blocks.length - 1].sector));
      stamp = writeBitmaps(image, blocks, { order, onProgress });
      syncBlocks(image, order);
    } catch (error) {
      settle(image);
      throw error;
    }
    for (const { block, sector } of blocks) {
      image.bat[block] = sector;
      noteFull(image, block, isFilled(image));
    }
    publishBlocks(image, order, new Map(blocks.map(({ block }) => [block, stamp])));
    finishWriting(image);
  } finally {
    image.close();
  }
}

/**
 * Whether all sectors of a new block count as written. In a differencing image they do not, so that
 * the parent shows through.
 */
function isFilled({ type }: VhdImage): boolean {
  return type === "dynamic";
}

/** Writes the bitmaps of new blocks. Returns the stamp of the last one. */
function writeBitmaps(
  image: VhdImage,
  blocks: readonly NewBlock[],
  { order, onProgress }: { order: PublishOrder; onProgress?: ProgressListener },
): number {
  const bitmap = new Uint8Array(image.bitmapSectors * VHD_SECTOR_SIZE);
  if (isFilled(image)) setBits(bitmap, 0, image.sectorsPerBlock);
  for (const [index, { sector }] of blocks.entries()) {
    onProgress?.(index, blocks.length);
    image.file.writeAt(bitmap, sector * VHD_SECTOR_SIZE);
  }
  return order.written();
}

/**
 * Refuses an encrypted image. What is stored in it must be encrypted with its key, the parents' data
 * and zeros as well, and only a tapdisk has the key.
 */
function refuseEncrypted(image: VhdImage): void {
  if (keyhashOf(image) === null) return;
  throw new SystemError(
    Errno.EINVAL,
    `Cannot fill ${image.path}: it is encrypted, and its data is written by a tapdisk that has the key`,
  );
}

function refuseFixed({ path, type }: VhdImage): void {
  if (type !== "fixed") return;
  throw new SystemError(Errno.EINVAL, `Cannot fill ${path}: a fixed image has all of its blocks`);
}

interface NewBlock {
  readonly block: number;
  readonly sector: number;
}

/** Plans the places of the missing blocks. */
function planBlocks(image: VhdImage, options: PreallocateOptions): NewBlock[] {
  const { sectorsPerBlock, path } = image;
  const lastSector = image.sizeBytes / VHD_SECTOR_SIZE - 1;
  const { fromSector = 0, toSector = lastSector } = options;
  if (fromSector > toSector || toSector > lastSector) {
    throw new SystemError(
      Errno.ERANGE,
      `Cannot fill ${path} from sector ${fromSector} to ${toSector}: its last is ${lastSector}`,
    );
  }
  const blocks: NewBlock[] = [];
  let endSector = image.endOfDataSector;
  const lastBlock = Math.floor(toSector / sectorsPerBlock);
  for (let block = Math.floor(fromSector / sectorsPerBlock); block <= lastBlock; block++) {
    if (isAllocated(image, block)) continue;
    const sector = placeOfNewBlock(image, block, endSector);
    endSector = blockEnd(image, sector);
    blocks.push({ block, sector });
  }
  return blocks;
}
