import { Errno, SystemError } from "../../../ffi/errno.ts";
import { isAllocated, presentSectors, readBlockData } from "./block.ts";
import { runEnd, testBit } from "../format/bitmap.ts";
import type { VhdChain } from "./chain.ts";
import type { VhdImage } from "./image.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";

/** A range of a disk's sectors. */
export interface Extent {
  readonly sector: number;
  readonly lengthSectors: number;
}

/**
 * Reads from a virtual disk through its chain. Each sector comes from the uppermost image that
 * holds it; sectors that no image holds are zero.
 *
 * @param into Receives `into.length` bytes. Neither end needs to be on a sector boundary.
 * @throws {SystemError} ERANGE beyond the end of the disk; errors of the file system.
 */
export function readRange(
  chain: VhdChain,
  into: Uint8Array<ArrayBuffer>,
  offsetBytes: number,
): void {
  const { path, sizeBytes } = chain.images[0];
  if (offsetBytes < 0 || offsetBytes + into.length > sizeBytes) {
    throw new SystemError(
      Errno.ERANGE,
      `Cannot read ${into.length} bytes at ${offsetBytes} of ${path}, a disk of ${sizeBytes} bytes`,
    );
  }
  const startSector = Math.floor(offsetBytes / VHD_SECTOR_SIZE);
  const endSector = Math.ceil((offsetBytes + into.length) / VHD_SECTOR_SIZE);
  const skipBytes = offsetBytes - startSector * VHD_SECTOR_SIZE;
  if (skipBytes === 0 && into.length % VHD_SECTOR_SIZE === 0) {
    readLayers(chain, 0, { into, sector: startSector });
    return;
  }
  const sectors = new Uint8Array((endSector - startSector) * VHD_SECTOR_SIZE);
  readLayers(chain, 0, { into: sectors, sector: startSector });
  into.set(sectors.subarray(skipBytes, skipBytes + into.length));
}

interface Piece {
  /** Whole sectors. */
  readonly into: Uint8Array<ArrayBuffer>;
  readonly sector: number;
}

/** Reads from layer `depth` and the layers below it. */
function readLayers(chain: VhdChain, depth: number, { into, sector }: Piece): void {
  if (depth === chain.images.length) return readBottom(chain, { into, sector });
  const image = chain.images[depth];
  const inDisk = clampToDisk(into, image.sizeBytes - sector * VHD_SECTOR_SIZE);
  if (image.type === "fixed") {
    inDisk.fill(0, image.file.readAt(inDisk, sector * VHD_SECTOR_SIZE));
    return;
  }
  for (let done = 0; done < inDisk.length;) {
    const at = sector + done / VHD_SECTOR_SIZE;
    const inBlock = at % image.sectorsPerBlock;
    const lengthSectors = Math.min(
      image.sectorsPerBlock - inBlock,
      (inDisk.length - done) / VHD_SECTOR_SIZE,
    );
    const end = done + lengthSectors * VHD_SECTOR_SIZE;
    readInBlock(chain, depth, { into: inDisk.subarray(done, end), sector: at });
    done = end;
  }
}

/** Limits a read to a disk that may be smaller than the disk above it. The rest reads as zeros. */
function clampToDisk(
  into: Uint8Array<ArrayBuffer>,
  lengthBytes: number,
): Uint8Array<ArrayBuffer> {
  if (lengthBytes >= into.length) return into;
  const length = Math.max(0, lengthBytes);
  into.fill(0, length);
  return into.subarray(0, length);
}

function readInBlock(chain: VhdChain, depth: number, { into, sector }: Piece): void {
  const image = chain.images[depth];
  const block = Math.floor(sector / image.sectorsPerBlock);
  if (!isAllocated(image, block)) return readLayers(chain, depth + 1, { into, sector });
  const bits = presentSectors(image, block);
  const first = sector % image.sectorsPerBlock;
  const last = first + into.length / VHD_SECTOR_SIZE;
  for (let at = first; at < last;) {
    const end = runEnd(bits, at, last);
    const part = into.subarray((at - first) * VHD_SECTOR_SIZE, (end - first) * VHD_SECTOR_SIZE);
    if (testBit(bits, at)) readBlockData(image, part, { block, sector: at });
    else readLayers(chain, depth + 1, { into: part, sector: sector + at - first });
    at = end;
  }
}

/** Reads from the raw image below the last VHD, or zeros without one. */
function readBottom(chain: VhdChain, { into, sector }: Piece): void {
  const got = chain.raw?.file.readAt(into, sector * VHD_SECTOR_SIZE) ?? 0;
  into.fill(0, got);
}

/**
 * Walks the sectors that one image holds, without its parents, in rising order. Each extent is as
 * long as possible. A fixed image holds all sectors.
 *
 * @param range The part of the disk to walk; all of it by default.
 */
export function* heldExtents(image: VhdImage, range: Partial<Extent> = {}): Generator<Extent> {
  const { sector: from = 0, lengthSectors = image.sizeBytes / VHD_SECTOR_SIZE - from } = range;
  const to = from + lengthSectors;
  if (image.type === "fixed") {
    if (to > from) yield { sector: from, lengthSectors };
    return;
  }
  let start = -1;
  for (let sector = from; sector < to;) {
    const block = Math.floor(sector / image.sectorsPerBlock);
    const blockStart = block * image.sectorsPerBlock;
    const blockEnd = Math.min(blockStart + image.sectorsPerBlock, to);
    const bits = isAllocated(image, block) ? presentSectors(image, block) : null;
    while (sector < blockEnd) {
      const held = bits !== null && testBit(bits, sector - blockStart);
      const end = bits === null
        ? blockEnd
        : blockStart + runEnd(bits, sector - blockStart, blockEnd - blockStart);
      if (held && start < 0) start = sector;
      if (!held && start >= 0) {
        yield { sector: start, lengthSectors: sector - start };
        start = -1;
      }
      sector = end;
    }
  }
  if (start >= 0) yield { sector: start, lengthSectors: to - start };
}
