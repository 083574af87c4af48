import { Errno, messageOf, SystemError } from "../../ffi/errno.ts";
import type { Done } from "../../ffi/errno.ts";
import {
  bitmapBytes,
  CBT_BLOCK_BYTES,
  CBT_HEADER_BYTES,
  decodeCbtHeader,
  setChanged,
} from "../cbt/cbt_log.ts";
import type { DiskFiles, SharedBytes } from "../queue/disk_files.ts";
import { type ImageDriver, SECTOR_BYTES } from "./driver.ts";
import { FilterImage } from "./filter.ts";

const BLOCK_SECTORS = CBT_BLOCK_BYTES / SECTOR_BYTES;

/**
 * A filter that marks changed blocks in a log (`src/cbt`), which it has mapped. A bit is set before
 * the write goes on: when the process dies, no written block lacks its bit. After a power cut it may;
 * a program that opens a disk therefore marks the log as incomplete first, as XenServer does.
 */
export class CbtImage extends FilterImage {
  readonly #log: SharedBytes;
  /** A bit for each block of 64 KiB, the least significant of a byte first. */
  readonly bits: Uint8Array;

  /**
   * Stands in front of an open image.
   *
   * @throws {SystemError} EPERM, as the original has it, for a log that cannot be used.
   */
  constructor(logPath: string, below: ImageDriver, files: DiskFiles) {
    // The original's name of this layer in statistics.
    super({ ...below.spec, type: "log", path: logPath }, below.spec);
    this.putBelow(below);
    this.#log = openLog(logPath, below.sectors, files);
    this.bits = this.#log.bytes.subarray(CBT_HEADER_BYTES);
  }

  #mark(sector: number, count: number): void {
    const first = Math.floor(sector / BLOCK_SECTORS);
    setChanged(this.bits, first, Math.floor((sector + count - 1) / BLOCK_SECTORS));
  }

  override write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#mark(sector, count);
    this.below.write(slot, sector, count, memorySector);
  }

  override zero(slot: number, sector: number, count: number): void {
    this.#mark(sector, count);
    this.below.zero(slot, sector, count);
  }

  override fill(slot: number, sector: number, count: number): void {
    this.#mark(sector, count);
    this.below.fill(slot, sector, count);
  }

  override discard(slot: number, sector: number, count: number): void {
    this.#mark(sector, count);
    this.below.discard(slot, sector, count);
  }

  override close(done: Done): void {
    this.#log.close();
    done(null);
  }

  override abandon(): void {
    this.#log.close();
  }
}

function openLog(path: string, sectors: number, files: DiskFiles): SharedBytes {
  const diskBytes = sectors * SECTOR_BYTES;
  const lengthBytes = CBT_HEADER_BYTES + bitmapBytes(diskBytes);
  let log: SharedBytes | null = null;
  try {
    log = files.map(path, lengthBytes);
    const { sizeBytes } = decodeCbtHeader(log.bytes, path);
    if (sizeBytes === diskBytes) return log;
    const sizes = `it is for a disk of ${sizeBytes} bytes; this one has ${diskBytes}`;
    throw new SystemError(Errno.EINVAL, `Cannot use ${path}: ${sizes}`);
  } catch (cause) {
    log?.close();
    const message = `Cannot track changed blocks: ${messageOf(cause)}`;
    throw new SystemError(Errno.EPERM, message, { message, cause });
  }
}
