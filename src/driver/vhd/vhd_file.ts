import { assert } from "../../../ffi/assert.ts";
import { Arena, copySectors, zeroSectors } from "../../../ffi/memory.ts";
import type { DiskFile } from "../../queue/disk_files.ts";
import { BAT_ENTRIES_PER_SECTOR, DD_BLK_UNUSED } from "../../vhd/format/bat.ts";
import { setBit, testBit } from "../../vhd/format/bitmap.ts";
import { encodeFooter } from "../../vhd/format/footer.ts";
import { blockEnd, endOfBlocksSector, nextBlockSector } from "../../vhd/format/layout.ts";
import {
  blocksWithoutRoom,
  placeFooter,
  placeOfNewBlock,
  requireHoldable,
  startGrowth,
} from "../../vhd/image/allocation.ts";
import { clearImpossible, noteFull, writeBatmap } from "../../vhd/image/batmap_writer.ts";
import type { VhdImage } from "../../vhd/image/image.ts";
import { SECTOR_BYTES } from "../driver.ts";

/**
 * Where things are in the file of an open dynamic or differencing image, and how it grows.
 *
 * The file always ends with a footer's room that only this code writes: it is given its new length
 * before a guest's data can be near its end. So no guest can put a footer of its own where the next
 * process that opens the image looks for one, whenever this process dies.
 */
export class VhdFile {
  readonly image: VhdImage;
  readonly disk: DiskFile;
  readonly bat: Uint32Array;
  /**
   * Blocks whose bitmap is full, as this process has seen it, one bit each. The image's batmap is
   * not used: where it is wrong, it would hide data of a parent.
   */
  readonly #full: Uint8Array<ArrayBuffer>;
  /**
   * Blocks that are not allocated in memory, and may be on disk: a write of their BAT entries failed, and
   * the disk may have done it. One bit each.
   */
  readonly #uncertain: Uint8Array<ArrayBuffer>;
  readonly sectorsPerBlock: number;
  readonly bitmapSectors: number;
  /** The first sector that is not whole in the file, when the file ends within a block. */
  endSector = Infinity;
  /** The part of that sector that is in the file, then zeros; null when nothing of it is there. */
  #tail: Arena | null = null;
  #sizeBytes: number;
  #grown = false;
  /** Whether any block was added since the image was opened. */
  #allocated = false;

