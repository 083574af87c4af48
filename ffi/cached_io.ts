/**
 * Transfers between files and I/O memory that end within the call: for short ones in the page cache.
 *
 * @module
 */
import { lastErrno } from "./errno.ts";
import { openLibc } from "./libc.ts";
import { memoryAddress, requireMemory } from "./memory.ts";

const libc = /* @__PURE__ */ openLibc({
  // ssize_t pread(int fd, void *buf, size_t count, off_t offset); counts stay below 2 GiB here
  pread: { parameters: ["i32", "usize", "usize", "i64"], result: "i32" },
  // ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset)
  pwrite: { parameters: ["i32", "usize", "usize", "i64"], result: "i32" },
  // ssize_t preadv(int fd, const struct iovec *iov, int iovcnt, off_t offset)
  preadv: { parameters: ["i32", "usize", "i32", "i64"], result: "i32" },
  // ssize_t pwritev(int fd, const struct iovec *iov, int iovcnt, off_t offset)
  pwritev: { parameters: ["i32", "usize", "i32", "i64"], result: "i32" },
});

/** A transfer: its file, and its place there and in I/O memory. */
export interface Transfer {
  readonly fd: number;
  readonly isWrite: boolean;
  /** Sector of I/O memory at which the buffer begins, or with `isVectored` the iovecs. */
  readonly memorySector: number;
  /** Bytes of the buffer, or with `isVectored` the number of iovecs. */
  readonly length: number;
  readonly isVectored: boolean;
  readonly offsetBytes: number;
}

/** Moves bytes; returns how many, or a negative errno. */
export function transferNow(
  { fd, isWrite, memorySector, length, isVectored, offsetBytes }: Transfer,
): number {
  requireMemory(memorySector, length, isVectored);
  const address = memoryAddress(memorySector);
  const call = isVectored
    ? (isWrite ? libc.pwritev : libc.preadv)
    : (isWrite ? libc.pwrite : libc.pread);
  const moved = call(fd, address, length, offsetBytes);
  return moved >= 0 ? moved : -lastErrno();
}
