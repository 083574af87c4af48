import { assert } from "../../ffi/assert.ts";
import { writeNewImage } from "../files/new_file.ts";
import { type FileIdentity, osStorage, type Storage, type StorageFile } from "../files/storage.ts";
import { validateSize, writeSparseImage, writeZeros } from "./create.ts";
import { allSet, setBits } from "./format/bitmap.ts";
import { blockEnd } from "./format/layout.ts";
import { VHD_SECTOR_SIZE } from "./format/units.ts";
import { placeOfNewBlock } from "./image/allocation.ts";
import { noteFull, writeBatmap } from "./image/batmap_writer.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { writeBat, writeFooters } from "./write.ts";

/** Options of an image that is written from start to end. */
export interface SequentialVhdOptions {
  /** Size of the virtual disk, bytes. */
  readonly sizeBytes: number;
  readonly storage?: Storage;
  /** The file that the caller has made under this name. */
  readonly same?: FileIdentity;
}

/**
 * A new dynamic image that is written once, from the start of the disk to its end, and not read
 * before `finish`. The BAT and the batmap are in memory until then, and so is the bitmap of one block.
 *
 * Writes have no order on disk: before the end of `finish` the image is not whole. Then it is durable.
 */
export class SequentialVhd {
  readonly #image: VhdImage;
  readonly #bitmap: Uint8Array<ArrayBuffer>;
  /** The block that came last, and the sector of the file at which it begins; -1: none. */
  #block = -1;
  #place = 0;

  /** @throws {SystemError} EINVAL for a size that a VHD cannot have; errors of the file system. */
  constructor(path: string, { sizeBytes, storage = osStorage, same }: SequentialVhdOptions) {
    validateSize(path, sizeBytes);
    writeNewImage(
      storage,
      { path, same },
      (file) => writeSparseImage(file, { sizeBytes, maxBytes: sizeBytes }),
    );
    this.#image = openVhd(path, { storage, readOnly: false });
    const { file, endOfDataSector, bitmapSectors } = this.#image;
    // The first block goes where the footer is.
    if (!file.isBlockDevice) file.truncate(endOfDataSector * VHD_SECTOR_SIZE);
    this.#bitmap = new Uint8Array(bitmapSectors * VHD_SECTOR_SIZE);
  }

  /** The file that the image is written to. */
  get file(): StorageFile {
    return this.#image.file;
  }

  /**
   * Writes whole sectors. What is not written reads as zeros.
   *
   * @param offsetBytes On the disk, behind what was written before.
   * @param put Writes part of the bytes to a place of the file, before `finish`.
   * @throws {SystemError} EFBIG, or ENOSPC on a device, for a block without room; errors of the file system.
   */
  write(
    bytes: Uint8Array<ArrayBuffer>,
    offsetBytes: number,
    put: (part: Uint8Array<ArrayBuffer>, at: number) => void = (part, at) =>
      this.file.writeAt(part, at),
  ): void {
    const { blockSizeBytes, bitmapSectors } = this.#image;
    for (let at = 0; at < bytes.length;) {
      const inBlock = (offsetBytes + at) % blockSizeBytes;
      const part = bytes.subarray(at, at + blockSizeBytes - inBlock);
      this.#begin((offsetBytes + at - inBlock) / blockSizeBytes);
      put(part, (this.#place + bitmapSectors) * VHD_SECTOR_SIZE + inBlock);
      setBits(this.#bitmap, inBlock / VHD_SECTOR_SIZE, part.length / VHD_SECTOR_SIZE);
      at += part.length;
    }
  }

  #begin(block: number): void {
    if (block === this.#block) return;
    assert(block > this.#block, "Blocks come in their order");
    this.#endBlock();
    const image = this.#image;
    this.#block = block;
    this.#place = placeOfNewBlock(image, block);
    image.endOfDataSector = blockEnd(image, this.#place);
    // What a device held there would show to readers that do not look at bitmaps.
    const dataAt = (this.#place + image.bitmapSectors) * VHD_SECTOR_SIZE;
    if (image.file.isBlockDevice) writeZeros(image.file, dataAt, image.blockSizeBytes);
  }

  #endBlock(): void {
    if (this.#block < 0) return;
    const image = this.#image;
    image.file.writeAt(this.#bitmap, this.#place * VHD_SECTOR_SIZE);
    image.bat[this.#block] = this.#place;
    noteFull(image, this.#block, allSet(this.#bitmap, image.sectorsPerBlock));
    this.#bitmap.fill(0);
  }

  /**
   * Writes all tables and makes the image durable. The image is closed, also when that fails.
   *
   * @throws {SystemError} Errors of the file system.
   */
  finish(): void {
    const image = this.#image;
    try {
      this.#endBlock();
      writeBat(image);
      if (image.batmap?.dirty) writeBatmap(image);
      writeFooters(image);
      image.file.sync();
    } finally {
      image.close();
    }
  }

  /** Closes an image that is not whole. */
  abandon(): void {
    this.#image.close();
  }
}
