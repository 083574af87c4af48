import { type Done, Errno, errnoOf, SystemError, systemError } from "../../ffi/errno.ts";
import { Arena, copySectors } from "../../ffi/memory.ts";
import type { DiskFile } from "../queue/disk_files.ts";
import type { IoOwner } from "../queue/disk_queue.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageDriver,
  type ImageQueue,
  type ImageSpec,
  type RequestSink,
  SECTOR_BYTES,
} from "./driver.ts";
import { NAMES_FILE } from "./image_name.ts";

const ZERO_SECTORS = 1 << 17;
/** Operations that an image that is written keeps room for: the sync of its close. */
const CLOSE_OPERATIONS = 1;

/** Raw images: files and block devices whose content is the disk's, byte by byte. */
export const aioDriver: DriverType = {
  type: "aio",
  where: "FILE",
  summary: "A raw file or block device",
  number: 0,
  suffix: ".raw",
  parentAs: "raw",
  named: () => NAMES_FILE,

  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
    const file = context.files.open(spec.path, { ...spec, same: spec.asParent });
    try {
      const sectors = Math.floor(file.sizeBytes() / SECTOR_BYTES);
      const tail = spec.readOnly ? readTail(spec, context, file) : null;
      // As a parent, an empty file reads as zeros.
      if (sectors === 0 && tail === null && spec.asParent === undefined) {
        throw new SystemError(Errno.EINVAL, `Cannot serve ${spec.path}: it holds no whole sector`);
      }
      return new AioImage({ spec, context, sink, file, sectors, tail });
    } catch (error) {
      file.close();
      throw error;
    }
  },
};

/**
 * What a file holds behind its last whole sector, filled up with zeros: a sector of the disk like the
 * others, but one that direct I/O cannot read. Null when there is nothing. A disk that is written has
 * only whole sectors.
 */
function readTail(spec: ImageSpec, { files }: ImageContext, disk: DiskFile): Arena | null {
  const sizeBytes = disk.sizeBytes();
  const lengthBytes = sizeBytes % SECTOR_BYTES;
  if (lengthBytes === 0) return null;
  const tail = new Arena(SECTOR_BYTES);
  try {
    const file = files.storage.open(spec.path, "read", { same: disk.identity });
    try {
      file.readAt(tail.bytes.subarray(0, lengthBytes), sizeBytes - lengthBytes);
    } finally {
      file.close();
    }
    return tail;
  } catch (error) {
    tail.release();
    throw error;
  }
}

/**
 * Makes an image's file known to the queue. Says so in the log when it goes through the page cache, and
 * when its lock does not keep out all others.
 */
export function registerFile(
  file: Pick<DiskFile, "file" | "path" | "cachedBecause" | "weakLock">,
  { direct }: Pick<ImageSpec, "direct">,
  { queue, faults, log }:
    & { readonly queue: Pick<ImageQueue, "register"> }
    & Pick<ImageContext, "faults" | "log">,
): void {
  queue.register(file.file, faults, direct && file.cachedBecause === null);
  if (file.cachedBecause !== null) {
    log(`${file.path} goes through the page cache: ${file.cachedBecause}`);
  }
  if (file.weakLock !== null) log(`${file.path} is open for writing ${file.weakLock}`);
}

/** A disk that lies at the start of a file in one piece: a raw image, or a fixed VHD. */
export class AioImage implements ImageDriver, IoOwner {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly parent = null;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: DiskFile;
  /** Sectors that are whole in the file. */
  readonly #wholeSectors: number;
  /** The sector behind them, if there is one. */
  readonly #tail: Arena | null;
  #canPunch = true;
  #isOpen = true;

  /** Throws `SystemError` EBUSY when the process serves too many images. */
  constructor(
    { spec, context, sink, file, sectors, tail = null }: {
      spec: ImageSpec;
      context: ImageContext;
      sink: RequestSink;
      file: DiskFile;
      /** Sectors that are whole in the file. */
      sectors: number;
      /** One more sector, which the file has in part. Only for an image that is read. */
      tail?: Arena | null;
    },
  ) {
    if (!spec.readOnly && !context.queue.reserve(CLOSE_OPERATIONS)) {
      throw new SystemError(
        Errno.EBUSY,
        `Cannot serve ${spec.path}: this tapdisk serves too many images (start another)`,
      );
    }
    this.spec = spec;
    this.sectors = sectors + (tail === null ? 0 : 1);
    this.#wholeSectors = sectors;
    this.#tail = tail;
    this.#context = context;
    this.#sink = sink;
    this.#file = file;
    registerFile(file, spec, context);
  }

