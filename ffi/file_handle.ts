/**
 * What tells a file from all others: its handle, and what the kernel knows of it without asking the
 * server that holds it. Both throw `SystemError`.
 *
 * @module
 */
import { lastErrno, SystemError } from "./errno.ts";
import { openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int name_to_handle_at(int dirfd, const char *pathname, struct file_handle *handle, int *mount_id,
  // int flags)
  name_to_handle_at: { parameters: ["i32", "buffer", "buffer", "buffer", "i32"], result: "i32" },
  // long syscall(long number, int dirfd, const char *pathname, int flags, unsigned int mask, struct statx
  // *statxbuf): statx, for which older versions of glibc have no wrapper
  statxSyscall: {
    name: "syscall",
    parameters: ["i64", "i32", "buffer", "i32", "u32", "buffer"],
    result: "i32",
  },
});

const SYS_statx = 332;
/** fcntl.h: the name is empty, and the descriptor is the file. */
const AT_EMPTY_PATH = 0x1000;
/** fcntl.h: what is known is told, and no server is asked. */
const AT_STATX_DONT_SYNC = 0x4000;
/** struct file_handle: handle_bytes @0, handle_type @4, f_handle @8; MAX_HANDLE_SZ bytes at most. */
const HANDLE_OFFSET = 8;
const MAX_HANDLE_SZ = 128;
/**
 * struct statx: stx_mode @28, stx_ino @32, stx_size @40, stx_ctime @96 (tv_sec, then tv_nsec),
 * stx_dev_major @136, stx_dev_minor @140.
 */
const STATX_BYTES = 256;
const STATX_BASIC_STATS = 0x7ff;
const S_IFMT = 0o170000;
const S_IFREG = 0o100000;
const EMPTY_NAME = new Uint8Array(1);

/**
 * The handle of an open file: bytes by which an NFS server, or the kernel, finds the file. A file that is
 * removed, and another that gets its inode, have different ones.
 *
 * @returns Its type and bytes in hexadecimal.
 * @throws {SystemError} EOPNOTSUPP where the filesystem has none; EOVERFLOW for one that is too long.
 */
export function fileHandle(fd: number): string {
  const handle = new Uint8Array(HANDLE_OFFSET + MAX_HANDLE_SZ);
  const view = new DataView(handle.buffer);
  view.setUint32(0, MAX_HANDLE_SZ, true);
  const mount = new Uint8Array(4);
  if (libc.name_to_handle_at(fd, EMPTY_NAME, handle, mount, AT_EMPTY_PATH) < 0) {
    throw new SystemError(lastErrno(), "Cannot get the handle of the file");
  }
  const end = HANDLE_OFFSET + view.getUint32(0, true);
  return `${view.getInt32(4, true)}:${handle.subarray(HANDLE_OFFSET, end).toHex()}`;
}

/** What the kernel knows of a file. */
export interface LastKnown {
  readonly isRegular: boolean;
  /** The numbers of its device, and its own. */
  readonly place: string;
  readonly sizeBytes: number;
  /** Of the change time (ctime), which no program can set: seconds since 1970, and nanoseconds. */
  readonly changed: readonly [number, number];
}

/**
 * What the kernel knows of an open file. It asks no server: once a server has answered with ESTALE, the
 * kernel refuses fstat(2) until no descriptor of the file is open, even when the server knows the file again.
 */
export function lastKnown(fd: number): LastKnown {
  const status = new Uint8Array(STATX_BYTES);
  const flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC;
  if (libc.statxSyscall(SYS_statx, fd, EMPTY_NAME, flags, STATX_BASIC_STATS, status) < 0) {
    throw new SystemError(lastErrno(), "Cannot get what is known of the file");
  }
  const view = new DataView(status.buffer);
  return {
    isRegular: (view.getUint16(28, true) & S_IFMT) === S_IFREG,
    place: `${view.getUint32(136, true)}:${view.getUint32(140, true)}:${
      view.getBigUint64(32, true)
    }`,
    sizeBytes: Number(view.getBigUint64(40, true)),
    changed: [Number(view.getBigInt64(96, true)), view.getUint32(104, true)],
  };
}
