/**
 * The files that the queue moves bytes of, opened and sized synchronously: when an image opens,
 * grows, frees a range or closes.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  allocateRange,
  blockDeviceSectorBytes,
  closeFile,
  type FileIdentity,
  type FileStatus,
  fileStatus,
  punchHole,
  readAt,
  truncateFile,
  writeLow,
} from "../../ffi/files.ts";
import type { LastKnown } from "../../ffi/file_handle.ts";
import { Arena, PAGE_BYTES } from "../../ffi/memory.ts";
import { type OpenedFile, openToRead, openToWrite } from "../files/open_file.ts";
import { lockAhead, type WithLock } from "../files/locks_ahead.ts";
import { allocatedRun } from "../files/runs.ts";
import {
  type FileNote,
  knownOf,
  noteFile,
  openByName,
  placeOf,
  whyNotSame,
} from "../files/same_file.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { osStorage, type Storage } from "../files/storage.ts";

/** When a file was last heard of. */
export interface HeardOf {
  /** When an operation on it last succeeded, milliseconds. */
  readonly heardMs: number;
  /** Whether it may have been changed since then. */
  readonly mayHaveChanged: boolean;
}

/** One file, open for the queue. Calls throw `SystemError` unless they say otherwise. */
export interface DiskFile {
  /** Its number in the queue's operations. */
  readonly file: number;
  readonly path: string;
  /** Block devices keep their size. */
  readonly isBlockDevice: boolean;
  readonly identity: FileIdentity;
  /** Differs from that of any other file: device, inode, and handle if there is one. */
  readonly mark: string;
  /** Why the page cache is in between, although it should not be; null when all is as asked. */
  readonly cachedBecause: string | null;
  /** Whom its lock does not keep from writing, and why, as the end of a sentence about it; null: it keeps out all. */
  readonly weakLock: string | null;
  sizeBytes(): number;
  truncate(lengthBytes: number): void;
  /** Frees a range, which then reads as zeros; false where that cannot be done. */
  punchHole(offsetBytes: number, lengthBytes: number): boolean;
  /**
   * Length of the run of data (positive) or hole (negative) at an offset, up to `lengthBytes`, and
   * never 0. Does not throw: what cannot be found out counts as data, which is always safe to read.
   */
  allocatedRun(offsetBytes: number, lengthBytes: number): number;
  /**
   * Tells why the file that `path` leads to now is not provably this one, as the end of a sentence about it;
   * null when it is. Opens that file for a moment, in a later turn.
   */
  findAgain(
    scheduler: Pick<Scheduler, "settle">,
    heard: HeardOf,
    found: (why: string | null) => void,
  ): void;
  /** Throws an `AssertionError` when its descriptor is closed, or that of another file. */
  requireOwn(): void;
  close(): void;
}

/** A file that goes through the page cache, of which parts are read and written synchronously. */
export interface CachedFile extends DiskFile {
  /** Reads until `into` is full or the file ends; returns the bytes read. */
  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number;
  /** Gives the start of a regular file room, where the file system can. Throws ENOSPC. */
  allocate(lengthBytes: number): void;
  /**
   * Writes the first bytes of `from` to the page cache, at an offset below 4 GiB. They are seen at once
   * by all who read the file, outlast the death of the process, and are durable after a sync. Allocates
   * nothing and does not throw.
   *
   * @returns 0, or an error number; part of it may have been written then.
   */
  write(from: Uint8Array<ArrayBuffer>, lengthBytes: number, offsetBytes: number): number;
}

/** How a file is opened for the queue. */
export interface DiskFileOptions {
  readonly readOnly: boolean;
  /** Past the page cache (O_DIRECT), where the filesystem can. */
  readonly direct: boolean;
  /** It must be this file, which was looked at before (ESTALE). */
  readonly same?: FileIdentity;
}

/** Where the queue's files come from. */
export interface DiskFiles {
  /** The same files for the code that reads and writes metadata offline. */
  readonly storage: Storage;
  /**
   * Opens a file; for writing also takes its lock, which the system drops with the process.
   *
   * @throws {SystemError} EBUSY when somebody else has the file open for writing; EINVAL for what is
   * neither a regular file nor a block device.
   */
  open(path: string, options: DiskFileOptions): DiskFile;
  /**
   * Takes the lock of a file before it is opened for writing, where that may take time; see `lockAhead` in
   * `src/files/locks_ahead.ts`. Simulated files have no such locks.
   */
  lockAhead?(path: string, options: { readonly direct: boolean }): Promise<WithLock> | null;
  /**
   * Opens a file for writing through the page cache, and takes its lock. The queue only syncs it.
   *
   * @throws {SystemError} As `open`.
   */
  openCached(path: string): CachedFile;
}

