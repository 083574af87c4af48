import { Errno, SystemError } from "../../ffi/errno.ts";
import type {
  FileIdentity,
  FileLocation,
  OpenMode,
  PathStatus,
  Storage,
  StorageFile,
} from "../files/storage.ts";

const PAGE_SIZE = 4096;

/** The room of a simulated disk, in pages of 4 KiB. */
interface Room {
  used: number;
  most: number;
}

/** Something that changes a file or makes changes last. */
export type StorageOperation = "write" | "truncate" | "sync" | "rename" | "link" | "remove";

/**
 * Files in memory, for tests and simulations. Only what is written takes room, so an image may claim
 * terabytes. Paths are absolute; there are no links.
 */
export class MemoryStorage implements Storage {
  readonly #files = new Map<string, MemoryFile>();
  /** How much of the disk's room is taken, and how much there is: writes end with ENOSPC there. */
  readonly room: Room = { used: 0, most: Infinity };
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
      file = new MemoryFile(this.room);
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
    const file = this.#files.get(this.#absolute(path));
    if (file === undefined) throw new SystemError(Errno.ENOENT, `Cannot remove ${path}`);
    file.truncate(0);
    this.#files.delete(this.#absolute(path));
  }

  /** The paths of all files. */
  paths(): string[] {
    return [...this.#files.keys()];
  }

  /** A copy of everything as it is now: what a crash at this moment would leave. */
  snapshot(): MemoryStorage {
    const copy = new MemoryStorage();
    for (const [path, file] of this.#files) copy.#files.set(path, file.copy(copy.room));
    return copy;
  }

  /** Makes everything what it was when a snapshot was taken. */
  restore(snapshot: MemoryStorage): void {
    this.#files.clear();
    this.room.used = 0;
    for (const [path, file] of snapshot.#files) this.#files.set(path, file.copy(this.room));
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
  readonly #room: Room;
  sizeBytes = 0;

  constructor(room: Room) {
    this.#room = room;
  }

  copy(room: Room): MemoryFile {
    const copy = new MemoryFile(room);
    for (const [number, page] of this.#pages) copy.#pages.set(number, page.slice());
    room.used += copy.#pages.size;
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
      if (page === undefined) page = this.#takePage(number);
      page.set(from.subarray(done, done + count), start);
      done += count;
      this.sizeBytes = Math.max(this.sizeBytes, offsetBytes + done);
    }
  }

  #takePage(number: number): Uint8Array<ArrayBuffer> {
    if (this.#room.used >= this.#room.most) {
      throw new SystemError(Errno.ENOSPC, "Cannot write to the simulated disk: it is full");
    }
    const page = new Uint8Array(PAGE_SIZE);
    this.#pages.set(number, page);
    this.#room.used++;
    return page;
  }

  truncate(lengthBytes: number): void {
    if (lengthBytes < this.sizeBytes) {
      const last = Math.floor(lengthBytes / PAGE_SIZE);
      for (const [number, page] of this.#pages) {
        if (number * PAGE_SIZE >= lengthBytes) {
          this.#pages.delete(number);
          this.#room.used--;
        } else if (number === last) page.fill(0, lengthBytes % PAGE_SIZE);
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
