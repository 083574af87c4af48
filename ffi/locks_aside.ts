/**
 * Locks of files that another thread takes, as the kernel may wait for a server.
 *
 * @module
 */
import { openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int flock(int fd, int operation), by another thread; its errno is lost
  flockAside: { name: "flock", parameters: ["i32", "i32"], result: "i32", nonblocking: true },
  // int fcntl(int fd, int op, struct flock *lock), by another thread; its errno is lost
  fcntlLockAside: {
    name: "fcntl",
    parameters: ["i32", "i32", "buffer"],
    result: "i32",
    nonblocking: true,
  },
});

const LOCK_EX = 2;
const LOCK_NB = 4;
const F_OFD_GETLK = 36;
const F_WRLCK = 1;
const F_UNLCK = 2;
// struct flock: i16 type @0, i16 whence @2, i64 start @8, i64 length @16 (0: to the end), i32 pid @24
const FLOCK_BYTES = 32;

/** Takes the exclusive flock(2) of an open file by another thread; false when that cannot be done now. */
export async function tryLockAside(fd: number): Promise<boolean> {
  return await libc.flockAside(fd, LOCK_EX | LOCK_NB) === 0;
}

/**
 * Whether another open file has a lock of a file, as far as its server knows: on NFS an flock(2) is there a
 * lock of all bytes. Asks by another thread; false where nobody tells.
 */
export async function isLockedAside(fd: number): Promise<boolean> {
  const lock = new Uint8Array(FLOCK_BYTES);
  const view = new DataView(lock.buffer);
  view.setInt16(0, F_WRLCK, true);
  if (await libc.fcntlLockAside(fd, F_OFD_GETLK, lock) !== 0) return false;
  return view.getInt16(0, true) !== F_UNLCK;
}