  get file(): number {
    return this.#file.file;
  }

  get zeroSectors(): number {
    return this.#canPunch ? ZERO_SECTORS : this.#context.zeros.sectors;
  }

  get fillSectors(): number {
    return this.#context.zeros.sectors;
  }

  operationsFor(sectors: number): number {
    return Math.max(1, Math.ceil(sectors / this.#context.zeros.sectors));
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    const { queue } = this.#context;
    this.counts.readSectors += count;
    if (this.#tail === null || sector + count <= this.#wholeSectors) {
      return queue.read(this.#file.file, sector, count, memorySector, this, slot);
    }
    const whole = count - 1;
    if (whole > 0) queue.read(this.#file.file, sector, whole, memorySector, this, slot);
    copySectors(memorySector + whole, this.#tail.sector, 1);
    this.#sink.pieceDone(slot, 1, 0);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    const { queue } = this.#context;
    this.counts.writtenSectors += count;
    queue.write(this.#file.file, sector, count, memorySector, this, slot);
  }

  zero(slot: number, sector: number, count: number): void {
    if (this.#canPunch) {
      const errno = this.#punch(sector, count);
      if (errno !== Errno.EOPNOTSUPP) return this.#sink.pieceDone(slot, count, errno);
      this.#canPunch = false;
    }
    this.fill(slot, sector, count);
  }

  fill(slot: number, sector: number, count: number): void {
    const { at, sectors: most } = this.#context.zeros;
    for (let done = 0; done < count; done += most) {
      this.write(slot, sector + done, Math.min(most, count - done), at);
    }
  }

  discard(slot: number, sector: number, count: number): void {
    const errno = this.#canPunch ? this.#punch(sector, count) : 0;
    this.#sink.pieceDone(slot, count, errno === Errno.EOPNOTSUPP ? 0 : errno);
  }

  #punch(sector: number, count: number): number {
    try {
      const done = this.#file.punchHole(sector * SECTOR_BYTES, count * SECTOR_BYTES);
      return done ? 0 : Errno.EOPNOTSUPP;
    } catch (error) {
      return errnoOf(error);
    }
  }

  flush(slot: number): void {
    this.#context.queue.sync(this.#file.file, this, slot);
  }

  status(slot: number, sector: number, count: number): void {
    for (let wanted = true; wanted && count > 0;) {
      const bytes = this.#file.allocatedRun(sector * SECTOR_BYTES, count * SECTOR_BYTES);
      const run = bytes / SECTOR_BYTES;
      const sectors = Math.abs(run);
      wanted = this.#sink.extent(slot, sectors, run > 0);
      sector += sectors;
      count -= sectors;
    }
    this.#sink.statusDone(slot, 0);
  }

  ioDone(slot: number, sectors: number, errno: number): void {
    this.#sink.pieceDone(slot, sectors === 0 ? 1 : sectors, errno);
  }

  /**
   * Syncs what was written, and closes. The image may get a child next, and a flush of the child
   * does not sync the files below it. It is synced even if nothing was written since it was opened:
   * the sync of the close before may have failed, or the process before was killed.
   */
  close(done: Done): void {
    if (this.spec.readOnly) return this.#close(0, done);
    const owner: IoOwner = { ioDone: (_token, _sectors, errno) => this.#close(errno, done) };
    this.#context.queue.sync(this.#file.file, owner, 0);
  }

  #close(errno: number, done: Done): void {
    const doing = `Cannot close ${this.spec.path}`;
    try {
      this.abandon();
    } catch (error) {
      return done(systemError(error, doing));
    }
    done(errno === 0 ? null : new SystemError(errno, doing));
  }

  abandon(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    if (!this.spec.readOnly) this.#context.queue.release(CLOSE_OPERATIONS);
    this.#tail?.release();
    this.#file.close();
  }
}
