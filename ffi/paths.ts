/**
 * Files by path, with calls that block: status, links, listings and renames. Unlike the runtime's
 * own calls these handle names that are not UTF-8, see `names.ts`. All throw `SystemError`.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import {
  closeFile,
  decodeStatus,
  type FileStatus,
  O_DIRECTORY,
  O_RDONLY,
  openFile,
  STAT_BYTES,
} from "./files.ts";
import { cString, openLibcLater } from "./libc.ts";
import { nameAt } from "./names.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // char *realpath(const char *path, char *resolved_path)
  realpath: { parameters: ["buffer", "buffer"], result: "pointer" },
  // int rename(const char *oldpath, const char *newpath)
  rename: { parameters: ["buffer", "buffer"], result: "i32" },
  // int link(const char *oldpath, const char *newpath)
  link: { parameters: ["buffer", "buffer"], result: "i32" },
  // int unlink(const char *pathname)
  unlink: { parameters: ["buffer"], result: "i32" },
  // ssize_t readlink(const char *path, char *buf, size_t bufsiz)
  readlink: { parameters: ["buffer", "buffer", "usize"], result: "i32" },
  // long syscall(long number, int olddirfd, const char *oldpath, int newdirfd, const char *newpath,
  // unsigned int flags): renameat2, for which older versions of glibc have no wrapper
  renameat2Syscall: {
    name: "syscall",
    parameters: ["i64", "i32", "buffer", "i32", "buffer", "u32"],
    result: "i32",
  },
  // char *getcwd(char *buf, size_t size)
  getcwd: { parameters: ["buffer", "usize"], result: "pointer" },
  // long syscall(long number, const char *path, struct stat *buf): stat and lstat, in any glibc
  statSyscall: { name: "syscall", parameters: ["i64", "buffer", "buffer"], result: "i32" },
  // long syscall(long number, int fd, void *dirp, size_t count): getdents64
  listSyscall: { name: "syscall", parameters: ["i64", "i32", "buffer", "usize"], result: "i32" },
});

const SYS_stat = 4;
const SYS_lstat = 6;
const SYS_getdents64 = 217;
const SYS_renameat2 = 316;
const AT_FDCWD = -100;
const RENAME_NOREPLACE = 1;
const PATH_MAX = 4096;
const LIST_BYTES = 65536;

/** The status of a path; with `link` of the link itself. The size of a block device is 0. */
export function pathStatus(path: string, { link = false } = {}): FileStatus {
  const stat = new Uint8Array(STAT_BYTES);
  if (libc.statSyscall(link ? SYS_lstat : SYS_stat, cString(path), stat) < 0) {
    throw new SystemError(lastErrno(), `Cannot stat ${path}`);
  }
  return decodeStatus(stat);
}

/** Whether a path exists. With `link`, a symbolic link without a target counts too. */
export function pathExists(path: string, { link = false } = {}): boolean {
  if (path.includes("\0")) return false;
  const stat = new Uint8Array(STAT_BYTES);
  return libc.statSyscall(link ? SYS_lstat : SYS_stat, cString(path), stat) >= 0;
}

/** The absolute path without symbolic links. The file must exist. */
export function realPath(path: string): string {
  const resolved = new Uint8Array(PATH_MAX);
  if (libc.realpath(cString(path), resolved) === null) {
    throw new SystemError(lastErrno(), `Cannot resolve ${path}`);
  }
  return nameAt(resolved, 0);
}

/** The content of a symbolic link. */
export function linkTarget(path: string): string {
  // One byte more than readlink may fill, so that the name ends with a NUL.
  const target = new Uint8Array(PATH_MAX + 1);
  if (libc.readlink(cString(path), target, PATH_MAX) < 0) {
    throw new SystemError(lastErrno(), `Cannot read the link ${path}`);
  }
  return nameAt(target, 0);
}

/** The working folder of the process. */
export function workingFolder(): string {
  const folder = new Uint8Array(PATH_MAX);
  if (libc.getcwd(folder, PATH_MAX) === null) {
    throw new SystemError(lastErrno(), "Cannot find out the working folder");
  }
  return nameAt(folder, 0);
}

/** All names in a folder except `.` and `..`, in no particular order. */
export function namesInFolder(folder: string): string[] {
  const fd = openFile(folder, O_RDONLY | O_DIRECTORY);
  try {
    const names: string[] = [];
    const entries = new Uint8Array(LIST_BYTES);
    for (;;) {
      const length = libc.listSyscall(SYS_getdents64, fd, entries, LIST_BYTES);
      if (length === 0) return names;
      if (length < 0) {
        if (lastErrno() === Errno.EINTR) continue;
        throw new SystemError(lastErrno(), `Cannot list ${folder}`);
      }
      addNames(names, entries.subarray(0, length));
    }
  } finally {
    closeFile(fd);
  }
}

/**
 * Adds the names of a sequence of `struct linux_dirent64` (linux/dirent.h): u16 d_reclen @16,
 * char d_name[] @19.
 */
function addNames(names: string[], entries: Uint8Array): void {
  for (let at = 0; at < entries.length;) {
    const name = nameAt(entries, at + 19);
    if (name !== "." && name !== "..") names.push(name);
    at += entries[at + 16] | (entries[at + 17] << 8);
  }
}

/** Renames a file atomically. It replaces an existing `to`. */
export function renamePath(from: string, to: string): void {
  if (libc.rename(cString(from), cString(to)) === 0) return;
  throw new SystemError(lastErrno(), `Cannot rename ${from} to ${to}`);
}

/** Renames a file in the same filesystem. EEXIST when `to` exists. */
export function renamePathToNew(from: string, to: string): void {
  const [oldName, newName] = [cString(from), cString(to)];
  const at = AT_FDCWD;
  if (libc.renameat2Syscall(SYS_renameat2, at, oldName, at, newName, RENAME_NOREPLACE) === 0) {
    return;
  }
  const errno = lastErrno();
  if (errno !== Errno.EINVAL && errno !== Errno.ENOSYS) {
    throw new SystemError(errno, `Cannot rename ${from} to ${to}`);
  }
  // NFS and old kernels do not support the flag. A hard link fails for an existing name too.
  linkPath(from, to);
  removePath(from);
}

/** Creates a hard link. EEXIST when `to` exists. */
export function linkPath(from: string, to: string): void {
  if (libc.link(cString(from), cString(to)) === 0) return;
  throw new SystemError(lastErrno(), `Cannot link ${from} to ${to}`);
}

/** Removes a name that is not a folder. */
export function removePath(path: string): void {
  if (libc.unlink(cString(path)) === 0) return;
  throw new SystemError(lastErrno(), `Cannot remove ${path}`);
}
