import { DD_BLK_UNUSED } from "./format/bat.ts";
import { runEnd, testBit } from "./format/bitmap.ts";
import type { DynamicHeader } from "./format/header.ts";
import { blockEnd, metadataRegions, nextBlockSector } from "./format/layout.ts";
import { PublishOrder } from "./format/publish_order.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "./format/units.ts";
import { noteFull, writeBatmap } from "./image/batmap_writer.ts";
import { dataOffset, isAllocated, readBitmap } from "./image/block.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { type OnStorage, osStorage } from "../files/storage.ts";
import type { ProgressListener } from "../files/progress.ts";
import { keyhashOf } from "./snapshot.ts";
import { publishBlocks, syncBlocks, writeBatOf, writeFooters } from "./write.ts";

/** Blocks that are moved between two syncs. */
const MOVES_AT_ONCE = 32;

/** What was won. */
export interface Compacted {
  /** Blocks that held only zeros, or nothing. */
  readonly freedBlocks: number;
  /** Blocks that were moved to the front. */
  readonly movedBlocks: number;
  /** Length of the file, before and after. */
  readonly beforeBytes: number;
  readonly afterBytes: number;
}

/**
 * Gives room back: blocks that read as zeros without being there are freed, blocks at the end move into
 * the room of those, and the file is cut. The disk reads the same at every moment, and the operation
 * may be killed and repeated.
 *
 * A block of a differencing image is freed only when it has no sector, as its zeros hide the parent's
 * data. Of an encrypted image the same holds.
 *
 * @throws {SystemError} EBUSY when a tapdisk uses the image; errors of the file system.
 */
export function compactVhd(
  path: string,
  { storage = osStorage, onProgress }: OnStorage & { readonly onProgress?: ProgressListener } = {},
): Compacted {
  const image = openVhd(path, { storage, readOnly: false });
  try {
    image.file.refuseReaders();
    const beforeBytes = image.file.sizeBytes();
    if (image.header === null) {
      return { freedBlocks: 0, movedBlocks: 0, beforeBytes, afterBytes: beforeBytes };
    }
    const freedBlocks = freeBlocks(image, onProgress);
    const movedBlocks = moveBlocks(image, freePlaces(image, image.header));
    image.file.sync();
    writeFooters(image);
    image.file.sync();
    return { freedBlocks, movedBlocks, beforeBytes, afterBytes: image.file.sizeBytes() };
  } finally {
    image.close();
  }
}

/** Takes blocks that are not needed out of the BAT. Returns how many. */
function freeBlocks(image: VhdImage, onProgress?: ProgressListener): number {
  const zerosCount = image.parent === null && keyhashOf(image) === null;
  const found: number[] = [];
  for (let block = 0; block < image.blocks; block++) {
    onProgress?.(block, image.blocks);
    if (isAllocated(image, block) && isNotNeeded(image, block, zerosCount)) found.push(block);
  }
  onProgress?.(image.blocks, image.blocks);
  if (found.length === 0) return 0;
  // The batmap comes first: a block that it marks as full must be allocated.
  for (const block of found) noteFull(image, block, false);
  writeBatmap(image);
  image.file.sync();
  for (const block of found) image.bat[block] = DD_BLK_UNUSED;
  writeBatOf(image, found);
  // Nothing is written to the room of a block before the BAT on disk has given it up.
  image.file.sync();
  return found.length;
}

/** Whether a block reads the same without being there. */
function isNotNeeded(image: VhdImage, block: number, zerosCount: boolean): boolean {
  const bits = readBitmap(image, block);
  const sectors = image.sectorsPerBlock;
  const buffer = new Uint8Array(sectors * VHD_SECTOR_SIZE);
  for (let at = 0; at < sectors;) {
    const end = runEnd(bits, at, sectors);
    if (testBit(bits, at)) {
      if (!zerosCount) return false;
      const part = buffer.subarray(0, (end - at) * VHD_SECTOR_SIZE);
      part.fill(0, image.file.readAt(part, dataOffset(image, block) + at * VHD_SECTOR_SIZE));
      if (!isZero(part)) return false;
    }
    at = end;
  }
  return true;
}

/** Whether whole sectors hold only zeros. */
function isZero({ buffer, byteOffset, byteLength }: Uint8Array<ArrayBuffer>): boolean {
  const words = new Int32Array(buffer, byteOffset, byteLength / 4);
  for (let i = 0; i < words.length; i++) if (words[i] !== 0) return false;
  return true;
}

/** Places for blocks between structures of the file, in rising order. */
function freePlaces(image: VhdImage, header: DynamicHeader): number[] {
  const { footer, batmap, bat } = image;
  const taken = metadataRegions({ footer, header, batmap: batmap?.header ?? null })
    .map(({ startSector, endSector }) => ({ startSector, endSector }));
  for (const block of allocated(image)) {
    taken.push({ startSector: bat[block], endSector: blockEnd(image, bat[block]) });
  }
  const places: number[] = [];
  let end = sectorsOf(image.endOfHeadersBytes);
  for (const { startSector, endSector } of taken.sort((a, b) => a.startSector - b.startSector)) {
    for (let place = nextBlockSector(image, end); place >= 0;) {
      if (blockEnd(image, place) > startSector) break;
      places.push(place);
      place = nextBlockSector(image, blockEnd(image, place));
    }
    end = Math.max(end, endSector);
  }
  return places;
}

/** Moves blocks from the end of the file into free room in front of them. */
function moveBlocks(image: VhdImage, room: number[]): number {
  const last = allocated(image).sort((a, b) => image.bat[b] - image.bat[a]);
  const order = new PublishOrder();
  let moved = 0;
  for (let next = 0; next < last.length && room.length > 0;) {
    const batch = new Map<number, number>();
    while (batch.size < MOVES_AT_ONCE && next < last.length && room.length > 0) {
      const block = last[next];
      const place = room[0];
      if (place > image.bat[block]) break;
      room.shift();
      copyBlock(image, image.bat[block], place);
      image.bat[block] = place;
      batch.set(block, order.written());
      next++;
    }
    if (batch.size === 0) return moved;
    moved += batch.size;
    syncBlocks(image, order);
    publishBlocks(image, order, batch);
    image.file.sync();
  }
  return moved;
}

function allocated(image: VhdImage): number[] {
  const found: number[] = [];
  for (let block = 0; block < image.blocks; block++) {
    if (isAllocated(image, block)) found.push(block);
  }
  return found;
}

/** Copies a block with its bitmap. What the file ends in front of is zeros. */
function copyBlock(image: VhdImage, from: number, to: number): void {
  const bytes = new Uint8Array((image.bitmapSectors + image.sectorsPerBlock) * VHD_SECTOR_SIZE);
  image.file.readAt(bytes, from * VHD_SECTOR_SIZE);
  image.file.writeAt(bytes, to * VHD_SECTOR_SIZE);
}
