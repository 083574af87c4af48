/**
 * Files by descriptor, with calls that block: for opening images and for offline work. The data
 * path uses `aio.ts` and `uring.ts` instead.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { cString, openLibc, openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int open(const char *pathname, int flags, mode_t mode)
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  // int open(const char *pathname, int flags, mode_t mode), by another thread; its errno is lost
  openAside: {
    name: "open",
    parameters: ["buffer", "i32", "u32"],
    result: "i32",
    nonblocking: true,
  },
  // int close(int fd), by another thread
  closeAside: { name: "close", parameters: ["i32"], result: "i32", nonblocking: true },
  // int close(int fd)
  close: { parameters: ["i32"], result: "i32" },
  // ssize_t pread(int fd, void *buf, size_t count, off_t offset); counts stay below 2 GiB here
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "i32" },
  // ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset)
  pwrite: { parameters: ["i32", "buffer", "usize", "i64"], result: "i32" },
  // int ftruncate(int fd, off_t length)
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  // int fsync(int fd)
  fsync: { parameters: ["i32"], result: "i32" },
  // int fallocate(int fd, int mode, off_t offset, off_t len)
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  // off_t lseek(int fd, off_t offset, int whence)
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  // int flock(int fd, int operation)
  flock: { parameters: ["i32", "i32"], result: "i32" },
  // int fcntl(int fd, int op, int arg), for the operations whose argument is an int
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int fcntl(int fd, int op, struct flock *lock)
  fcntlLock: { name: "fcntl", parameters: ["i32", "i32", "buffer"], result: "i32" },
  // int fstatfs(int fd, struct statfs *buf)
  fstatfs: { parameters: ["i32", "buffer"], result: "i32" },
  // int ioctl(int fd, unsigned long request, void *argp)
  ioctl: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  // long syscall(SYS_fstat, int fd, struct stat *buf), in any glibc
  syscall: { parameters: ["i64", "i32", "buffer"], result: "i32" },
});

const data = /* @__PURE__ */ openLibc({
  // ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset), below 4 GiB: the runtime
  // compiles a call with buffers and 32-bit numbers
  pwriteLow: { name: "pwrite", parameters: ["i32", "buffer", "u32", "u32"], result: "i32" },
});

/** Leases and their signal (fcntl.h, signal.h). SIGURG is ignored by default. */
const F_SETSIG = 10;
const F_SETLEASE = 1024;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
/** Locks of ranges that belong to the open file, not to the process (fcntl.h). */
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
/** struct flock on x86-64: l_type, l_whence (SEEK_SET), l_start, l_len, l_pid. */
const FLOCK_BYTES = 32;
/** struct statfs on x86-64, which begins with f_type; the types of SMB file systems (linux/magic.h). */
const STATFS_BYTES = 120;
const SMB_TYPES: readonly number[] = [0xfe534d42, 0xff534d42];
const SIGURG = 23;

/** Flags of open(2) on x86-64 (fcntl.h). */
export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_CREAT = 0o100;
export const O_EXCL = 0o200;
export const O_NOCTTY = 0o400;
export const O_APPEND = 0o2000;
export const O_NONBLOCK = 0o4000;
export const O_DIRECT = 0o40000;
export const O_DIRECTORY = 0o200000;
export const O_NOFOLLOW = 0o400000;
const O_CLOEXEC = 0o2000000;
export const O_PATH = 0o10000000;

const SYS_fstat = 5;
const F_GETFL = 3;
const F_SETFL = 4;
const SEEK_CUR = 1;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const LOCK_EX = 2;
const LOCK_NB = 4;
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
// linux/fs.h.
const BLKGETSIZE64 = 0x80081272;
const BLKSSZGET = 0x1268;
const S_IFMT = 0o170000;
/** Bytes of a `struct stat`. */
export const STAT_BYTES = 144;
const KINDS: ReadonlyMap<number, FileKind> = new Map([
  [0o100000, "file"],
  [0o060000, "block"],
  [0o040000, "directory"],
  [0o020000, "character"],
  [0o010000, "fifo"],
  [0o140000, "socket"],
]);
const LARGEST_TRANSFER_BYTES = 1 << 30;

/** The type of a file. */
export type FileKind =
  | "file"
  | "block"
  | "directory"
  | "character"
  | "fifo"
  | "socket"
  | "other";

/** The identity of a file. No two files that exist at the same time have both numbers alike. */
export interface FileIdentity {
  readonly device: number;
  readonly inode: number;
}

