import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  blockDeviceSectorBytes,
  closeFile,
  fileStatus,
  O_CREAT,
  O_DIRECT,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  openFile,
  readAt,
  syncFile,
  truncateFile,
  writeAt,
} from "../../ffi/files.ts";
import {
  linkPath,
  pathExists,
  pathStatus,
  realPath,
  removePath,
  renamePath,
  workingFolder,
} from "../../ffi/paths.ts";
import { type DirectFile, readDirect, writeDirect } from "./direct_io.ts";

/** How a file is opened: `create` empties one that is there, `create-new` refuses it. */
export type OpenMode = "read" | "write" | "create" | "create-new";

/** An open file, as the format code sees one. Every call throws `SystemError`. */
export interface StorageFile {
  readonly path: string;
  /** Block devices have a fixed size: they cannot be truncated, and their footer is at their end. */
  readonly isBlockDevice: boolean;
  sizeBytes(): number;
  /** Reads until `into` is full or the file ends; returns the bytes read. */
  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number;
  /** Writes all of `from`, growing the file where it must. */
  writeAt(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void;
  truncate(lengthBytes: number): void;
  /** Comes back when all that was written is on stable storage. */
  sync(): void;
  close(): void;
}

/** What is known of a path without opening it. */
export interface PathStatus {
  readonly kind: "file" | "block" | "directory" | "other";
  /** 0 for anything but a file. */
  readonly sizeBytes: number;
  /** Last change of the content, in seconds since 1970. */
  readonly mtimeSeconds: number;
}

/** Where files are: the operating system's, or a simulation of it. Every call throws `SystemError`. */
export interface Storage {
  open(path: string, mode: OpenMode): StorageFile;
  /** The absolute path with all links followed. The file must exist. */
  realPath(path: string): string;
  status(path: string): PathStatus;
  exists(path: string): boolean;
  /** The folder that relative paths start from. */
  workingDirectory(): string;
  /** Puts a file in the place of `to`, at one stroke. */
  rename(from: string, to: string): void;
  /** Gives a file a second name, which must be free (EEXIST). */
  link(from: string, to: string): void;
  remove(path: string): void;
}

const OPEN_FLAGS: Record<OpenMode, number> = {
  "read": O_RDONLY,
  "write": O_RDWR,
  "create": O_RDWR | O_CREAT | O_TRUNC,
  "create-new": O_RDWR | O_CREAT | O_EXCL,
};

class OsFile implements StorageFile {
  readonly isBlockDevice: boolean;
  #fd: number;
  /** Set for block devices, which other hosts may share: there must be no cache in between. */
  #direct: DirectFile | null = null;

  constructor(readonly path: string, flags: number) {
    this.#fd = openFile(path, flags);
    const { kind } = fileStatus(this.#fd);
    this.isBlockDevice = kind === "block";
    if (kind === "other") {
      this.close();
      throw new SystemError(Errno.EINVAL, `${path} is not a regular file or block device`);
    }
    if (kind === "block") this.#openDirect(flags);
  }

  #openDirect(flags: number): void {
    closeFile(this.#fd);
    this.#fd = -1;
    try {
      this.#fd = openFile(this.path, flags | O_DIRECT);
      this.#direct = { fd: this.#fd, sectorBytes: blockDeviceSectorBytes(this.#fd) };
    } catch (error) {
      if (!(error instanceof SystemError) || error.errno !== Errno.EINVAL) throw error;
      this.#fd = openFile(this.path, flags);
    }
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

/** The operating system's files. */
export const osStorage: Storage = {
  open(path: string, mode: OpenMode): StorageFile {
    return new OsFile(path, OPEN_FLAGS[mode]);
  },

  realPath,

  status(path: string): PathStatus {
    const { kind, isFolder, sizeBytes, mtimeSeconds } = pathStatus(path);
    return {
      kind: isFolder ? "directory" : kind,
      sizeBytes: kind === "file" ? sizeBytes : 0,
      mtimeSeconds,
    };
  },

  exists(path: string): boolean {
    return pathExists(path);
  },

  workingDirectory: workingFolder,
  rename: renamePath,
  link: linkPath,
  remove: removePath,
};
