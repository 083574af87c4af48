/**
 * `src/files`: files and block devices off the data path: opening with locks and type checks, reads
 * and writes, direct I/O for devices, durable names, and the places that are allowed for parents of
 * images.
 *
 * This folder must not know any image format, and it must not wait for another process: a FIFO is
 * refused, and a lock that another process holds is an error.
 *
 * This file has the interface that format code uses, and its implementation on the operating
 * system.
 *
 * @module
 */

import { SystemError } from "../../ffi/errno.ts";
import {
  blockDeviceSectorBytes,
  closeFile,
  type FileIdentity,
  type FileKind,
  fileStatus,
  O_PATH,
  openFile,
  punchHole,
  readAt,
  syncFile,
  truncateFile,
  writeAt,
} from "../../ffi/files.ts";
import {
  linkPath,
  linkTarget,
  pathExists,
  pathStatus,
  realPath,
  removePath,
  renamePath,
  renamePathToNew,
  workingFolder,
} from "../../ffi/paths.ts";
import { refuseReaders } from "./lock.ts";
import { changeNames, osFolders } from "./names.ts";
import { type DirectFile, readDirect, writeDirect } from "./direct_io.ts";
import { allocatedRun } from "./runs.ts";
import {
  isBlockDevice,
  isSameFile,
  type OpenedFile,
  openNew,
  openToRead,
  openToReplace,
  openToWrite,
} from "./open_file.ts";

export type { FileIdentity } from "../../ffi/files.ts";

/**
 * How a file is opened. All modes except `read` take the lock for writing (EBUSY). `create` empties
 * an existing file once the lock is taken and no tapdisk reads the file; `create-new` refuses it.
 */
export type OpenMode = "read" | "write" | "create" | "create-new";

/** Further options of opening a file. */
export interface StorageOpenOptions {
  /** The file must be this one, which was located before (ESTALE). */
  readonly same?: FileIdentity;
  /** For `write`: the caller already holds the lock of this file, and the name must lead to it. */
  readonly lockedBy?: FileIdentity;
  /** For `write`: open the file also while a tapdisk holds its lock; see `StorageFile.isShared`. */
  readonly besideTapdisk?: boolean;
  /** For `write`: without the lock, to change bytes that no other program changes as well. */
  readonly unlocked?: boolean;
  /** Through the page cache, also of a block device: a tapdisk may write to it there. */
  readonly cached?: boolean;
}

/** An open file, as format code uses it. Every call throws `SystemError`. */
export interface StorageFile {
  readonly path: string;
  /** A block device has a fixed size. It cannot be truncated, and its footer is at its end. */
  readonly isBlockDevice: boolean;
  readonly identity: FileIdentity;
  /**
   * The descriptor of a regular file, which others may write to before the next call of `sync`. A simulated
   * file has none, and neither has a block device: it may be open past the page cache.
   */
  readonly descriptor?: number;
  /**
   * Whether a tapdisk has the file open for writing. Only the header and the locators may be
   * written then: a tapdisk never writes them, and does not read them again while it has the image
   * open.
   */
  readonly isShared: boolean;
  sizeBytes(): number;
  /** Reads until `into` is full or the file ends. Returns the number of bytes read. */
  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number;
  /** Writes all of `from`. The file grows when necessary. */
  writeAt(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void;
  truncate(lengthBytes: number): void;
  /**
   * The length of the run at an offset, at most `lengthBytes`: positive for data, negative for a hole.
   * All of a block device is data.
   */
  allocatedRun(offsetBytes: number, lengthBytes: number): number;
  /** Frees a range, which then reads as zeros. False where the file system cannot do that. */
  punchHole(offsetBytes: number, lengthBytes: number): boolean;
  /**
   * Refuses (EBUSY) a file that a tapdisk has open, even only for reading. Called before data is
   * discarded or moved.
   */
  refuseReaders(): void;
  /** Returns when all writes are durable. */
  sync(): void;
  close(): void;
}

/** The status of a path. The file is not opened. */
export interface PathStatus {
  readonly kind: FileKind;
  /** 0 for everything except a regular file. */
  readonly sizeBytes: number;
  /** Time of the last change of the content, in seconds since 1970. */
  readonly mtimeSeconds: number;
}

/** The file that a name leads to, and its real path, at one moment. */
export interface FileLocation extends FileIdentity {
  /** The absolute path with all links resolved. */
  readonly realPath: string;
  readonly kind: FileKind;
}

/**
 * A storage: the operating system's files, or a simulation. Every call throws `SystemError`. A
 * change of names, including a new file, is durable when the call returns; see `names.ts`.
 */
export interface Storage {
  open(path: string, mode: OpenMode, options?: StorageOpenOptions): StorageFile;
  /** The absolute path with all links resolved. The file must exist. */
  realPath(path: string): string;
  /** Locates the file that a name leads to, without opening it. */
  locate(path: string): FileLocation;
  status(path: string): PathStatus;
  exists(path: string): boolean;
  /** The folder that relative paths are relative to. */
  workingDirectory(): string;
  /** Replaces `to` atomically. */
  rename(from: string, to: string): void;
  /** Renames a file. The new name must not exist (EEXIST). */
  renameToNew(from: string, to: string): void;
  /** Gives a file a second name, which must not exist (EEXIST). */
  link(from: string, to: string): void;
  remove(path: string): void;
}

/** The storage of an operation; the operating system's by default. */
export interface OnStorage {
  readonly storage?: Storage;
}

/** Removes a file that the caller made, unless the name leads to another file now. */
export function removeOwn(storage: Storage, path: string, own: FileIdentity): void {
  if (storage.exists(path) && isSameFile(storage.locate(path), own)) storage.remove(path);
}

class OsFile implements StorageFile {
  readonly isBlockDevice: boolean;
  readonly identity: FileIdentity;
  readonly isShared: boolean;
  #fd: number;
  /** Set for block devices. Other hosts may share them, so no cache may be in between. */
  readonly #direct: DirectFile | null;