/** The result of fstat(2). The size of a block device is its capacity. */
export interface FileStatus extends FileIdentity {
  sizeBytes: number;
  kind: FileKind;
  /** Space allocated on disk, bytes. */
  blocksBytes: number;
  /** Time of the last change of the content, seconds since 1970. */
  mtimeSeconds: number;
  /** Permission bits, without the file type. */
  mode: number;
  /** User ID of the owner. */
  uid: number;
  /** The number of names: hard links. */
  links: number;
  /** For a device node: the number of the device. */
  deviceNode: number;
}

function check(result: number, what: () => string): number {
  if (result < 0) throw new SystemError(lastErrno(), what());
  return result;
}

/**
 * Opens a file, close-on-exec.
 *
 * @param flags O_* flags.
 * @param mode Permission bits of a file that O_CREAT creates.
 * @returns The descriptor.
 * @throws {SystemError}
 */
export function openFile(path: string, flags: number, mode = 0o640): number {
  const name = cString(path);
  for (;;) {
    const fd = libc.open(name, flags | O_CLOEXEC, mode);
    if (fd >= 0) return fd;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) throw new SystemError(errno, `Cannot open ${path}`);
  }
}

/**
 * Opens a file, close-on-exec, by another thread. It is for block devices that this process serves:
 * the kernel may read from such a device before the open returns.
 *
 * @returns The descriptor; -1 when the open fails.
 */
export function openAside(path: string, flags: number): Promise<number> {
  return libc.openAside(cString(path), flags | O_CLOEXEC, 0);
}

/**
 * Closes a descriptor by another thread. It is for block devices that this process serves: the last
 * close of such a device writes the dirty pages.
 */
export async function closeAside(fd: number): Promise<void> {
  await libc.closeAside(fd);
}

/**
 * Whether a block device has no exclusive holder, such as a mounted filesystem or a volume group.
 */
export async function canOpenExclusively(path: string): Promise<boolean> {
  const fd = await openAside(path, O_RDONLY | O_EXCL);
  if (fd >= 0) await closeAside(fd);
  return fd >= 0;
}

/** Closes a descriptor. Throws `SystemError`. */
export function closeFile(fd: number): void {
  check(libc.close(fd), () => `Cannot close descriptor ${fd}`);
}

/** The first offset beyond the range of off_t. */
const OFFSETS_END = 2 ** 63;

/** Refuses an offset beyond the range of off_t, which a corrupt image may contain. */
function checkOffset(what: string, offsetBytes: number): void {
  if (offsetBytes >= 0 && offsetBytes < OFFSETS_END) return;
  throw new SystemError(Errno.EINVAL, `Cannot ${what} at ${offsetBytes}`);
}

/**
 * Reads until `into` is full or the file ends.
 *
 * @returns The bytes read.
 * @throws {SystemError} EINVAL for an offset out of range.
 */
export function readAt(fd: number, into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
  checkOffset("read", offsetBytes);
  let done = 0;
  while (done < into.length) {
    const wanted = Math.min(into.length - done, LARGEST_TRANSFER_BYTES);
    const got = libc.pread(fd, into.subarray(done), wanted, offsetBytes + done);
    if (got === 0) break;
    if (got > 0) done += got;
    else if (lastErrno() !== Errno.EINTR) {
      throw new SystemError(lastErrno(), `Cannot read ${wanted} bytes at ${offsetBytes + done}`);
    }
  }
  return done;
}

/** Writes all of `from`. Throws `SystemError`; part of it may have been written then. */
export function writeAt(fd: number, from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
  checkOffset("write", offsetBytes);
  let done = 0;
  while (done < from.length) {
    const wanted = Math.min(from.length - done, LARGEST_TRANSFER_BYTES);
    const put = libc.pwrite(fd, from.subarray(done), wanted, offsetBytes + done);
    if (put >= 0) done += put;
    else if (lastErrno() !== Errno.EINTR) {
      throw new SystemError(lastErrno(), `Cannot write ${wanted} bytes at ${offsetBytes + done}`);
    }
  }
}

/**
 * Writes the first bytes of `from` at an offset below 4 GiB. Allocates nothing unless the kernel ends
 * the write early. The data path may call it for a few bytes that go to the page cache.
 *
 * @returns 0, or an error number; part of it may have been written then.
 */
export function writeLow(
  fd: number,
  from: Uint8Array<ArrayBuffer>,
  lengthBytes: number,
  offsetBytes: number,
): number {
  if (lengthBytes > from.length) throw new RangeError("A write reads beyond its buffer");
  let done = 0;
  while (done < lengthBytes) {
    const rest = done === 0 ? from : from.subarray(done);
    const put = data.pwriteLow(fd, rest, lengthBytes - done, offsetBytes + done);
    if (put > 0) done += put;
    else if (put === 0) return Errno.EIO;
    else if (lastErrno() !== Errno.EINTR) return lastErrno();
  }
  return 0;
}

