/**
 * What io_uring offers here: whether the kernel allows it, and whether it serves a file without
 * threads.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { O_DIRECT } from "./files.ts";
import { openLibcLater } from "./libc.ts";
import { Arena, PAGE_BYTES, SECTOR_BYTES } from "./memory.ts";
import { Uring } from "./uring.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // ssize_t preadv2(int fd, const struct iovec *iov, int iovcnt, off_t offset, int flags)
  preadv2: { parameters: ["i32", "buffer", "i32", "i64", "i32"], result: "isize" },
  // int fcntl(int fd, int op)
  fcntl: { parameters: ["i32", "i32"], result: "i32" },
});

const F_GETFL = 3;
const RWF_NOWAIT = 8;

/** Why io_uring cannot be used; null when it can. Creates a small ring and closes it. */
export function uringMissing(): string | null {
  try {
    new Uring(1, 2).close();
    return null;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    if (error.errno === Errno.ENOSYS) return "the kernel has no io_uring, or an old one (ENOSYS)";
    if (error.errno === Errno.EPERM) {
      return "io_uring is forbidden here (EPERM; see sysctl kernel.io_uring_disabled)";
    }
    return error.message;
  }
}

/**
 * Whether io_uring would run operations on an open file by threads of the kernel. It does so for
 * files without O_DIRECT, always for buffered writes of most filesystems, and for files whose reads
 * do not support RWF_NOWAIT.
 */
export function uringNeedsThreads(fd: number): boolean {
  const flags = libc.fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_DIRECT) === 0) return true;
  const probe = new Arena(PAGE_BYTES);
  const iovec = new BigUint64Array([BigInt(probe.address), BigInt(SECTOR_BYTES)]);
  const result = Number(libc.preadv2(fd, iovec, 1, 0, RWF_NOWAIT));
  const refused = result < 0 && lastErrno() === Errno.EOPNOTSUPP;
  probe.release();
  return refused;
}
