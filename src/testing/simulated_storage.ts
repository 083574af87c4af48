import { Errno, SystemError } from "../../ffi/errno.ts";
import { changeNames } from "../files/names.ts";
import { normalizePath } from "../files/paths.ts";
import type {
  FileIdentity,
  FileLocation,
  OpenMode,
  PathStatus,
  Storage,
  StorageFile,
  StorageOpenOptions,
} from "../files/storage.ts";
import type { Misdeed, OperationKind } from "./disk_operation.ts";
import type { DiskState } from "./disk_state.ts";
import { MOST_FILE_BYTES, type SimulatedFile } from "./simulated_file.ts";

/** The modification time of every file, in seconds since 1970: it never changes. */
const MTIME_SECONDS = 1_700_000_000;

/**
 * A simulated disk as synchronous code sees it. Paths are absolute; there are no links. A folder is
 * there while it has files.
 */
export class SimulatedStorage implements Storage {
  readonly #disk: DiskState;

  constructor(disk: DiskState) {
    this.#disk = disk;
  }

  #admit(kind: OperationKind, path: string): string {
    this.#disk.admit({ kind, path, offsetBytes: 0, lengthBytes: 0, queued: false });
    return normalizePath(this, path);
  }

  open(path: string, mode: OpenMode, options: StorageOpenOptions = {}): StorageFile {
    const creates = mode === "create" || mode === "create-new";
    const name = this.#admit(creates ? "create" : "open", path);
    const { same, lockedBy, besideTapdisk = false, unlocked = false } = options;
    const isNew = creates && this.#disk.find(name) === undefined;
    if (mode === "create-new" && !isNew) {
      throw new SystemError(Errno.EEXIST, `Cannot create ${path}`);
    }
    const file = isNew
      ? changeNames(this, [name], () => this.#disk.create(name))
      : this.#disk.same(name, lockedBy ?? same);
    // Every lock counts as a tapdisk's.
    const isShared = mode === "write" && besideTapdisk && file.lockedBy !== null;
    const takesLock = mode !== "read" && lockedBy === undefined && !isShared && !unlocked;
    const opened = new OpenFile(path, {
      disk: this.#disk,
      file,
      readOnly: mode === "read",
      takesLock,
      isShared,
    });
    if (mode === "create" && !isNew && file.device === null) file.truncate(0);
    return opened;
  }

  realPath(path: string): string {
    const name = normalizePath(this, path);
    if (!this.#disk.names.some((file) => file.startsWith(`${name}/`))) this.#disk.named(name);
    return name;
  }

  locate(path: string): FileLocation {
    const realPath = this.realPath(path);
    const { identity, device } = this.#disk.named(realPath);
    return { ...identity, realPath, kind: device === null ? "file" : "block" };
  }

  status(path: string): PathStatus {
    const { device, sizeBytes } = this.#disk.named(normalizePath(this, path));
    const mtimeSeconds = MTIME_SECONDS;
    if (device !== null) return { kind: "block", sizeBytes: 0, mtimeSeconds };
    return { kind: "file", sizeBytes, mtimeSeconds };
  }

  exists(path: string): boolean {
    return this.#disk.find(normalizePath(this, path)) !== undefined;
  }

  workingDirectory(): string {
    return "/";
  }

  rename(from: string, to: string): void {
    const name = this.#admit("rename", from);
    this.#rename(name, normalizePath(this, to));
  }

  renameToNew(from: string, to: string): void {
    const name = this.#admit("rename", from);
    if (this.exists(to)) throw new SystemError(Errno.EEXIST, `Cannot rename ${from} to ${to}`);
    this.#rename(name, normalizePath(this, to));
  }

  #rename(from: string, to: string): void {
    changeNames(this, [to, from], () => this.#disk.rename(from, to));
  }

  link(from: string, to: string): void {
    const name = this.#admit("link", from);
    const second = normalizePath(this, to);
    changeNames(this, [second], () => this.#disk.link(name, second));
  }

  remove(path: string): void {
    const name = this.#admit("remove", path);
    changeNames(this, [name], () => this.#disk.remove(name));
  }

  /** Makes all changes of names durable: a file system commits them together. */
  syncFolder(folder: string): void {
    const operation = {
      kind: "sync folder",
      path: folder,
      offsetBytes: 0,
      lengthBytes: 0,
    } as const;
    if (this.#disk.admit({ ...operation, queued: false }) === null) this.#disk.syncNames();
  }
}

/** An open file of a simulated disk, for synchronous code. */
class OpenFile implements StorageFile {
  readonly isBlockDevice: boolean;
  readonly isShared: boolean;
  readonly #disk: DiskState;
  readonly #file: SimulatedFile;
  readonly #readOnly: boolean;
  readonly #boot: number;
  #isOpen = true;

  constructor(
    readonly path: string,
    { disk, file, readOnly, takesLock, isShared }: {
      disk: DiskState;
      file: SimulatedFile;
      readOnly: boolean;
      takesLock: boolean;
      isShared: boolean;
    },
  ) {
    if (takesLock) disk.lock(file, this, path);
    this.isShared = isShared;
    this.#disk = disk;
    this.#file = file;
    this.isBlockDevice = file.device !== null;
    this.#readOnly = readOnly;
    this.#boot = disk.boot;
    disk.opened(file);
  }

  #admit(kind: OperationKind, offsetBytes: number, lengthBytes: number): Misdeed | null {
    this.#disk.assertAlive(this.#boot);
    const changes = kind === "write" || kind === "truncate" || kind === "punch";
    if (!this.#isOpen || (changes && this.#readOnly)) {
      throw new SystemError(Errno.EBADF, `Cannot ${kind} ${this.path}`);
    }
    if (changes && offsetBytes + lengthBytes > MOST_FILE_BYTES) {
      throw new SystemError(Errno.EFBIG, `Cannot ${kind} ${this.path} at ${offsetBytes}`);
    }
    return this.#disk.admit({ kind, path: this.path, offsetBytes, lengthBytes, queued: false });
  }

  get identity(): FileIdentity {
    return this.#file.identity;
  }

  sizeBytes(): number {
    this.#disk.assertAlive(this.#boot);
    return this.#file.sizeBytes;
  }

  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    const misdeed = this.#admit("read", offsetBytes, into.length);
    if (misdeed?.does === "rot") this.#file.rot(offsetBytes * 8 + misdeed.bit);
    if (misdeed?.does !== "shorten") return this.#file.read(into, offsetBytes);
    const { lengthBytes } = misdeed;
    const got = this.#file.read(into.subarray(0, lengthBytes), offsetBytes);
    if (got < lengthBytes) return got;
    return got + this.readAt(into.subarray(lengthBytes), offsetBytes + lengthBytes);
  }

  writeAt(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    const misdeed = this.#admit("write", offsetBytes, from.length);
    if (misdeed?.does === "lose") return;
    if (misdeed?.does === "rot") this.#file.rot(offsetBytes * 8 + misdeed.bit);
    if (misdeed?.does === "shorten") {
      const { lengthBytes } = misdeed;
      this.#write(from.subarray(0, lengthBytes), offsetBytes);
      return this.writeAt(from.subarray(lengthBytes), offsetBytes + lengthBytes);
    }
    this.#write(from, misdeed?.does === "misdirect" ? misdeed.offsetBytes : offsetBytes);
  }

  #write(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    const room = this.#disk.roomFor(this.#file, offsetBytes, from.length);
    this.#file.write(from.subarray(0, room), offsetBytes);
    if (room < from.length) throw new SystemError(Errno.ENOSPC, `Cannot write ${this.path}`);
  }

  truncate(lengthBytes: number): void {
    this.#admit("truncate", lengthBytes, 0);
    if (this.isBlockDevice) {
      throw new SystemError(Errno.EINVAL, `Cannot truncate ${this.path}: it is a block device`);
    }
    this.#file.truncate(lengthBytes);
  }

  allocatedRun(offsetBytes: number, lengthBytes: number): number {
    this.#disk.assertAlive(this.#boot);
    return this.#file.run(offsetBytes, lengthBytes);
  }

  punchHole(offsetBytes: number, lengthBytes: number): boolean {
    if (this.#admit("punch", offsetBytes, lengthBytes) === null) {
      this.#file.punchHole(offsetBytes, lengthBytes);
    }
    return true;
  }

  /** Simulated files have no other readers than the tapdisk that they are shared with. */
  refuseReaders(): void {
    if (this.isShared) throw new SystemError(Errno.EBUSY, `Cannot move the data of ${this.path}`);
  }

  sync(): void {
    if (this.#admit("sync", 0, 0) === null) this.#disk.sync(this.#file);
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#disk.closed(this.#file, this, this.#boot);
  }
}
