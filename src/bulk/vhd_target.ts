import type { DiskFile } from "../queue/disk_files.ts";
import type { DiskQueue } from "../queue/disk_queue.ts";
import { allSet, setBits } from "../vhd/format/bitmap.ts";
import { blockEnd } from "../vhd/format/layout.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import { growTo, placeOfNewBlock, startGrowth } from "../vhd/image/allocation.ts";
import { noteFull } from "../vhd/image/batmap_writer.ts";
import { bitmapOffset, dataOffset, isAllocated } from "../vhd/image/block.ts";
import type { VhdImage } from "../vhd/image/image.ts";
import { BatWriter } from "./bat_writer.ts";
import { GroupSync } from "./group_sync.ts";
import { isEncrypted } from "./layers.ts";
import { type Target, writeRuns } from "./target.ts";
import type { Unit } from "./unit.ts";

/** Options of a target. */
export interface VhdTargetOptions {
  /** Leave out blocks of zeros when the target has no parent that would show through. */
  readonly sparse: boolean;
}

/**
 * A dynamic or differencing VHD.
 *
 * Order on disk: a new block's data and bitmap are durable before the BAT points at it. In an
 * allocated block, data is durable before its bits are written to the bitmap. A new block overwrites the old
 * footer, so the file is first extended, with a footer at its new end (see `growTo`).
 */
export class VhdTarget implements Target {
  readonly unitSectors: number;
  readonly sizeSectors: number;
  readonly bitmapBytes: number;
  readonly #image: VhdImage;
  readonly #disk: DiskFile;
  readonly #sparse: boolean;
  /**
   * Whether a block that is not allocated reads as zeros, so that a block of zeros need not be
   * written.
   */
  readonly #zerosShow: boolean;
  readonly #batWriter: BatWriter;
  readonly #dataSync: GroupSync;
  #grown = false;

  constructor(
    image: VhdImage,
    { disk, queue, options }: { disk: DiskFile; queue: DiskQueue; options: VhdTargetOptions },
  ) {
    this.#image = image;
    this.#disk = disk;
    this.#sparse = options.sparse;
    this.#zerosShow = image.parent === null && !isEncrypted(image);
    this.unitSectors = image.sectorsPerBlock;
    this.sizeSectors = image.sizeBytes / VHD_SECTOR_SIZE;
    this.bitmapBytes = image.bitmapSectors * VHD_SECTOR_SIZE;
    this.#batWriter = new BatWriter(image, { disk, queue });
    this.#dataSync = new GroupSync(disk, queue);
  }

  #blockOf(unit: Unit): number {
    return unit.sector / this.unitSectors;
  }

  prepare(unit: Unit): void {
    const block = this.#blockOf(unit);
    const image = this.#image;
    if (!isAllocated(image, block)) return;
    unit.read(this.#disk.file, bitmapOffset(image, block), this.bitmapBytes, unit.bitmapAddress);
  }

  write(unit: Unit, done: (errno: number) => void): void {
    const block = this.#blockOf(unit);
    if (isAllocated(this.#image, block)) return this.#overwrite(unit, block, done);
    if (this.#sparse && this.#zerosShow && unit.isZero()) return done(0);
    this.#writeNew(unit, block, done);
  }

  #overwrite(unit: Unit, block: number, done: (errno: number) => void): void {
    const image = this.#image;
    unit.phase(() => writeRuns(unit, this.#disk.file, dataOffset(image, block)), (errno) => {
      if (errno !== 0) return done(errno);
      if (allSet(unit.bitmap, this.unitSectors)) return done(0);
      this.#dataSync.wait((syncErrno) => {
        if (syncErrno !== 0) return done(syncErrno);
        this.#showNew(unit, block, done);
      });
    });
  }

  /** Writes the bitmap of an allocated block with the bits of data that is durable. */
  #showNew(unit: Unit, block: number, done: (errno: number) => void): void {
    const image = this.#image;
    this.#addBits(unit);
    const offset = bitmapOffset(image, block);
    unit.phase(
      () => unit.write(this.#disk.file, offset, this.bitmapBytes, unit.bitmapAddress),
      (errno) => {
        if (errno === 0) noteFull(image, block, allSet(unit.bitmap, this.unitSectors));
        done(errno);
      },
    );
  }

  #addBits(unit: Unit): void {
    unit.eachRun((from, end) => setBits(unit.bitmap, from, end - from));
  }

  #writeNew(unit: Unit, block: number, done: (errno: number) => void): void {
    const sector = this.#grow(block);
    unit.bitmap.fill(0);
    this.#addBits(unit);
    const full = allSet(unit.bitmap, this.unitSectors);
    // A file reads as zeros where nothing was written; a device may hold any old content.
    const whole = full || this.#disk.isBlockDevice;
    unit.phase(() => {
      const offset = sector * VHD_SECTOR_SIZE;
      if (whole) {
        // The disk may end within its last block.
        if (!full) unit.zeroRest();
        const lengthBytes = this.bitmapBytes + (unit.end - unit.sector) * VHD_SECTOR_SIZE;
        unit.write(this.#disk.file, offset, lengthBytes, unit.bitmapAddress);
      } else {
        unit.write(this.#disk.file, offset, this.bitmapBytes, unit.bitmapAddress);
        writeRuns(unit, this.#disk.file, offset + this.bitmapBytes);
      }
    }, (errno) => {
      if (errno === 0) this.#batWriter.add(block, sector, full);
      done(errno);
    });
  }

  /** Finds the place of a new block and extends the file for it. */
  #grow(block: number): number {
    const image = this.#image;
    if (!this.#grown) startGrowth(image);
    this.#grown = true;
    const sector = placeOfNewBlock(image, block);
    growTo(image, blockEnd(image, sector));
    return sector;
  }

  finish(done: (errno: number) => void): void {
    this.#batWriter.finish(done);
  }

  release(): void {
    this.#batWriter.release();
  }
}
