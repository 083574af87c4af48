import { openChain, type VhdChain } from "../vhd/image/chain.ts";
import { type ChainExtent, chainExtents } from "../vhd/image/extents.ts";
import type { VhdType } from "../vhd/image/image.ts";
import { readRange } from "../vhd/image/read.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import { finishWriting, writeRange } from "../vhd/write.ts";

/** Options of an open disk. */
export interface OpenDiskOptions {
  /** False by default. Only one process at a time can have an image open for writing. */
  readonly writable?: boolean;
}

/** A range of a disk, in bytes, and the image that it is read from. */
export interface DiskExtent {
  /** Offset of the range on the disk. */
  readonly offsetBytes: number;
  /** Length of the range. */
  readonly lengthBytes: number;
  /** The image that holds the range; null when no image holds it and it reads as zeros. */
  readonly path: string | null;
}

/**
 * The virtual disk of an image and its parents, for a process that serves no disks. Reads and
 * writes are synchronous, one at a time.
 */
export class Disk {
  readonly #chain: VhdChain;
  readonly #writable: boolean;
  #open = true;

  /** Use {@linkcode openDisk}. */
  constructor(chain: VhdChain, writable: boolean) {
    this.#chain = chain;
    this.#writable = writable;
  }

  /** Size of the virtual disk. */
  get sizeBytes(): number {
    return this.#chain.images[0].sizeBytes;
  }

  /** The kind of the disk's own image. */
  get type(): VhdType {
    return this.#chain.images[0].type;
  }

  /** The paths of the images, the disk's own first, then its parent, and so on. */
  get layers(): readonly string[] {
    const paths = this.#chain.images.map(({ path }) => path);
    return this.#chain.raw === null ? paths : [...paths, this.#chain.raw.path];
  }

  /**
   * Reads `into.length` bytes.
   *
   * @throws {SystemError} ERANGE beyond the end of the disk; errors of the file system.
   */
  read(into: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    readRange(this.#chain, into, offsetBytes);
  }

  /**
   * Writes whole sectors of 512 bytes to the disk's own image.
   *
   * @throws {SystemError} EBADF for a disk that is open for reading; ERANGE beyond its end; errors
   * of the file system.
   */
  write(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    writeRange(this.#chain.images[0], from, offsetBytes);
  }

  /** Walks the disk from start to end. Each extent names the image that it is read from. */
  *extents(): Generator<DiskExtent> {
    const { layers } = this;
    for (const extent of chainExtents(this.#chain)) yield inBytes(extent, layers);
  }

  /** Completes the image after writes, syncs it, and closes all files. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    try {
      if (this.#writable) finishWriting(this.#chain.images[0]);
    } finally {
      this.#chain.close();
    }
  }

  /** Closes the disk at the end of a block with a `using` declaration. */
  [Symbol.dispose](): void {
    this.close();
  }
}

function inBytes(
  { sector, lengthSectors, layer }: ChainExtent,
  layers: readonly string[],
): DiskExtent {
  return {
    offsetBytes: sector * VHD_SECTOR_SIZE,
    lengthBytes: lengthSectors * VHD_SECTOR_SIZE,
    path: layer < 0 ? null : layers[layer],
  };
}

/**
 * Opens the virtual disk of a VHD image.
 *
 * @throws {VhdFormatError} for a file that is no VHD or contradicts itself.
 * @throws {VhdChainError} for a missing or wrong parent.
 * @throws {SystemError} for files that cannot be read; EBUSY when another process writes to the
 * image.
 */
export function openDisk(path: string, { writable = false }: OpenDiskOptions = {}): Disk {
  return new Disk(openChain(path, { readOnly: !writable }), writable);
}