/** Sets the length of a file: it is cut, or extended with zeros. Throws `SystemError`. */
export function truncateFile(fd: number, lengthBytes: number): void {
  checkOffset("set the length to end", lengthBytes);
  check(libc.ftruncate(fd, lengthBytes), () => `Cannot set the length to ${lengthBytes} bytes`);
}

/** Syncs a file's data and metadata to stable storage. Throws `SystemError`. */
export function syncFile(fd: number): void {
  check(libc.fsync(fd), () => "Cannot sync the file");
}

/**
 * Gives a range of a file room on the disk, so that later writes to it cannot lack room; its bytes
 * stay. Does nothing where the file system cannot do that. Throws `SystemError`, such as ENOSPC.
 */
export function allocateRange(fd: number, offsetBytes: number, lengthBytes: number): void {
  if (libc.fallocate(fd, 0, offsetBytes, lengthBytes) === 0) return;
  const errno = lastErrno();
  if (errno === Errno.EOPNOTSUPP || errno === Errno.ENODEV) return;
  throw new SystemError(errno, `Cannot allocate ${lengthBytes} bytes of descriptor ${fd}`);
}

/**
 * Frees a range of a file, which then reads as zeros.
 *
 * @returns False when the filesystem does not support it.
 * @throws {SystemError}
 */
export function punchHole(fd: number, offsetBytes: number, lengthBytes: number): boolean {
  checkOffset("free bytes", offsetBytes);
  const mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (libc.fallocate(fd, mode, offsetBytes, lengthBytes) === 0) return true;
  const errno = lastErrno();
  if (errno === Errno.EOPNOTSUPP || errno === Errno.ENODEV || errno === Errno.ENOSYS) return false;
  throw new SystemError(errno, `Cannot free ${lengthBytes} bytes at ${offsetBytes}`);
}

function seek(fd: number, offsetBytes: number, whence: number): number {
  checkOffset("look for data", offsetBytes);
  const found = Number(libc.lseek(fd, offsetBytes, whence));
  if (found >= 0) return found;
  const errno = lastErrno();
  if (errno === Errno.ENXIO) return -1;
  throw new SystemError(errno, `Cannot look for data at ${offsetBytes}`);
}

/**
 * The offset of the next data at or after an offset; -1 when there is none. Throws `SystemError`.
 */
export function seekData(fd: number, offsetBytes: number): number {
  return seek(fd, offsetBytes, SEEK_DATA);
}

/**
 * The offset of the next hole at or after an offset; the end of the file counts as a hole. -1 past
 * the end. Throws `SystemError`.
 */
export function seekHole(fd: number, offsetBytes: number): number {
  return seek(fd, offsetBytes, SEEK_HOLE);
}

/**
 * Takes the exclusive flock(2) of a file without waiting. The kernel releases it when the
 * descriptor is closed, so a dead process leaves no lock.
 *
 * @returns False when another open file has the lock.
 * @throws {SystemError} ENOLCK or EOPNOTSUPP when the filesystem supports no locks.
 */
export function tryLockExclusive(fd: number): boolean {
  if (libc.flock(fd, LOCK_EX | LOCK_NB) === 0) return true;
  const errno = lastErrno();
  if (errno === Errno.EAGAIN) return false;
  throw new SystemError(errno, "Cannot lock the file");
}

/**
 * Whether locks of bytes are advice: whoever does not look at them can read and write there. On an SMB
 * file system they are not, and not even their holder can write to bytes that it has locked.
 */
export function areByteLocksAdvice(fd: number): boolean {
  const status = new Uint8Array(STATFS_BYTES);
  if (libc.fstatfs(fd, status) !== 0) return false;
  return !SMB_TYPES.includes(new DataView(status.buffer).getUint32(0, true));
}

function rangeLock(type: number, byte: number): Uint8Array<ArrayBuffer> {
  const lock = new Uint8Array(FLOCK_BYTES);
  const view = new DataView(lock.buffer);
  view.setInt16(0, type, true);
  view.setBigInt64(8, BigInt(byte), true);
  view.setBigInt64(16, 1n, true);
  return lock;
}

/**
 * Takes the shared lock of a byte of an open file, which others can take, too. It ends with the
 * descriptor. False when that cannot be done.
 */
export function tryLockByteShared(fd: number, byte: number): boolean {
  return libc.fcntlLock(fd, F_OFD_SETLK, rangeLock(F_RDLCK, byte)) === 0;
}

