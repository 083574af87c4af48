import { Errno } from "../../../ffi/errno.ts";
import { setBit, testBit } from "../../vhd/format/bitmap.ts";
import {
  bitmapOffset,
  dataOffset,
  isAllocated,
  isMarkedFull,
  readBitmap,
  readBlockData,
} from "../../vhd/image/block.ts";
import type { VhdImage } from "../../vhd/image/image.ts";
import { heldExtents } from "../../vhd/image/read.ts";
import { VHD_SECTOR_SIZE } from "../../vhd/format/units.ts";
import type { Output } from "../subcommands/output.ts";
import type { NumberFormat } from "./print_headers.ts";

/** What a printer of tables prints. */
export interface TableRequest {
  readonly image: VhdImage;
  readonly output: Output;
  /** The first block or sector. */
  readonly first: number;
  readonly count: number;
  readonly format: NumberFormat;
}

/** Printers by option letter, in the order in which they print. Each returns an exit status. */
export const READ_TABLES: readonly (readonly [string, (request: TableRequest) => number])[] = [
  ["t", onlyDynamic(printLocations)],
  ["b", onlyDynamic(printBat)],
  ["B", onlyDynamic(printBatBits)],
  ["m", onlyDynamic(printBitmaps)],
  ["i", onlyDynamic(printSectorBits)],
  ["e", printExtents],
  ["a", onlyDynamic(printBatmapBits)],
  ["j", onlyDynamic(printBatmapTests)],
  ["d", onlyDynamic(printBlocks)],
];

type Printer = (request: TableRequest) => number;

function onlyDynamic(print: Printer): Printer {
  return (request) => {
    if (request.image.type !== "fixed") return print(request);
    request.output.printError(`${request.image.path} is a fixed image: it has no block table`);
    return Errno.EINVAL;
  };
}

/** Refuses blocks past the end of the table. */
function blocksInRange({ image, output, first, count, format }: TableRequest): boolean {
  if (first + count <= image.bat.length) return true;
  output.printError(`block ${format(first + count)} past end of file`);
  return false;
}

function sectorsInRange({ image, first, count }: TableRequest): boolean {
  return (first + count) * VHD_SECTOR_SIZE <= image.sizeBytes;
}

function printLocations(request: TableRequest): number {
  const { image, output, first, count, format } = request;
  if (!sectorsInRange(request)) {
    output.printError(`sector ${format(first + count)} past end of file`);
    return Errno.ERANGE;
  }
  for (let sector = first; sector < first + count; sector++) {
    const block = Math.floor(sector / image.sectorsPerBlock);
    const inBlock = sector % image.sectorsPerBlock;
    const place = isAllocated(image, block)
      ? format(dataOffset(image, block) + inBlock * VHD_SECTOR_SIZE)
      : "not allocated";
    output.printLine(
      `logical sector ${format(sector)}: block number: ${format(block)}, ` +
        `sector offset: ${format(inBlock)}, file offset: ${place}`,
    );
  }
  return 0;
}

function printBat(request: TableRequest): number {
  const { image, output, first, count, format } = request;
  if (!blocksInRange(request)) return Errno.ERANGE;
  for (let block = first; block < first + count; block++) {
    const place = isAllocated(image, block) ? format(bitmapOffset(image, block)) : "not allocated";
    output.printLine(`block: ${format(block)}: offset: ${place}`);
  }
  return 0;
}

function printBatBits({ image, output }: TableRequest): number {
  const blocks = Math.floor(image.sizeBytes / image.blockSizeBytes);
  const bits = new Uint8Array(Math.ceil(blocks / 8));
  for (let block = 0; block < blocks; block++) if (isAllocated(image, block)) setBit(bits, block);
  output.printBytes(bits);
  return 0;
}

function printBitmaps(request: TableRequest): number {
  const { image, output, first, count, format } = request;
  if (!blocksInRange(request)) return Errno.ERANGE;
  for (let block = first; block < first + count; block++) {
    if (isAllocated(image, block)) output.printBytes(readBitmap(image, block));
    else output.printLine(`block ${format(block)} not allocated`);
  }
  return 0;
}

function printSectorBits(request: TableRequest): number {
  const { image, output, first, count, format } = request;
  if (!sectorsInRange(request)) {
    output.printLine(`sector ${format(first)} past end of file`);
    return Errno.ERANGE;
  }
  let bitmap: Uint8Array | null = null;
  let bitmapBlock = -1;
  for (let sector = first; sector < first + count; sector++) {
    const block = Math.floor(sector / image.sectorsPerBlock);
    const inBlock = sector % image.sectorsPerBlock;
    if (block !== bitmapBlock) {
      bitmap = isAllocated(image, block) ? readBitmap(image, block) : null;
      bitmapBlock = block;
    }
    const bit = bitmap !== null && testBit(bitmap, inBlock) ? 1 : 0;
    output.printLine(`block ${format(block)}: sec: ${format(inBlock)}: ${bit}`);
  }
  return 0;
}

function printExtents(request: TableRequest): number {
  const { image, output, first, count, format } = request;
  if (!sectorsInRange(request)) {
    output.printLine(`sector ${format(first)} past end of file`);
    return Errno.ERANGE;
  }
  for (const extent of heldExtents(image, { sector: first, lengthSectors: count })) {
    output.printLine(`${format(extent.sector)} ${format(extent.lengthSectors)}`);
  }
  return 0;
}

function printBatmapBits({ image, output }: TableRequest): number {
  if (image.batmap === null) {
    output.printLine(`failed to read batmap: ${-Errno.EINVAL}`);
    return Errno.EINVAL;
  }
  const { header, offsetBytes } = image.batmap;
  const buffer = new Uint8Array(65536);
  // The header may claim any length.
  const claimedEndBytes = offsetBytes + header.batmapSectors * VHD_SECTOR_SIZE;
  const endBytes = Math.min(claimedEndBytes, image.file.sizeBytes());
  for (let at = offsetBytes; at < endBytes; at += buffer.length) {
    const part = buffer.subarray(0, Math.min(endBytes - at, buffer.length));
    image.file.readAt(part, at);
    output.printBytes(part);
  }
  return 0;
}

function printBatmapTests(request: TableRequest): number {
  const { image, output, first, count, format } = request;
  if (!blocksInRange(request)) return Errno.ERANGE;
  if (image.batmap === null) {
    output.printError("failed to get batmap");
    return Errno.EINVAL;
  }
  for (let block = first; block < first + count; block++) {
    const full = isMarkedFull(image, block) ? 1 : 0;
    output.printError(`batmap for block ${format(block)}: ${full}`);
  }
  return 0;
}

function printBlocks(request: TableRequest): number {
  const { image, output, first, count, format } = request;
  if (!blocksInRange(request)) return Errno.ERANGE;
  const data = new Uint8Array(image.blockSizeBytes);
  for (let block = first; block < first + count; block++) {
    if (!isAllocated(image, block)) {
      output.printLine(`block ${format(block)} not allocated`);
      continue;
    }
    readBlockData(image, data, { block, sector: 0 });
    output.printBytes(data);
  }
  return 0;
}
