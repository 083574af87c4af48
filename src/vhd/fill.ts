import { Errno, SystemError } from "../../ffi/errno.ts";
import { DD_BLK_UNUSED } from "./format/bat.ts";
import { allSet, setBits } from "./format/bitmap.ts";
import { isAllocated, presentSectors } from "./image/block.ts";
import { openChain, type VhdChain } from "./image/chain.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { nextBlockSector } from "./format/layout.ts";
import type { ProgressListener } from "../files/progress.ts";
import { readRange } from "./image/read.ts";
import { osStorage, type Storage } from "../files/storage.ts";
import { VHD_SECTOR_SIZE } from "./format/units.ts";
import { finishWriting, markFull, requireRoom, writeBat, writeRange } from "./write.ts";

/** How an image is filled. */
export interface FillOptions {
  readonly storage?: Storage;
  readonly onProgress?: ProgressListener;
}

/**
 * Gives an image all of its blocks, with the data that its disk has: what its parents hold becomes
 * its own. The disk reads the same all the while.
 *
 * @throws {SystemError} EINVAL for a fixed image; what opening the chain and the file system say.
 */
export function fillImage(path: string, options: FillOptions = {}): void {
  const { storage = osStorage, onProgress } = options;
  const chain = openChain(path, { storage, readOnly: false });
  try {
    const [image] = chain.images;
    refuseFixed(image);
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
  for (let block = 0; block < image.blocks; block++) {
    onProgress?.(block, image.blocks);
    if (allSet(presentSectors(image, block), image.sectorsPerBlock)) continue;
    const offsetBytes = block * image.blockSizeBytes;
    const part = buffer.subarray(0, Math.min(buffer.length, image.sizeBytes - offsetBytes));
    readRange(chain, part, offsetBytes);
    writeRange(image, part, offsetBytes);
  }
}

/**
 * Puts the footer back after a failure, a full disk mostly, if that still works; else the backup
 * counts.
 */
function settle(image: VhdImage): void {
  try {
    finishWriting(image);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
}

/** Which part of the disk gets its blocks; both ends included, all by default. */
export interface PreallocateOptions extends FillOptions {
  readonly fromSector?: number;
  readonly toSector?: number;
}

/**
 * Gives an image blocks without writing their data. In a file they read as zeros, on a block device
 * as whatever was there, and all of their sectors count as written; in a differencing image none
 * does, so that the parent still shows. Blocks that are there already stay as they are.
 *
 * @throws {SystemError} EINVAL for a fixed image; ERANGE for a part that is not in the disk;
 * EOVERFLOW when the file would be too long; what the file system says.
 */
export function preallocate(path: string, options: PreallocateOptions = {}): void {
  const { storage = osStorage, onProgress } = options;
  const image = openVhd(path, { storage, readOnly: false });
  try {
    refuseFixed(image);
    const oldEndSector = image.endOfDataSector;
    const blocks = planBlocks(image, options);
    const bitmap = new Uint8Array(image.bitmapSectors * VHD_SECTOR_SIZE);
    const isFull = image.type === "dynamic";
    if (isFull) setBits(bitmap, 0, image.sectorsPerBlock);
    try {
      makeRoom(image, oldEndSector);
      for (const [index, { sector }] of blocks.entries()) {
        onProgress?.(index, blocks.length);
        image.file.writeAt(bitmap, sector * VHD_SECTOR_SIZE);
      }
      image.file.sync();
    } catch (error) {
      image.endOfDataSector = oldEndSector;
      settle(image);
      throw error;
    }
    for (const { block, sector } of blocks) {
      image.bat[block] = sector;
      if (isFull) markFull(image, block);
    }
    writeBat(image);
    finishWriting(image);
  } finally {
    image.close();
  }
}

function refuseFixed({ path, type }: VhdImage): void {
  if (type !== "fixed") return;
  throw new SystemError(Errno.EINVAL, `Cannot fill ${path}: a fixed image has all of its blocks`);
}

interface NewBlock {
  readonly block: number;
  readonly sector: number;
}

/** Where blocks that are missing go; also moves the end of the image's data behind them. */
function planBlocks(image: VhdImage, options: PreallocateOptions): NewBlock[] {
  const { bitmapSectors, sectorsPerBlock, path } = image;
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
    const sector = nextBlockSector({ endSector, bitmapSectors });
    endSector = sector + bitmapSectors + sectorsPerBlock;
    if (endSector >= DD_BLK_UNUSED) {
      throw new SystemError(Errno.EOVERFLOW, `Cannot fill ${path}: block ${block} is beyond 2 TiB`);
    }
    blocks.push({ block, sector });
  }
  requireRoom(image, endSector);
  image.endOfDataSector = endSector;
  return blocks;
}

/**
 * Takes the old footer out of the way, so that new blocks read as zeros; the backup counts until the
 * footer is written behind them.
 */
function makeRoom({ file, endOfDataSector }: VhdImage, oldEndSector: number): void {
  if (file.isBlockDevice || endOfDataSector === oldEndSector) return;
  file.truncate(oldEndSector * VHD_SECTOR_SIZE);
  file.truncate(endOfDataSector * VHD_SECTOR_SIZE);
}
