import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { DiskFile } from "../../queue/disk_files.ts";
import { DD_BLK_UNUSED } from "../../vhd/format/bat.ts";
import { setBit, testBit } from "../../vhd/format/bitmap.ts";
import { batmapChecksum, encodeBatmapHeader } from "../../vhd/format/batmap.ts";
import { encodeFooter } from "../../vhd/format/footer.ts";
import type { VhdImage } from "../../vhd/image/image.ts";
import { endOfDataSector, nextBlockSector } from "../../vhd/format/layout.ts";
import { SECTOR_BYTES } from "../driver.ts";

/**
 * Where things are in the file of an open dynamic or differencing image, and how it grows.
 *
 * The file always ends with a footer's room that only this code writes: it is given its new length
 * before a guest's data can be near its end. So no guest can leave a footer of its own making where
 * the next one who opens the image looks for it, whenever this process dies.
 */
export class VhdFile {
  readonly image: VhdImage;
  readonly disk: DiskFile;
  readonly bat: Uint32Array;
  /** Blocks known to be full, one bit each: the batmap, and what was learnt since. */
  readonly full: Uint8Array<ArrayBuffer>;
  readonly sectorsPerBlock: number;
  readonly bitmapSectors: number;
  /** The first sector behind all blocks, those that are not published included. */
  #endSector: number;
  #sizeBytes: number;
  #fullChanged = false;
  #grown = false;
  /** Whether any block was added since the image was opened. */
  #allocated = false;

  constructor(image: VhdImage, disk: DiskFile) {
    this.image = image;
    this.disk = disk;
    this.bat = image.bat;
    this.full = new Uint8Array(Math.ceil(image.bat.length / 8));
    if (image.batmap !== null) {
      this.full.set(image.batmap.bits.subarray(0, this.full.length));
    }
    this.sectorsPerBlock = image.sectorsPerBlock;
    this.bitmapSectors = image.bitmapSectors;
    this.#sizeBytes = disk.sizeBytes();
    this.#endSector = endOfDataSector(image);
  }

  /** Whether all of an allocated block's sectors hold data. */
  isFull(block: number): boolean {
    return testBit(this.full, block);
  }

  /** A block's bitmap has become full. */
  noteFull(block: number): void {
    if (this.isFull(block)) return;
    setBit(this.full, block);
    this.#fullChanged = true;
  }

  /** Byte offset at which the footer belongs just now. */
  get footerOffsetBytes(): number {
    // A footer of 511 bytes begins on a sector too: the one that takes its place is a byte longer.
    const lastSector = Math.ceil(this.#sizeBytes / SECTOR_BYTES) - 1;
    return Math.max(this.#endSector, lastSector) * SECTOR_BYTES;
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
   * @throws {SystemError} ENOSPC on a full block device, or whatever the file says.
   */
  growByBlock(): number {
    const { bitmapSectors, sectorsPerBlock } = this;
    const sector = nextBlockSector({ endSector: this.#endSector, bitmapSectors });
    const end = sector + bitmapSectors + sectorsPerBlock;
    const neededBytes = (end + 1) * SECTOR_BYTES;
    if (neededBytes > this.#sizeBytes) {
      if (this.disk.isBlockDevice) {
        throw new SystemError(Errno.ENOSPC, `Cannot add a block to ${this.image.path}`);
      }
      this.disk.truncate(neededBytes);
      this.#sizeBytes = neededBytes;
    }
    this.#endSector = end;
    this.#grown = true;
    this.#allocated = true;
    return sector;
  }

  /**
   * Leaves the image in order: batmap, footer at the end, no room behind the last block that was
   * not taken in the end. Then closes it. Throws `SystemError`.
   */
  finish(): void {
    const { file } = this.image;
    try {
      if (this.#fullChanged) this.#writeBatmap();
      this.#writeEnd();
      file.sync();
    } finally {
      this.image.close();
      this.disk.close();
    }
  }

  #writeBatmap(): void {
    const { batmap, file } = this.image;
    if (batmap === null) return;
    batmap.bits.set(this.full.subarray(0, batmap.bits.length));
    const checksum = batmapChecksum(batmap.bits, batmap.header.batmapVersion);
    file.writeAt(batmap.bits, batmap.offsetBytes);
    file.writeAt(encodeBatmapHeader({ ...batmap.header, checksum }), batmap.headerOffsetBytes);
  }

  #writeEnd(): void {
    const { file, footer } = this.image;
    if (this.#allocated) {
      this.#endSector = endOfDataSector(this.image);
      if (!this.disk.isBlockDevice) {
        this.#sizeBytes = (this.#endSector + 1) * SECTOR_BYTES;
        file.truncate(this.#sizeBytes);
      }
      file.writeAt(encodeFooter(footer), this.footerOffsetBytes);
    } else if (this.image.footerSource !== "primary") {
      file.writeAt(encodeFooter(footer), this.footerOffsetBytes);
    }
  }

  /** Closes an image that was only read. */
  close(): void {
    this.image.close();
    this.disk.close();
  }

  /** Sector at which a block begins in the file, as the BAT on disk has it; -1: not allocated. */
  locationOf(block: number): number {
    const entry = this.bat[block];
    return entry === DD_BLK_UNUSED ? -1 : entry;
  }
}