  /** Throws `SystemError` EFBIG for an image that is open for writing and cannot hold its disk. */
  constructor(image: VhdImage, disk: DiskFile, { readOnly }: { readOnly: boolean }) {
    if (!readOnly) requireHoldable(image);
    this.image = image;
    this.disk = disk;
    this.bat = image.bat;
    this.#full = new Uint8Array(Math.ceil(image.bat.length / 8));
    this.#uncertain = new Uint8Array(Math.ceil(image.bat.length / 8));
    this.sectorsPerBlock = image.sectorsPerBlock;
    this.bitmapSectors = image.bitmapSectors;
    this.#sizeBytes = disk.sizeBytes();
    if (endOfBlocksSector(image) * SECTOR_BYTES > this.#sizeBytes) this.#findEnd(readOnly);
    // A bit of a block that is not allocated would be wrong once the block is.
    if (!readOnly && clearImpossible(image) > 0) writeBatmap(image);
  }

  /**
   * A crash may leave a file that ends within its last block: what is missing reads as zeros, as it
   * does offline. A file that is open for writing gets its length back.
   */
  #findEnd(readOnly: boolean): void {
    if (!readOnly && !this.disk.isBlockDevice) {
      this.#sizeBytes = (this.image.endOfDataSector + 1) * SECTOR_BYTES;
      this.disk.truncate(this.#sizeBytes);
      return;
    }
    this.endSector = Math.floor(this.#sizeBytes / SECTOR_BYTES);
    const tail = new Uint8Array(this.#sizeBytes % SECTOR_BYTES);
    if (tail.length === 0) return;
    this.image.file.readAt(tail, this.endSector * SECTOR_BYTES);
    this.#tail = new Arena(SECTOR_BYTES);
    this.#tail.bytes.set(tail);
  }

  /** Reads sectors that lie behind `endSector` of the file, where they are all zeros but the first. */
  readPastEnd(sector: number, count: number, memorySector: number): void {
    assert(sector >= this.endSector, "A read past the end of a file starts in front of it");
    zeroSectors(memorySector, count);
    if (this.#tail !== null && sector === this.endSector) {
      copySectors(memorySector, this.#tail.sector, 1);
    }
  }

  /** How many blocks of the disk will find no room in the file, whatever becomes of it. */
  get blocksWithoutRoom(): number {
    return blocksWithoutRoom(this.image);
  }

  /** Whether all of an allocated block's sectors hold data. */
  isFull(block: number): boolean {
    return testBit(this.#full, block);
  }

  /** A block's bitmap is on disk and full. */
  noteFull(block: number): void {
    if (this.isFull(block)) return;
    setBit(this.#full, block);
    noteFull(this.image, block, true);
  }

  /** A block's bitmap is not full, whatever the batmap says. */
  notePartial(block: number): void {
    assert(!this.isFull(block), "A full block of a VHD has become partial");
    noteFull(this.image, block, false);
  }

  /** Whether the BAT on disk may have a block that the one in memory does not. */
  isUncertain(block: number): boolean {
    return testBit(this.#uncertain, block);
  }

  /** The BAT's sector with a new block could not be written. */
  noteUncertain(block: number): void {
    setBit(this.#uncertain, block);
  }

  /** A sector of the BAT on disk is as it is in memory, but for the blocks that it names now. */
  noteBatWritten(sector: number): void {
    const first = sector * BAT_ENTRIES_PER_SECTOR / 8;
    this.#uncertain.fill(0, first, first + BAT_ENTRIES_PER_SECTOR / 8);
  }

  /** Byte offset at which the footer belongs just now. */
  get footerOffsetBytes(): number {
    // A footer of 511 bytes begins on a sector too: the one that takes its place is a byte longer.
    const lastSector = Math.ceil(this.#sizeBytes / SECTOR_BYTES) - 1;
    return Math.max(this.image.endOfDataSector, lastSector) * SECTOR_BYTES;
  }

  /** The first sector of the block that is added next; -1 when there is no place for one. */
  get nextBlockSector(): number {
    return nextBlockSector(this.image, this.image.endOfDataSector);
  }

  /** Whether the file has grown since the footer was last written at its end. */
  get grown(): boolean {
    return this.#grown;
  }

  /** The footer at `footerOffsetBytes` is being written. */
  noteFooter(): void {
    this.#grown = false;
  }

  /** The footer could not be written. */
  noteFooterLost(): void {
    this.#grown = true;
  }

  /**
   * Finds room for a new block at the end of the file and makes the file as long as that takes.
   * Returns the sector at which the block begins.
   *
   * @throws {SystemError} EFBIG, ENOSPC, or whatever the file says: nothing has changed then.
   */
  growByBlock(block: number): number {
    const sector = placeOfNewBlock(this.image, block);
    if (!this.#allocated) {
      startGrowth(this.image);
      this.#sizeBytes = this.disk.sizeBytes();
    }
    const endSector = blockEnd(this.image, sector);
    const neededBytes = (endSector + 1) * SECTOR_BYTES;
    if (neededBytes > this.#sizeBytes) {
      this.disk.truncate(neededBytes);
      this.#sizeBytes = neededBytes;
    }
    this.image.endOfDataSector = endSector;
    this.notePartial(block);
    this.#grown = true;
    this.#allocated = true;
    return sector;
  }

  /**
   * Leaves the image in order: batmap, footer at the end, no room behind the last block that was
   * not taken in the end. Then closes it. Throws `SystemError`.
   */
  finish(): void {
    const { file, batmap } = this.image;
    try {
      // The batmap repeats bitmaps: those must be on stable storage first.
      file.sync();
      if (this.#allocated || this.image.footerSource !== "primary") this.#placeFooter();
      if (batmap?.dirty) writeBatmap(this.image);
      file.sync();
    } finally {
      this.close();
    }
  }

  /**
   * Writes the footer to its place. Blocks that may be in the BAT on disk alone keep their room: an image
   * with a block behind its end does not open.
   */
  #placeFooter(): void {
    const keepsRoom = this.#uncertain.some((bits) => bits !== 0);
    if (!keepsRoom || this.disk.isBlockDevice) return placeFooter(this.image);
    this.image.file.writeAt(encodeFooter(this.image.footer), this.footerOffsetBytes);
  }

  /** Closes the files without writing anything. */
  close(): void {
    this.#tail?.release();
    try {
      this.image.close();
    } finally {
      // A close that fails has closed. The lock is with the other descriptor.
      this.disk.close();
    }
  }

  /** The block that a sector of the disk lies in. */
  blockOf(sector: number): number {
    return Math.floor(sector / this.sectorsPerBlock);
  }

  /** A sector's place within its block. */
  inBlock(sector: number): number {
    return sector - Math.floor(sector / this.sectorsPerBlock) * this.sectorsPerBlock;
  }

  /** How many of `count` sectors from one of a block on lie in the block. */
  leftInBlock(sector: number, block: number, count: number): number {
    return Math.min(count, (block + 1) * this.sectorsPerBlock - sector);
  }

  /** Sector at which a block begins in the file, as the BAT on disk has it; -1: not allocated. */
  locationOf(block: number): number {
    const entry = this.bat[block];
    return entry === DD_BLK_UNUSED ? -1 : entry;
  }
}