/**
 * Whether another open file has a lock of a byte of a file; false where the file
 * system does not tell.
 */
export function isByteLocked(fd: number, byte: number): boolean {
  const lock = rangeLock(F_WRLCK, byte);
  if (libc.fcntlLock(fd, F_OFD_GETLK, lock) !== 0) return false;
  return new DataView(lock.buffer).getInt16(0, true) !== F_UNLCK;
}

/**
 * Whether a regular file is open by another descriptor than this one, in any process; null where the
 * kernel does not tell, as for files of other users. It takes a write lease for a moment, which the
 * kernel gives only for a file that nobody else has open.
 */
export function isOpenElsewhere(fd: number): boolean | null {
  // Who opens the file in that moment waits for the lease, and this process gets the signal.
  libc.fcntl(fd, F_SETSIG, SIGURG);
  const isAlone = libc.fcntl(fd, F_SETLEASE, F_WRLCK) === 0;
  const errno = isAlone ? 0 : lastErrno();
  if (isAlone) libc.fcntl(fd, F_SETLEASE, F_UNLCK);
  libc.fcntl(fd, F_SETSIG, 0);
  if (isAlone) return false;
  return errno === Errno.EAGAIN ? true : null;
}

/**
 * Waits for the exclusive flock(2) of an open file or folder, and takes it. Throws `SystemError`.
 */
export function lockExclusive(fd: number): void {
  while (libc.flock(fd, LOCK_EX) < 0) {
    if (lastErrno() !== Errno.EINTR) throw new SystemError(lastErrno(), "Cannot lock the file");
  }
}

function fieldOf(view: DataView, offset: number): number {
  return Number(view.getBigInt64(offset, true));
}

/** Clears O_NONBLOCK of an open file. Throws `SystemError`. */
export function makeBlocking(fd: number): void {
  const what = (): string => "Cannot change the flags of the file";
  const flags = check(libc.fcntl(fd, F_GETFL, 0), what);
  check(libc.fcntl(fd, F_SETFL, flags & ~O_NONBLOCK), what);
}

/** The status of an open file. Throws `SystemError`. */
export function fileStatus(fd: number): FileStatus {
  const stat = new Uint8Array(STAT_BYTES);
  check(libc.syscall(SYS_fstat, fd, stat), () => "Cannot get the state of the file");
  const status = decodeStatus(stat);
  return status.kind === "block" ? { ...status, sizeBytes: blockDeviceSize(fd) } : status;
}

/** Decodes a `struct stat` of STAT_BYTES bytes. It does not contain the size of a block device. */
export function decodeStatus(stat: Uint8Array): FileStatus {
  // struct stat (asm/stat.h): st_dev @0, st_ino @8, st_nlink @16, st_mode @24, st_uid @28, st_rdev @40, st_size
  // @48, st_blocks @64, st_mtime @88.
  const view = new DataView(stat.buffer, stat.byteOffset, stat.byteLength);
  const mode = view.getUint32(24, true);
  return {
    sizeBytes: fieldOf(view, 48),
    kind: KINDS.get(mode & S_IFMT) ?? "other",
    device: fieldOf(view, 0),
    inode: fieldOf(view, 8),
    blocksBytes: fieldOf(view, 64) * 512,
    mtimeSeconds: fieldOf(view, 88),
    mode: mode & 0o7777,
    uid: view.getUint32(28, true),
    links: fieldOf(view, 16),
    deviceNode: fieldOf(view, 40),
  };
}

function blockDeviceSize(fd: number): number {
  const size = new BigUint64Array(1);
  check(libc.ioctl(fd, BLKGETSIZE64, size), () => "Cannot get the size of the block device");
  return Number(size[0]);
}

/** The logical sector size of a block device, bytes. Throws `SystemError`. */
export function blockDeviceSectorBytes(fd: number): number {
  const size = new Int32Array(1);
  check(libc.ioctl(fd, BLKSSZGET, size), () => "Cannot get the sector size of the block device");
  return size[0];
}

/**
 * Moves the position of a descriptor forward, where that leaves a hole: at the end of a regular file.
 * False where it does not; nothing has changed then.
 */
export function skipAhead(fd: number, lengthBytes: number): boolean {
  const { kind, sizeBytes } = fileStatus(fd);
  const flags = libc.fcntl(fd, F_GETFL, 0);
  if (kind !== "file" || flags < 0 || (flags & O_APPEND) !== 0) return false;
  if (Number(libc.lseek(fd, 0, SEEK_CUR)) < sizeBytes) return false;
  checkOffset("skip", lengthBytes);
  return Number(libc.lseek(fd, lengthBytes, SEEK_CUR)) >= 0;
}