  constructor(readonly path: string, opened: OpenedFile, cached: boolean) {
    const { fd, status, isShared, notDirect } = opened;
    this.#fd = fd;
    this.isShared = isShared;
    this.isBlockDevice = status.kind === "block";
    this.identity = { device: status.device, inode: status.inode };
    this.#direct = this.isBlockDevice && notDirect === null && !cached
      ? { fd, sectorBytes: blockDeviceSectorBytes(fd) }
      : null;
  }

  get descriptor(): number | undefined {
    return this.isBlockDevice ? undefined : this.#fd;
  }

  sizeBytes(): number {
    return this.#named("get the size of", () => fileStatus(this.#fd).sizeBytes);
  }

  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    const direct = this.#direct;
    if (direct !== null) return this.#named("read", () => readDirect(direct, into, offsetBytes));
    return this.#named("read", () => readAt(this.#fd, into, offsetBytes));
  }

  writeAt(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    const direct = this.#direct;
    if (direct !== null) return this.#named("write", () => writeDirect(direct, from, offsetBytes));
    this.#named("write", () => writeAt(this.#fd, from, offsetBytes));
  }

  truncate(lengthBytes: number): void {
    this.#named("set the length of", () => truncateFile(this.#fd, lengthBytes));
  }

  allocatedRun(offsetBytes: number, lengthBytes: number): number {
    return this.isBlockDevice ? lengthBytes : allocatedRun(this.#fd, offsetBytes, lengthBytes);
  }

  punchHole(offsetBytes: number, lengthBytes: number): boolean {
    return this.#named("free room of", () => punchHole(this.#fd, offsetBytes, lengthBytes));
  }

  refuseReaders(): void {
    refuseReaders(this.#fd, this.path, this.identity);
  }

  sync(): void {
    this.#named("sync", () => syncFile(this.#fd));
  }

  close(): void {
    if (this.#fd < 0) return;
    const fd = this.#fd;
    this.#fd = -1;
    closeFile(fd);
  }

  #named<T>(doing: string, call: () => T): T {
    try {
      return call();
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      throw new SystemError(error.errno, `Cannot ${doing} ${this.path}`);
    }
  }
}

function openDescriptor(path: string, mode: OpenMode, options: StorageOpenOptions): OpenedFile {
  if (mode === "create-new") return openNew(path);
  if (mode === "create") return openToReplace(path, options);
  const wanted = { ...options, direct: options.cached !== true && isBlockDevice(path) };
  return mode === "read" ? openToRead(path, wanted) : openToWrite(path, wanted);
}

/** The operating system's files. */
export const osStorage: Storage = {
  open(path: string, mode: OpenMode, options: StorageOpenOptions = {}): StorageFile {
    const opened = openDescriptor(path, mode, options);
    try {
      const file = new OsFile(path, opened, options.cached === true);
      if (mode === "create") {
        // An empty file, such as one that the caller has just made, has nothing that a tapdisk could read.
        if (file.isBlockDevice || file.sizeBytes() > 0) file.refuseReaders();
        if (!file.isBlockDevice) file.truncate(0);
      }
      return file;
    } catch (error) {
      closeFile(opened.fd);
      throw error;
    }
  },

  locate(path: string): FileLocation {
    const fd = openFile(path, O_PATH);
    try {
      const { kind, device, inode } = pathStatus(`/proc/self/fd/${fd}`);
      return { kind, device, inode, realPath: linkTarget(`/proc/self/fd/${fd}`) };
    } finally {
      closeFile(fd);
    }
  },

  realPath,

  status(path: string): PathStatus {
    const { kind, sizeBytes, mtimeSeconds } = pathStatus(path);
    return {
      kind,
      sizeBytes: kind === "file" ? sizeBytes : 0,
      mtimeSeconds,
    };
  },

  exists(path: string): boolean {
    return pathExists(path);
  },

  workingDirectory: workingFolder,
  rename: (from, to) => changeNames(osFolders, [to, from], () => renamePath(from, to)),
  renameToNew: (from, to) => changeNames(osFolders, [to, from], () => renamePathToNew(from, to)),
  link: (from, to) => changeNames(osFolders, [to], () => linkPath(from, to)),
  remove: (path) => changeNames(osFolders, [path], () => removePath(path)),
};
