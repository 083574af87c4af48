import { assert } from "../../ffi/assert.ts";
import { type Done, Errno, messageOf, SystemError } from "../../ffi/errno.ts";
import {
  bitmapBytes,
  CBT_BLOCK_BYTES,
  CBT_HEADER_BYTES,
  type CbtHeader,
  decodeCbtHeader,
  setChanged,
} from "../cbt/cbt_log.ts";
import { readCbtHeader } from "../cbt/log_file.ts";
import type { SharedBytes } from "../queue/disk_files.ts";
import type { IoOwner } from "../queue/disk_queue.ts";
import { type ImageContext, type ImageDriver, SECTOR_BYTES } from "./driver.ts";
import { FilterImage } from "./filter.ts";

const BLOCK_SECTORS = CBT_BLOCK_BYTES / SECTOR_BYTES;
/** Operations that a log keeps room for: the sync of its close. */
const CLOSE_OPERATIONS = 1;
const NO_BITS = new Uint8Array(0);

/**
 * A filter that marks changed blocks in a log (`src/cbt`), which it has mapped. A bit is set before
 * the write goes on: when the process dies, no written block lacks its bit. After a power cut it may;
 * a program that opens a disk therefore marks the log as incomplete first, as XenServer does. The log
 * is synced when it is closed, before the end of the close is told: the program then marks it as
 * complete.
 */
export class CbtImage extends FilterImage {
  readonly #log: SharedBytes;
  readonly #context: ImageContext;
  #isOpen = true;
  /** A bit for each block of 64 KiB, the least significant of a byte first; none once it is closed. */
  bits: Uint8Array;

  /**
   * Stands in front of an open image.
   *
   * @throws {SystemError} EPERM, as the original has it, for a log that cannot be used.
   */
  constructor(logPath: string, below: ImageDriver, context: ImageContext) {
    // The original's name of this layer in statistics.
    super({ ...below.spec, type: "log", path: logPath }, below.spec);
    this.putBelow(below);
    this.#context = context;
    this.#log = openLog(logPath, below.sectors, context);
    this.bits = this.#log.bytes.subarray(CBT_HEADER_BYTES);
  }

  /** The log's file, which the device waits for when it has failed. */
  get file(): number {
    return this.#log.file;
  }

  #mark(sector: number, count: number): void {
    assert(this.#isOpen, "A change reaches a log of changed blocks that is closed");
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

  /** Syncs the log, even if no bit was set: the sync of a close before may have failed. */
  override close(done: Done): void {
    const owner: IoOwner = {
      ioDone: (_token, _sectors, errno): void => {
        // The kernel takes pages for written after an error. The next sync has to write them again.
        if (errno !== 0) this.#log.rewrite(CBT_HEADER_BYTES);
        this.abandon();
        done(errno === 0 ? null : new SystemError(errno, `Cannot sync ${this.spec.path}`));
      },
    };
    this.#context.queue.sync(this.#log.file, owner, 0);
  }

  override abandon(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.bits = NO_BITS;
    this.#context.queue.release(CLOSE_OPERATIONS);
    this.#log.close();
  }
}

function checkSize({ sizeBytes }: CbtHeader, path: string, diskBytes: number): void {
  if (sizeBytes === diskBytes) return;
  const sizes = `it is for a disk of ${sizeBytes} bytes; this one has ${diskBytes}`;
  throw new SystemError(Errno.EINVAL, `Cannot use ${path}: ${sizes}`);
}

function openLog(path: string, sectors: number, context: ImageContext): SharedBytes {
  const diskBytes = sectors * SECTOR_BYTES;
  const lengthBytes = CBT_HEADER_BYTES + bitmapBytes(diskBytes);
  const { files, queue, faults } = context;
  let log: SharedBytes | null = null;
  try {
    // A mapping gives the file room, and changes its times: what is not the disk's log stays as it is.
    checkSize(readCbtHeader(path, files), path, diskBytes);
    log = files.map(path, lengthBytes);
    checkSize(decodeCbtHeader(log.bytes, path), path, diskBytes);
    if (!queue.reserve(CLOSE_OPERATIONS)) {
      const why = "this tapdisk serves too many images (start another)";
      throw new SystemError(Errno.EBUSY, `Cannot use ${path}: ${why}`);
    }
    queue.register(log.file, faults);
    return log;
  } catch (cause) {
    log?.close();
    const what = `Cannot track changed blocks (${messageOf(cause)})`;
    throw new SystemError(Errno.EPERM, what, { cause });
  }
}
