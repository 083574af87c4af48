import { Errno, SystemError } from "../../ffi/errno.ts";
import { BAT_ENTRIES_PER_SECTOR, DD_BLK_UNUSED, encodeBat, encodeBatSector } from "./format/bat.ts";
import { batmapChecksum, encodeBatmapHeader } from "./format/batmap.ts";
import { allSet, setBit, setBits } from "./format/bitmap.ts";
import { bitmapOffset, dataOffset, isAllocated, isMarkedFull, readBitmap } from "./image/block.ts";
import { writeZeros } from "./create.ts";
import { encodeFooter, HD_FOOTER_SIZE } from "./format/footer.ts";
import type { VhdImage } from "./image/image.ts";
import { nextBlockSector } from "./format/layout.ts";
import { VHD_SECTOR_SIZE } from "./format/units.ts";

/**
 * Writes to a virtual disk while no tapdisk has it.
 *
 * What must hold at every moment, so that a crash leaves an image that opens: a block's data and
 * bitmap are in the file before the BAT points at them, and a sector's data before the bit that says
 * so. A new block lies over the footer at the end of the file; until {@linkcode finishWriting} puts
 * it back behind the last block, the backup at the start counts.
 *
 * @param from Whole sectors.
 * @param offsetBytes A multiple of 512.
 * @throws {SystemError} ERANGE beyond the end of the disk, EFBIG when the file would be too long for
 * a sector number of 32 bits; what the file system says.
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

/** Puts the footers where they belong after {@linkcode writeRange} and syncs the file. */
export function finishWriting(image: VhdImage): void {
  image.file.sync();
  if (image.batmap?.dirty) writeBatmap(image);
  writeFooters(image);
  image.file.sync();
}

/** Writes both footers: behind the data, or at the end of a block device, and at the start. */
export function writeFooters(image: VhdImage): void {
  const { file } = image;
  const bytes = encodeFooter(image.footer);
  if (image.type !== "fixed") file.writeAt(bytes, 0);
  if (file.isBlockDevice) return file.writeAt(bytes, file.sizeBytes() - HD_FOOTER_SIZE);
  const endBytes = image.endOfDataSector * VHD_SECTOR_SIZE;
  file.writeAt(bytes, endBytes);
  file.truncate(endBytes + HD_FOOTER_SIZE);
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
  if (!isAllocated(image, block)) return writeNewBlock(image, from, { block, sector });
  image.file.writeAt(from, dataOffset(image, block) + sector * VHD_SECTOR_SIZE);
  if (isMarkedFull(image, block)) return;
  const bitmap = readBitmap(image, block);
  setBits(bitmap, sector, from.length / VHD_SECTOR_SIZE);
  image.file.writeAt(bitmap, bitmapOffset(image, block));
  if (allSet(bitmap, image.sectorsPerBlock)) markFull(image, block);
}

function writeNewBlock(
  image: VhdImage,
  from: Uint8Array<ArrayBuffer>,
  { block, sector }: BlockPlace,
): void {
  const { file, bitmapSectors, sectorsPerBlock } = image;
  const endSector = image.endOfDataSector;
  const place = nextBlockSector({ endSector, bitmapSectors });
  if (place + bitmapSectors + sectorsPerBlock >= DD_BLK_UNUSED) {
    throw new SystemError(Errno.EFBIG, `Cannot allocate block ${block} of ${image.path}`);
  }
  requireRoom(image, place + bitmapSectors + sectorsPerBlock);
  clearSpace(image, endSector, place + bitmapSectors + sectorsPerBlock);
  const dataSector = place + bitmapSectors + sector;
  file.writeAt(from, dataSector * VHD_SECTOR_SIZE);
  const bitmap = new Uint8Array(bitmapSectors * VHD_SECTOR_SIZE);
  setBits(bitmap, sector, from.length / VHD_SECTOR_SIZE);
  file.writeAt(bitmap, place * VHD_SECTOR_SIZE);
  image.bat[block] = place;
  image.endOfDataSector = place + bitmapSectors + sectorsPerBlock;
  writeBatEntry(image, block);
  if (allSet(bitmap, sectorsPerBlock)) markFull(image, block);
}

/**
 * Makes sure that new blocks end in front of a block device's footer.
 *
 * @throws {SystemError} ENOSPC when they do not.
 */
export function requireRoom({ file, path }: VhdImage, endSector: number): void {
  const neededBytes = endSector * VHD_SECTOR_SIZE + HD_FOOTER_SIZE;
  if (!file.isBlockDevice || neededBytes <= file.sizeBytes()) return;
  throw new SystemError(
    Errno.ENOSPC,
    `Cannot allocate blocks of ${path}: the device must have ${neededBytes} bytes`,
  );
}

/** Makes the file's sectors zero from one to another, where the old footer or old data may be. */
function clearSpace({ file }: VhdImage, fromSector: number, toSector: number): void {
  const [fromBytes, toBytes] = [fromSector * VHD_SECTOR_SIZE, toSector * VHD_SECTOR_SIZE];
  if (file.isBlockDevice) return writeZeros(file, fromBytes, toBytes - fromBytes);
  file.truncate(fromBytes);
  file.truncate(toBytes);
}

/** Writes the sectors of the BAT that hold the entries of the disk's blocks. */
export function writeBat({ bat, batOffsetBytes, file, header }: VhdImage): void {
  const entries = Math.ceil(bat.length / BAT_ENTRIES_PER_SECTOR) * BAT_ENTRIES_PER_SECTOR;
  const declared = header?.maxBatEntries ?? 0;
  file.writeAt(encodeBat(bat, Math.min(entries, declared)), batOffsetBytes);
}

/** Writes the sector of the BAT that an entry is in. */
export function writeBatEntry(image: VhdImage, block: number): void {
  const first = block - block % BAT_ENTRIES_PER_SECTOR;
  image.file.writeAt(encodeBatSector(image.bat, first), image.batOffsetBytes + first * 4);
}

/** Notes in the batmap, in memory, that all of a block's sectors are here. */
export function markFull(image: VhdImage, block: number): void {
  const { batmap } = image;
  if (batmap === null || block >= batmap.bits.length * 8) return;
  setBit(batmap.bits, block);
  batmap.dirty = true;
}

/**
 * Writes the map and its header with the new checksum: in one piece where they lie together, as in
 * all images that we make, so that a crash is unlikely to come between them.
 */
export function writeBatmap({ batmap, file }: VhdImage): void {
  if (batmap === null) return;
  const { header, bits, headerOffsetBytes, offsetBytes } = batmap;
  header.checksum = batmapChecksum(bits, header.batmapVersion);
  const headerBytes = encodeBatmapHeader(header);
  if (headerOffsetBytes + headerBytes.length === offsetBytes) {
    const both = new Uint8Array(headerBytes.length + bits.length);
    both.set(headerBytes);
    both.set(bits, headerBytes.length);
    file.writeAt(both, headerOffsetBytes);
  } else {
    file.writeAt(bits, offsetBytes);
    file.writeAt(headerBytes, headerOffsetBytes);
  }
  batmap.dirty = false;
}
