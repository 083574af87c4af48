/**
 * `src/files`: files and block devices for everything that is not on the data path: opening with
 * locks and without surprises, plain reads and writes, direct I/O for devices, names, and where the
 * parents of images may be.
 *
 * It must not know any image format, and it must not wait for another process: a FIFO is refused, and
 * a lock that is taken is an error.
 *
 * This file has the interface that format code sees, and the operating system behind it.
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
 * How a file is opened. All but `read` take the lock of writers (EBUSY). `create`
 * empties a file that is there, once it has the lock and no tapdisk reads it; `create-new` refuses it.
 */
export type OpenMode = "read" | "write" | "create" | "create-new";

/** What else is asked of a file that is opened. */
export interface StorageOpenOptions {
  /** It must be this file, which was looked at before (ESTALE). */
  readonly same?: FileIdentity;
  /** For `write`: the caller holds the lock of this file already, which the name must lead to. */
  readonly lockedBy?: FileIdentity;
  /** For `write`: open the file also while a tapdisk holds its lock; see `StorageFile.isShared`. */
  readonly besideTapdisk?: boolean;
}

/** An open file, as the format code sees one. Every call throws `SystemError`. */
export interface StorageFile {
  readonly path: string;
  /** Block devices have a fixed size: they cannot be truncated, and their footer is at their end. */
  readonly isBlockDevice: boolean;
  readonly identity: FileIdentity;
  /**
   * Whether a tapdisk has the file open for writing. Only what a tapdisk never writes, and never
   * reads again while it has the image open, may be written then: the header and the locators.
   */
  readonly isShared: boolean;
  sizeBytes(): number;
  /** Reads until `into` is full or the file ends; returns the bytes read. */
  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number;
  /** Writes all of `from`, growing the file where it must. */
  writeAt(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void;
  truncate(lengthBytes: number): void;
  /** Refuses (EBUSY) when a tapdisk has the file open, if only to read: before data is dropped or moved. */
  refuseReaders(): void;
  /** Comes back when all that was written is on stable storage. */
  sync(): void;
  close(): void;
}

/** What is known of a path without opening it. */
export interface PathStatus {
  readonly kind: FileKind;
  /** 0 for anything but a file. */
  readonly sizeBytes: number;
  /** Last change of the content, in seconds since 1970. */
  readonly mtimeSeconds: number;
}

/** Where a name leads, and to which file: both are true of one moment. */
export interface FileLocation extends FileIdentity {
  /** The absolute path with all links followed. */
  readonly realPath: string;
  readonly kind: FileKind;
}

/**
 * Where files are: the operating system's, or a simulation of it. Every call throws `SystemError`.
 * What changes names, a new file included, is on stable storage when the call returns; see `names.ts`.
 */
export interface Storage {
  open(path: string, mode: OpenMode, options?: StorageOpenOptions): StorageFile;
  /** The absolute path with all links followed. The file must exist. */
  realPath(path: string): string;
  /** Finds out where a name leads, without opening what is there. */
  locate(path: string): FileLocation;
  status(path: string): PathStatus;
  exists(path: string): boolean;
  /** The folder that relative paths start from. */
  workingDirectory(): string;
  /** Puts a file in the place of `to`, in one step. */
  rename(from: string, to: string): void;
  /** Gives a file another name, which must be free (EEXIST). */
  renameToNew(from: string, to: string): void;
  /** Gives a file a second name, which must be free (EEXIST). */
  link(from: string, to: string): void;
  remove(path: string): void;
}

/** Where the files of a piece of work are: those of the operating system, unless it says otherwise. */
export interface OnStorage {
  readonly storage?: Storage;
}

/** Removes a file that the caller made, unless the name leads to another one by now. */
export function removeOwn(storage: Storage, path: string, own: FileIdentity): void {
  if (storage.exists(path) && isSameFile(storage.locate(path), own)) storage.remove(path);
}

class OsFile implements StorageFile {
  readonly isBlockDevice: boolean;
  readonly identity: FileIdentity;
  readonly isShared: boolean;
  #fd: number;
  /** Set for block devices, which other hosts may share: there must be no cache in between. */
  readonly #direct: DirectFile | null;

  constructor(readonly path: string, { fd, status, isShared, notDirect }: OpenedFile) {
    this.#fd = fd;
    this.isShared = isShared;
    this.isBlockDevice = status.kind === "block";
    this.identity = { device: status.device, inode: status.inode };
    this.#direct = this.isBlockDevice && notDirect === null
      ? { fd, sectorBytes: blockDeviceSectorBytes(fd) }
      : null;
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
  const wanted = { ...options, direct: isBlockDevice(path) };
  return mode === "read" ? openToRead(path, wanted) : openToWrite(path, wanted);
}

/** The operating system's files. */
export const osStorage: Storage = {
  open(path: string, mode: OpenMode, options: StorageOpenOptions = {}): StorageFile {
    const opened = openDescriptor(path, mode, options);
    try {
      const file = new OsFile(path, opened);
      if (mode === "create") {
        file.refuseReaders();
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
