/**
 * The room of filesystems.
 *
 * @module
 */
import { lastErrno, SystemError } from "./errno.ts";
import { closeFile, O_PATH, openFile } from "./files.ts";
import { openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int fstatfs(int fd, struct statfs *buf)
  fstatfs: { parameters: ["i32", "buffer"], result: "i32" },
});

// struct statfs on x86-64: long f_bsize @8, u64 f_bavail @32.
const STATFS_BYTES = 120;

/** Bytes that an ordinary user may still use of the filesystem that a file is on. Throws `SystemError`. */
export function freeBytes(path: string): number {
  const fd = openFile(path, O_PATH);
  try {
    const status = new Uint8Array(STATFS_BYTES);
    if (libc.fstatfs(fd, status) !== 0) {
      throw new SystemError(lastErrno(), `Cannot look at ${path}`);
    }
    const view = new DataView(status.buffer);
    return Number(view.getBigInt64(8, true) * view.getBigUint64(32, true));
  } finally {
    closeFile(fd);
  }
}
