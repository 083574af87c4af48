import { assert } from "../../ffi/assert.ts";
import { type Done, Errno, messageOf, SystemError } from "../../ffi/errno.ts";
import { CBT_BLOCK_BYTES, CBT_HEADER_BYTES, changedByte } from "../cbt/cbt_log.ts";
import { cbtHeaderOf, cbtLogOf } from "../cbt/log_file.ts";
import type { CachedFile } from "../queue/disk_files.ts";
import type { IoOwner } from "../queue/disk_queue.ts";
import { type ImageContext, type ImageDriver, type RequestSink, SECTOR_BYTES } from "./driver.ts";
import { FilterImage } from "./filter.ts";

const BLOCK_SECTORS = CBT_BLOCK_BYTES / SECTOR_BYTES;
/** Operations that a log keeps room for: the sync of its close. */
const CLOSE_OPERATIONS = 1;
const NO_BITS = new Uint8Array(0);
/** The most bytes of the log in one write, except those of its close. */
const MARK_BYTES = 4096;

/**
 * The bits of a log whose close failed, and that could not be written again either: they may be nowhere
 * else until a later close ends well. The device runs on after such a close.
 */
class UnwrittenBits {
  bits: Uint8Array = NO_BITS;

  get isEmpty(): boolean {
    return this.bits.every((byte) => byte === 0);
  }

  release(): void {}
}

/**
 * A filter that marks changed blocks in a log (`src/cbt`). It keeps the bits in memory of its own. A
 * byte with a new bit is written to the log's pages in the page cache before the write goes on: when
 * the process dies, no written block lacks its bit. After a power cut it may; a program that opens a
 * disk therefore marks the log as incomplete first, as XenServer does. If the bit cannot be written, the
 * request ends with that error, the bit is not set, and nothing goes to the image.
 *
 * The log is synced when it is closed, before the end of the close is told: the program then marks it as
 * complete.
 */
export class CbtImage extends FilterImage {
  readonly #log: CachedFile;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #unwritten: UnwrittenBits;
  /** What is being written to the log. */
  readonly #marked = new Uint8Array(MARK_BYTES);
  #isOpen = true;
  #bits: Uint8Array<ArrayBuffer>;

  /**
   * Stands in front of an open image.
   *
   * @throws {SystemError} EPERM, as the original has it, for a log that cannot be used.
   */
  constructor(logPath: string, below: ImageDriver, context: ImageContext, sink: RequestSink) {
    // The original's name of this layer in statistics.
    super({ ...below.spec, type: "log", path: logPath }, below.spec);
    this.putBelow(below);
    this.#context = context;
    this.#sink = sink;
    const made = { kind: UnwrittenBits, make: () => new UnwrittenBits() };
    this.#unwritten = context.retained.take(`the log of changed blocks ${logPath}`, made);
    const { log, bits } = openLog(logPath, context, {
      diskBytes: below.sectors * SECTOR_BYTES,
      unwritten: this.#unwritten.bits,
    });
    this.#log = log;
    this.#bits = bits;
  }

  /** A bit for each block of 64 KiB, the least significant of a byte first; none once it is closed. */
  get bits(): Uint8Array {
    return this.#bits;
  }

  /** The log's file, which the device waits for when it has failed. */
  get file(): number {
    return this.#log.file;
  }

  /** Sets the bits of sectors. Where one cannot be written, it ends the request and returns false. */
  #mark(slot: number, sector: number, count: number): boolean {
    assert(this.#isOpen, "A change reaches a log of changed blocks that is closed");
    const first = Math.floor(sector / BLOCK_SECTORS);
    const last = Math.floor((sector + count - 1) / BLOCK_SECTORS);
    const errno = this.#setBits(first, last);
    if (errno !== 0) this.#sink.pieceDone(slot, count, errno);
    return errno === 0;
  }

  /** Sets the bits of blocks, first in the log and then in memory. Returns 0 or an error number. */
  #setBits(first: number, last: number): number {
    const end = (last >>> 3) + 1;
    for (let at = first >>> 3; at < end;) {
      if (changedByte(this.#bits, at, first, last) === this.#bits[at]) {
        at++;
        continue;
      }
      const length = this.#stage(at, first, last);
      const errno = this.#log.write(this.#marked, length, CBT_HEADER_BYTES + at);
      if (errno !== 0) return errno;
      for (let i = 0; i < length; i++) this.#bits[at + i] = this.#marked[i];
      at += length;
    }
    return 0;
  }

