/**
 * Transfers between memory and descriptors that have no position, such as character devices. Sockets
 * have calls of their own in `sockets.ts`.
 *
 * @module
 */
import { lastErrno } from "./errno.ts";
import { openLibc } from "./libc.ts";

const libc = /* @__PURE__ */ openLibc({
  // ssize_t read(int fd, void *buf, size_t count); lengths stay below 2 GiB
  read: { parameters: ["i32", "usize", "usize"], result: "i32" },
  // ssize_t write(int fd, const void *buf, size_t count)
  write: { parameters: ["i32", "usize", "usize"], result: "i32" },
});

/** Reads into memory. Returns bytes, 0 at the end, or -errno. */
export function readStream(fd: number, address: number, lengthBytes: number): number {
  const got = libc.read(fd, address, lengthBytes);
  return got >= 0 ? got : -lastErrno();
}

/** Writes from memory. Returns the bytes that were taken, or -errno. */
export function writeStream(fd: number, address: number, lengthBytes: number): number {
  const put = libc.write(fd, address, lengthBytes);
  return put >= 0 ? put : -lastErrno();
}
