/**
 * The files that the queue moves bytes of, opened and sized synchronously: when an image opens,
 * grows, frees a range or closes.
 *
 * @module
 */
import { Errno, errnoName, SystemError } from "../../ffi/errno.ts";
import {
  blockDeviceSectorBytes,
  closeFile,
  type FileStatus,
  fileStatus,
  O_DIRECT,
  O_RDONLY,
  O_RDWR,
  openFile,
  punchHole,
  readAt,
  seekData,
  seekHole,
  truncateFile,
  tryLockExclusive,
} from "../../ffi/files.ts";
import { Arena, PAGE_BYTES } from "../../ffi/memory.ts";
import { osStorage, type Storage } from "../files/storage.ts";

/** One file, open for the queue. Calls throw `SystemError` unless they say otherwise. */
export interface DiskFile {
  /** Its number in the queue's operations. */
  readonly file: number;
  readonly path: string;
  /** Block devices keep their size. */
  readonly isBlockDevice: boolean;
  /** Why the page cache is in between, although it should not be; null when all is as asked. */
  readonly cachedBecause: string | null;
  sizeBytes(): number;
  truncate(lengthBytes: number): void;
  /** Frees a range, which then reads as zeros; false where that cannot be done. */
  punchHole(offsetBytes: number, lengthBytes: number): boolean;
  /**
   * Length of the run of data (positive) or hole (negative) at an offset, up to `lengthBytes`, and
   * never 0. Does not throw: what cannot be found out counts as data, which is always safe to read.
   */
  allocatedRun(offsetBytes: number, lengthBytes: number): number;
  close(): void;
}

/** How a file is opened for the queue. */
export interface DiskFileOptions {
  readonly readOnly: boolean;
  /** Past the page cache (O_DIRECT), where the filesystem can. */
  readonly direct: boolean;
}

/** Where the queue's files come from. */
export interface DiskFiles {
  /** The same files for the code that reads and writes metadata offline. */
  readonly storage: Storage;
  /**
   * Opens a file; for writing also takes its lock, which the system drops with the process.
   *
   * @throws {SystemError} EBUSY when another process has the file open for writing.
   */
  open(path: string, options: DiskFileOptions): DiskFile;
}

const SECTOR_BYTES = 512;

class OsDiskFile implements DiskFile {
  readonly isBlockDevice: boolean;

  constructor(
    readonly path: string,
    readonly file: number,
    readonly cachedBecause: string | null,
    status: FileStatus,
  ) {
    this.isBlockDevice = status.kind === "block";
  }

  sizeBytes(): number {
    return fileStatus(this.file).sizeBytes;
  }

  truncate(lengthBytes: number): void {
    truncateFile(this.file, lengthBytes);
  }

  punchHole(offsetBytes: number, lengthBytes: number): boolean {
    return punchHole(this.file, offsetBytes, lengthBytes);
  }

  allocatedRun(offsetBytes: number, lengthBytes: number): number {
    if (this.isBlockDevice) return lengthBytes;
    try {
      return runBetween(
        { data: seekData(this.file, offsetBytes), hole: () => seekHole(this.file, offsetBytes) },
        offsetBytes,
        lengthBytes,
      );
    } catch (error) {
      // EIO, ESTALE, or EINVAL from a filesystem without SEEK_DATA.
      if (!(error instanceof SystemError)) throw error;
      return lengthBytes;
    }
  }

  close(): void {
    closeFile(this.file);
  }
}

/**
 * The run at an offset, from what lseek(2) says: where the next data starts (-1: nowhere), and
 * where the next hole does (-1: past the end). The file may change between the two calls, and odd
 * filesystems answer with offsets that lie before the one they were asked about.
 */
export function runBetween(
  { data, hole }: { data: number; hole: () => number },
  offsetBytes: number,
  lengthBytes: number,
): number {
  if (data < 0 || data >= offsetBytes + lengthBytes) return -lengthBytes;
  // A hole ends, and data starts, on a sector, wherever the filesystem says it does.
  const firstSector = Math.floor(data / SECTOR_BYTES) * SECTOR_BYTES;
  if (firstSector > offsetBytes) return offsetBytes - firstSector;
  const start = hole();
  const end = start < 0 ? Infinity : Math.ceil(start / SECTOR_BYTES) * SECTOR_BYTES;
  return end > offsetBytes ? Math.min(lengthBytes, end - offsetBytes) : lengthBytes;
}

/** Why direct I/O in sectors of 512 bytes does not work on an open file; null when it does. */
function directIoFault(fd: number, status: FileStatus): string | null {
  if (status.kind === "block") {
    const sectorBytes = blockDeviceSectorBytes(fd);
    return sectorBytes > SECTOR_BYTES ? `its sectors have ${sectorBytes} bytes` : null;
  }
  if (status.sizeBytes < SECTOR_BYTES) return null;
  const probe = new Arena(PAGE_BYTES);
  try {
    readAt(fd, probe.bytes.subarray(0, SECTOR_BYTES), 0);
    return null;
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno !== Errno.EINVAL) throw error;
    return "the filesystem refuses direct reads of 512 bytes (EINVAL)";
  } finally {
    probe.release();
  }
}

function openDescriptor(
  path: string,
  { readOnly, direct }: DiskFileOptions,
): { fd: number; cachedBecause: string | null } {
  const flags = readOnly ? O_RDONLY : O_RDWR;
  if (!direct) return { fd: openFile(path, flags), cachedBecause: null };
  let fault: string | null;
  try {
    const fd = openFile(path, flags | O_DIRECT);
    fault = directIoFault(fd, fileStatus(fd));
    if (fault === null) return { fd, cachedBecause: null };
    closeFile(fd);
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno !== Errno.EINVAL) throw error;
    fault = "the filesystem refuses O_DIRECT (EINVAL)";
  }
  return { fd: openFile(path, flags), cachedBecause: fault };
}

function takeLock(fd: number, path: string): void {
  let locked: boolean;
  try {
    locked = tryLockExclusive(fd);
  } catch (error) {
    // A filesystem without locks: nothing to hold on to, and nothing to refuse.
    if (
      error instanceof SystemError && [Errno.ENOLCK, Errno.EOPNOTSUPP].some(
        (errno) => errno === error.errno,
      )
    ) return;
    throw error;
  }
  if (!locked) {
    throw new SystemError(
      Errno.EBUSY,
      `Cannot open ${path} for writing: another process serves it (see tap-ctl list)`,
    );
  }
}

/** The operating system's files. */
export const osDiskFiles: DiskFiles = {
  storage: osStorage,

  open(path: string, options: DiskFileOptions): DiskFile {
    const { fd, cachedBecause } = openDescriptor(path, options);
    try {
      const status = fileStatus(fd);
      if (status.kind === "other") {
        throw new SystemError(
          Errno.EINVAL,
          `Cannot serve ${path}: it is neither a file nor a block device`,
        );
      }
      if (!options.readOnly) takeLock(fd, path);
      return new OsDiskFile(path, fd, cachedBecause, status);
    } catch (error) {
      closeFile(fd);
      throw error;
    }
  },
};

/** An error's number, EIO for an error that has none. */
export function errnoOf(error: unknown): number {
  if (error instanceof Error && "errno" in error && typeof error.errno === "number") {
    return error.errno;
  }
  return Errno.EIO;
}

/** An error in one line, for a log. */
export function describeError(error: unknown): string {
  return error instanceof Error ? error.message : `${error} (${errnoName(errnoOf(error))})`;
}