  /** Prepares bytes for the log, up to the last one with a new bit. Returns their number. */
  #stage(at: number, first: number, last: number): number {
    const most = Math.min(MARK_BYTES, (last >>> 3) + 1 - at);
    let length = 0;
    for (let i = 0; i < most; i++) {
      const byte = changedByte(this.#bits, at + i, first, last);
      this.#marked[i] = byte;
      if (byte !== this.#bits[at + i]) length = i + 1;
    }
    return length;
  }

  override write(slot: number, sector: number, count: number, memorySector: number): void {
    if (this.#mark(slot, sector, count)) this.below.write(slot, sector, count, memorySector);
  }

  override zero(slot: number, sector: number, count: number): void {
    if (this.#mark(slot, sector, count)) this.below.zero(slot, sector, count);
  }

  override fill(slot: number, sector: number, count: number): void {
    if (this.#mark(slot, sector, count)) this.below.fill(slot, sector, count);
  }

  override discard(slot: number, sector: number, count: number): void {
    if (this.#mark(slot, sector, count)) this.below.discard(slot, sector, count);
  }

  /** Writes all bits: the log may have been cut, and the kernel takes pages of a failed sync for clean. */
  #writeAll(): number {
    return this.#log.write(this.#bits, this.#bits.length, CBT_HEADER_BYTES);
  }

  /** Writes and syncs the log, even if no bit was set: the sync of a close before may have failed. */
  override close(done: Done): void {
    const end = (errno: number, what: string): void => {
      this.abandon();
      done(errno === 0 ? null : new SystemError(errno, `Cannot ${what} ${this.spec.path}`));
    };
    const writeErrno = this.#writeAll();
    if (writeErrno !== 0) {
      this.#unwritten.bits = this.#bits;
      return end(writeErrno, "write");
    }
    const owner: IoOwner = {
      ioDone: (_token, _sectors, errno): void => {
        // The kernel may drop pages that it takes for clean. The device reads the bits when it runs on.
        const isLost = errno !== 0 && this.#writeAll() !== 0;
        this.#unwritten.bits = isLost ? this.#bits : NO_BITS;
        end(errno, "sync");
      },
    };
    this.#context.queue.sync(this.#log.file, owner, 0);
  }

  override abandon(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#bits = NO_BITS;
    this.#context.queue.release(CLOSE_OPERATIONS);
    this.#log.close();
  }
}

function openLog(
  path: string,
  context: ImageContext,
  { diskBytes, unwritten }: { readonly diskBytes: number; readonly unwritten: Uint8Array },
): { readonly log: CachedFile; readonly bits: Uint8Array<ArrayBuffer> } {
  const { files, queue, faults } = context;
  let log: CachedFile | null = null;
  try {
    log = files.openCached(path);
    const bits = readBits(log, diskBytes);
    if (unwritten.length > 0) addBits(log, bits, unwritten);
    if (!queue.reserve(CLOSE_OPERATIONS)) {
      const why = "this tapdisk serves too many images (start another)";
      throw new SystemError(Errno.EBUSY, `Cannot use ${path}: ${why}`);
    }
    queue.register(log.file, faults);
    return { log, bits };
  } catch (cause) {
    log?.close();
    const what = `Cannot track changed blocks (${messageOf(cause)})`;
    throw new SystemError(Errno.EPERM, what, { cause });
  }
}

/** Reads the bits of a log, and gives it room. What is not the disk's log stays as it is. */
function readBits(log: CachedFile, diskBytes: number): Uint8Array<ArrayBuffer> {
  const { sizeBytes } = cbtHeaderOf(log);
  if (sizeBytes !== diskBytes) {
    const sizes = `it is for a disk of ${sizeBytes} bytes; this one has ${diskBytes}`;
    throw new SystemError(Errno.EINVAL, `Cannot use ${log.path}: ${sizes}`);
  }
  const { bits } = cbtLogOf(log);
  log.allocate(CBT_HEADER_BYTES + bits.length);
  return bits;
}

/** Adds bits of the same disk, in memory and in the log. */
function addBits(log: CachedFile, bits: Uint8Array<ArrayBuffer>, added: Uint8Array): void {
  for (let at = 0; at < Math.min(bits.length, added.length); at++) bits[at] |= added[at];
  const errno = log.write(bits, bits.length, CBT_HEADER_BYTES);
  if (errno !== 0) throw new SystemError(errno, `Cannot write ${log.path}`);
}
