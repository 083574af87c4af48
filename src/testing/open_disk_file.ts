import { assertShared } from "../../ffi/assert.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { FileIdentity } from "../../ffi/files.ts";
import { CANNOT_OPEN } from "../files/same_file.ts";
import { IoKind } from "../queue/backend.ts";
import type { CachedFile, HeardOf } from "../queue/disk_files.ts";
import type { Misdeed, OperationKind } from "./disk_operation.ts";
import type { DiskState } from "./disk_state.ts";
import { MOST_FILE_BYTES, type SimulatedFile } from "./simulated_file.ts";

const SECTOR_BYTES = 512;

/** A file of a simulated disk, open for the queue. */
export class OpenDiskFile implements CachedFile {
  readonly path: string;
  readonly file: number;
  readonly content: SimulatedFile;
  readonly isBlockDevice: boolean;
  readonly cachedBecause = null;
  readonly weakLock = null;
  readonly #disk: DiskState;
  readonly #readOnly: boolean;
  readonly #boot: number;
  readonly #onClose: () => void;
  #isOpen = true;

  constructor(
    { path, file, content, readOnly, disk, onClose }: {
      path: string;
      file: number;
      content: SimulatedFile;
      readOnly: boolean;
      disk: DiskState;
      onClose: () => void;
    },
  ) {
    this.path = path;
    this.file = file;
    this.content = content;
    this.isBlockDevice = content.device !== null;
    this.#disk = disk;
    this.#readOnly = readOnly;
    this.#boot = disk.boot;
    this.#onClose = onClose;
    if (!readOnly) disk.lock(content, this, path);
    disk.opened(content);
  }

  #admit(
    kind: OperationKind,
    offsetBytes: number,
    lengthBytes: number,
    queued = true,
  ): Misdeed | null {
    this.#disk.assertAlive(this.#boot);
    if (this.#readOnly || !this.#isOpen) {
      throw new SystemError(Errno.EBADF, `Cannot ${kind} ${this.path}`);
    }
    if (offsetBytes + lengthBytes > MOST_FILE_BYTES) {
      throw new SystemError(Errno.EFBIG, `Cannot ${kind} ${this.path} at ${offsetBytes}`);
    }
    return this.#disk.admit({ kind, path: this.path, offsetBytes, lengthBytes, queued });
  }

  get identity(): FileIdentity {
    return this.content.identity;
  }

  get mark(): string {
    return `${this.content.identity.inode}`;
  }

  sizeBytes(): number {
    this.#disk.assertAlive(this.#boot);
    return this.content.sizeBytes;
  }

  truncate(lengthBytes: number): void {
    this.#admit("truncate", lengthBytes, 0);
    if (this.isBlockDevice) {
      throw new SystemError(Errno.EINVAL, `Cannot truncate ${this.path}: it is a block device`);
    }
    this.content.truncate(lengthBytes);
  }

  punchHole(offsetBytes: number, lengthBytes: number): boolean {
    const misdeed = this.#admit("punch", offsetBytes, lengthBytes);
    if (misdeed === null) this.content.punchHole(offsetBytes, lengthBytes);
    return true;
  }

  allocatedRun(offsetBytes: number, lengthBytes: number): number {
    this.#disk.assertAlive(this.#boot);
    return this.content.run(offsetBytes, lengthBytes);
  }

  /** Nobody changes a file here without its lock. */
  findAgain(
    _scheduler: unknown,
    _heard: HeardOf,
    found: (why: string | null) => void,
  ): void {
    const { path } = this;
    try {
      this.#disk.admit({ kind: "open", path, offsetBytes: 0, lengthBytes: 0, queued: false });
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      return found(CANNOT_OPEN);
    }
    found(this.#disk.find(path) === this.content ? null : "is another file now");
  }

  requireOwn(): void {
    // There are no other files with its number.
  }

  /** Moves sectors to or from I/O memory; returns bytes, or a negative errno. */
  move(kind: number, sector: number, count: number, memorySector: number): number {
    if (kind === IoKind.Read) return this.content.readSectors(memorySector, sector, count);
    assertShared(!this.#readOnly, "A write goes to a file that is open for reading");
    const lengthBytes = count * SECTOR_BYTES;
    const room = this.#disk.roomFor(this.content, sector * SECTOR_BYTES, lengthBytes);
    const whole = Math.floor(room / SECTOR_BYTES);
    if (whole === 0) return -Errno.ENOSPC;
    this.content.writeSectors(memorySector, sector, whole);
    return whole * SECTOR_BYTES;
  }

  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    this.#disk.assertAlive(this.#boot);
    const { path } = this;
    const range = { offsetBytes, lengthBytes: into.length };
    const misdeed = this.#disk.admit({ kind: "read", path, ...range, queued: false });
    if (misdeed?.does === "rot") this.content.rot(offsetBytes * 8 + misdeed.bit);
    return this.content.read(into, offsetBytes);
  }

  /** The fault model has no room that is set aside. */
  allocate(): void {}

  write(from: Uint8Array<ArrayBuffer>, lengthBytes: number, offsetBytes: number): number {
    try {
      const misdeed = this.#admit("write", offsetBytes, lengthBytes, false);
      if (misdeed?.does === "lose") return 0;
      if (misdeed?.does === "shorten") {
        const done = misdeed.lengthBytes;
        this.content.write(from.subarray(0, done), offsetBytes);
        return this.write(from.subarray(done), lengthBytes - done, offsetBytes + done);
      }
      if (misdeed?.does === "rot") this.content.rot(offsetBytes * 8 + misdeed.bit);
      const at = misdeed?.does === "misdirect" ? misdeed.offsetBytes : offsetBytes;
      const room = this.#disk.roomFor(this.content, at, lengthBytes);
      this.content.write(from.subarray(0, room), at);
      return room < lengthBytes ? Errno.ENOSPC : 0;
    } catch (error) {
      if (error instanceof SystemError) return error.errno;
      throw error;
    }
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#onClose();
    this.#disk.closed(this.content, this, this.#boot);
  }
}