const SECTOR_BYTES = 512;

class OsDiskFile implements DiskFile {
  readonly isBlockDevice: boolean;
  readonly identity: FileIdentity;
  readonly cachedBecause: string | null;
  readonly weakLock: string | null;
  readonly mark: string;
  readonly #note: FileNote | null;
  readonly #place: string | null;
  /** What the kernel knew of it before the first lookup since an operation on it last succeeded. */
  #before: { readonly heardMs: number; readonly known: LastKnown | null } | null = null;
  #isOpen = true;

  constructor(
    readonly path: string,
    readonly file: number,
    { status, notDirect, weakLock }: OpenedFile,
  ) {
    this.cachedBecause = notDirect;
    this.weakLock = weakLock;
    this.isBlockDevice = status.kind === "block";
    this.identity = { device: status.device, inode: status.inode };
    this.#note = noteFile(file, status);
    this.#place = this.#note?.known.place ?? placeOf(file);
    this.mark = `${status.device}:${status.inode}:${this.#note?.handle}`;
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
    return this.isBlockDevice ? lengthBytes : allocatedRun(this.file, offsetBytes, lengthBytes);
  }

  findAgain(
    scheduler: Pick<Scheduler, "settle">,
    { heardMs, mayHaveChanged }: HeardOf,
    found: (why: string | null) => void,
  ): void {
    if (this.#before?.heardMs !== heardMs) this.#before = { heardMs, known: this.#known() };
    const { known: before } = this.#before;
    scheduler.settle(openByName(this.path), (fdByName) => {
      found(whyNotSame(fdByName, { note: this.#note, before, mayHaveChanged }));
    });
  }

  /** What the kernel knows of it; null when it does not tell. Throws as `requireOwn`. */
  #known(): LastKnown | null {
    // The number of a closed file may be that of another one by now.
    if (!this.#isOpen) return null;
    try {
      return knownOf(this.file, this.path, this.#place);
    } catch (error) {
      // Whoever has the number now goes on with it.
      this.#isOpen = false;
      throw error;
    }
  }

  requireOwn(): void {
    this.#known();
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    closeFile(this.file);
  }
}

class OsCachedFile extends OsDiskFile implements CachedFile {
  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    return readAt(this.file, into, offsetBytes);
  }

  allocate(lengthBytes: number): void {
    // A block device has no holes.
    if (!this.isBlockDevice) allocateRange(this.file, 0, lengthBytes);
  }

  write(from: Uint8Array<ArrayBuffer>, lengthBytes: number, offsetBytes: number): number {
    return writeLow(this.file, from, lengthBytes, offsetBytes);
  }
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

function openOnce(path: string, { readOnly, direct, same }: DiskFileOptions): OpenedFile {
  return readOnly ? openToRead(path, { direct, same }) : openToWrite(path, { direct, same });
}

/** Opens a file past the page cache if asked for, or through it where that does not work. */
function openDescriptor(path: string, options: DiskFileOptions): OpenedFile {
  const opened = openOnce(path, options);
  if (!options.direct || opened.notDirect !== null) return opened;
  let fault: string | null;
  try {
    fault = directIoFault(opened.fd, opened.status);
  } catch (error) {
    closeFile(opened.fd);
    throw error;
  }
  if (fault === null) return opened;
  closeFile(opened.fd);
  return { ...openOnce(path, { ...options, direct: false }), notDirect: fault };
}

/** The operating system's files. */
export const osDiskFiles: DiskFiles = {
  storage: osStorage,

  open(path: string, options: DiskFileOptions): DiskFile {
    const opened = openDescriptor(path, options);
    return new OsDiskFile(path, opened.fd, opened);
  },

  lockAhead: (path, { direct }) => lockAhead(path, { direct }),

  openCached(path: string): CachedFile {
    const opened = openToWrite(path);
    return new OsCachedFile(path, opened.fd, opened);
  },
};
