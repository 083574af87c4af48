import { Errno, SystemError } from "../../ffi/errno.ts";
import type {
  FileIdentity,
  FileLocation,
  OpenMode,
  PathStatus,
  Storage,
  StorageFile,
} from "../files/storage.ts";

const PAGE_SIZE = 65536;

/** Something that changes a file or makes changes last. */
export type StorageOperation = "write" | "truncate" | "sync" | "rename" | "link" | "remove";

/**
 * Files in memory, for tests and simulations. Only what is written takes room, so an image may claim
 * terabytes. Paths are absolute; there are no links.
 */
export class MemoryStorage implements Storage {
  readonly #files = new Map<string, MemoryFile>();
  /** Called before every change. What it throws stops the operation, as a crash would. */
  beforeOperation: ((operation: StorageOperation, path: string) => void) | null = null;

  open(path: string, mode: OpenMode): StorageFile {
    const name = this.#absolute(path);
    let file = this.#files.get(name);
    if (mode === "create-new" && file) throw new SystemError(Errno.EEXIST, `Cannot open ${path}`);
    if (file === undefined) {
      if (mode === "read" || mode === "write") {
        throw new SystemError(Errno.ENOENT, `Cannot open ${path}`);
      }
      file = new MemoryFile();
      this.#files.set(name, file);
    } else if (mode === "create") {
      file.truncate(0);
    }
    return new OpenMemoryFile(path, file, mode === "read", this);
  }

  realPath(path: string): string {
    const name = this.#absolute(path);
    if (!this.#files.has(name)) throw new SystemError(Errno.ENOENT, `Cannot resolve ${path}`);
    return name;
  }

  locate(path: string): FileLocation {
    const realPath = this.realPath(path);
    const identity = this.#files.get(realPath)?.identity;
    if (identity === undefined) throw new SystemError(Errno.ENOENT, `Cannot find ${path}`);
    return { ...identity, realPath, kind: "file" };
  }

  status(path: string): PathStatus {
    const file = this.#files.get(this.#absolute(path));
    if (file === undefined) throw new SystemError(Errno.ENOENT, `Cannot stat ${path}`);
    return { kind: "file", sizeBytes: file.sizeBytes, mtimeSeconds: 1_700_000_000 };
  }

  exists(path: string): boolean {
    return this.#files.has(this.#absolute(path));
  }

  workingDirectory(): string {
    return "/";
  }

  rename(from: string, to: string): void {
    this.beforeOperation?.("rename", from);
    const file = this.#files.get(this.#absolute(from));
    if (file === undefined) throw new SystemError(Errno.ENOENT, `Cannot rename ${from}`);
    this.#files.delete(this.#absolute(from));
    this.#files.set(this.#absolute(to), file);
  }

  renameToNew(from: string, to: string): void {
    if (this.exists(to)) throw new SystemError(Errno.EEXIST, `Cannot rename ${from} to ${to}`);
    this.rename(from, to);
  }

  link(from: string, to: string): void {
    this.beforeOperation?.("link", from);
    const file = this.#files.get(this.#absolute(from));
    if (file === undefined) throw new SystemError(Errno.ENOENT, `Cannot link ${from}`);
    if (this.exists(to)) throw new SystemError(Errno.EEXIST, `Cannot link ${from} to ${to}`);
    this.#files.set(this.#absolute(to), file);
  }

  remove(path: string): void {
    this.beforeOperation?.("remove", path);
    if (!this.#files.delete(this.#absolute(path))) {
      throw new SystemError(Errno.ENOENT, `Cannot remove ${path}`);
    }
  }

  /** The paths of all files. */
  paths(): string[] {
    return [...this.#files.keys()];
  }

  /** A copy of everything as it is now: what a crash at this moment would leave. */
  snapshot(): MemoryStorage {
    const copy = new MemoryStorage();
    for (const [path, file] of this.#files) copy.#files.set(path, file.copy());
    return copy;
  }

  #absolute(path: string): string {
    const parts: string[] = [];
    for (const part of path.split("/")) {
      if (part === "..") parts.pop();
      else if (part !== "" && part !== ".") parts.push(part);
    }
    return `/${parts.join("/")}`;
  }
}

let lastInode = 0;

class MemoryFile {
  readonly identity: FileIdentity = { device: 1, inode: ++lastInode };
  readonly #pages = new Map<number, Uint8Array<ArrayBuffer>>();
  sizeBytes = 0;

  copy(): MemoryFile {
    const copy = new MemoryFile();
    for (const [number, page] of this.#pages) copy.#pages.set(number, page.slice());
    copy.sizeBytes = this.sizeBytes;
    return copy;
  }

  read(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    const length = Math.max(0, Math.min(into.length, this.sizeBytes - offsetBytes));
    for (let done = 0; done < length;) {
      const number = Math.floor((offsetBytes + done) / PAGE_SIZE);
      const start = (offsetBytes + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - start, length - done);
      const page = this.#pages.get(number);
      if (page === undefined) into.fill(0, done, done + count);
      else into.set(page.subarray(start, start + count), done);
      done += count;
    }
    return length;
  }

  write(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    for (let done = 0; done < from.length;) {
      const number = Math.floor((offsetBytes + done) / PAGE_SIZE);
      const start = (offsetBytes + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - start, from.length - done);
      let page = this.#pages.get(number);
      if (page === undefined) {
        page = new Uint8Array(PAGE_SIZE);
        this.#pages.set(number, page);
      }
      page.set(from.subarray(done, done + count), start);
      done += count;
    }
    this.sizeBytes = Math.max(this.sizeBytes, offsetBytes + from.length);
  }

  truncate(lengthBytes: number): void {
    if (lengthBytes < this.sizeBytes) {
      const last = Math.floor(lengthBytes / PAGE_SIZE);
      for (const [number, page] of this.#pages) {
        if (number > last) this.#pages.delete(number);
        else if (number === last) page.fill(0, lengthBytes % PAGE_SIZE);
      }
    }
    this.sizeBytes = lengthBytes;
  }
}

class OpenMemoryFile implements StorageFile {
  readonly isBlockDevice = false;
  readonly #file: MemoryFile;
  readonly #readOnly: boolean;
  readonly #storage: MemoryStorage;

  constructor(readonly path: string, file: MemoryFile, readOnly: boolean, storage: MemoryStorage) {
    this.#file = file;
    this.#readOnly = readOnly;
    this.#storage = storage;
  }

  get identity(): FileIdentity {
    return this.#file.identity;
  }

  sizeBytes(): number {
    return this.#file.sizeBytes;
  }

  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    return this.#file.read(into, offsetBytes);
  }

  writeAt(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    this.#change("write");
    this.#file.write(from, offsetBytes);
  }

  truncate(lengthBytes: number): void {
    this.#change("truncate");
    this.#file.truncate(lengthBytes);
  }

  sync(): void {
    this.#storage.beforeOperation?.("sync", this.path);
  }

  close(): void {}

  #change(operation: StorageOperation): void {
    if (this.#readOnly) throw new SystemError(Errno.EBADF, `Cannot ${operation} ${this.path}`);
    this.#storage.beforeOperation?.(operation, this.path);
  }
}
