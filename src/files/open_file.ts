/**
 * Opens every image, parent, journal and scanned file. Only regular files and block devices are
 * accepted, and no open waits. Opening a FIFO would wait for its other end, and opening a character
 * device may have side effects, so the type is checked before the file is opened.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  closeFile,
  type FileIdentity,
  type FileKind,
  type FileStatus,
  fileStatus,
  makeBlocking,
  O_CREAT,
  O_DIRECT,
  O_EXCL,
  O_NOCTTY,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  openFile,
} from "../../ffi/files.ts";
import { pathStatus } from "../../ffi/paths.ts";
import { takeLocked } from "./kept_locks.ts";
import { takeLock, type TakenLock } from "./lock.ts";
import { takeAhead } from "./locks_ahead.ts";
import { osFolders, syncNames } from "./names.ts";

/** Mode of new images: the owner may read and write, the group may read. The umask applies. */
const IMAGE_MODE = 0o640;
/** The number of attempts to open a file whose name leads to another file once it is locked. */
const MOST_ATTEMPTS = 10;

const NO_DIRECT = "the filesystem refuses O_DIRECT (EINVAL)";

const KIND_NAMES: Readonly<Record<FileKind, string>> = {
  file: "a regular file",
  block: "a block device",
  directory: "a directory",
  character: "a character device",
  fifo: "a FIFO",
  socket: "a socket",
  other: "of an unknown type",
};

/** Options of opening a file. */
export interface OpenFileOptions {
  /** The file must be this one, which was located before (ESTALE). */
  readonly same?: FileIdentity;
}

/** An open file. */
export interface OpenedFile {
  readonly fd: number;
  readonly status: FileStatus;
  /** Whether the file was opened for writing while a tapdisk holds its lock. */
  readonly isShared: boolean;
  /** The reason why a requested O_DIRECT does not work; null when it works or was not requested. */
  readonly notDirect: string | null;
  /** Whom the lock of a file that was opened for writing does not keep out, and why; null when it keeps out all. */
  readonly weakLock: string | null;
}

/** Whether two descriptors or names stand for the same file. */
export function isSameFile(a: FileIdentity, b: FileIdentity): boolean {
  return a.device === b.device && a.inode === b.inode;
}

/**
 * Refuses files of other types than regular files and block devices.
 *
 * @throws {SystemError} EISDIR for a directory that is opened for writing, else EINVAL.
 */
function refuseSpecialFile(path: string, kind: FileKind, writable: boolean): void {
  if (kind === "file" || kind === "block") return;
  throw new SystemError(
    kind === "directory" && writable ? Errno.EISDIR : Errno.EINVAL,
    `Cannot open ${path}: it is ${KIND_NAMES[kind]}, not a regular file or block device`,
  );
}

/**
 * Opens a regular file or block device for reading, without a lock.
 *
 * @throws {SystemError} EINVAL for a file of another type; errors of open(2); ESTALE for another
 * file.
 */
export function openToRead(
  path: string,
  { same, direct = false }: OpenFileOptions & { direct?: boolean } = {},
): OpenedFile {
  return openExisting(path, { flags: O_RDONLY, direct, same });
}

/**
 * Opens a regular file or block device for writing and takes its lock. Closing the descriptor
 * releases the lock.
 *
 * @param options.lockedBy The caller holds the lock of this file by another descriptor. No lock is
 * taken, and the file must be that one.
 * @param options.besideTapdisk Open the file also while a tapdisk holds its lock (`isShared`).
 * @param options.unlocked Take no lock.
 * @throws {SystemError} EBUSY when another process holds the lock; errors of
 * {@linkcode openToRead}.
 */
export function openToWrite(
  path: string,
  { same, direct = false, lockedBy, besideTapdisk, unlocked = false }: OpenFileOptions & {
    direct?: boolean;
    lockedBy?: FileIdentity;
    besideTapdisk?: boolean;
    unlocked?: boolean;
  } = {},
): OpenedFile {
  if (unlocked) return openExisting(path, { flags: O_RDWR, direct, same });
  if (lockedBy !== undefined) return openExisting(path, { flags: O_RDWR, direct, same: lockedBy });
  const taken = takenFromBefore(path, { direct, same }) ?? lockedAhead(path, { direct, same });
  if (taken !== null) return taken;
  for (let attempt = 1;; attempt++) {
    const opened = openExisting(path, { flags: O_RDWR, direct, same });
    const lock = lockOf(path, opened, besideTapdisk);
    if (lock !== "stale" || attempt >= MOST_ATTEMPTS) {
      const { isShared, weak } = lock === "stale" ? { isShared: false, weak: null } : lock;
      return { ...opened, isShared, weakLock: weak };
    }
    closeFile(opened.fd);
  }
}

/**
 * Opens a file for new content and takes its lock. An existing file is opened as by
 * {@linkcode openToWrite}, and its content is kept. Otherwise the file is created.
 *
 * @throws {SystemError} ENOENT for a symbolic link to a missing file; errors of
 * {@linkcode openToWrite}.
 */
export function openToReplace(path: string, { same }: OpenFileOptions = {}): OpenedFile {
  for (let attempt = 1;; attempt++) {
    try {
      return openToWrite(path, { direct: isBlockDevice(path), same });
    } catch (error) {
      const isFree = same === undefined && isErrno(error, Errno.ENOENT);
      if (!isFree || attempt >= MOST_ATTEMPTS) throw error;
    }
    try {
      return openNew(path);
    } catch (error) {
      if (!isErrno(error, Errno.EEXIST)) throw error;
    }
  }
}

/**
 * Creates a file and takes its lock. Links are not followed.
 *
 * @throws {SystemError} EEXIST when the name exists, including a link to a missing file.
 */
export function openNew(path: string): OpenedFile {
  const fd = openFile(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, IMAGE_MODE);
  try {
    const { weak: weakLock } = takeLock(fd, path, fileStatus(fd));
    syncNames(osFolders, [path]);
    return { fd, status: fileStatus(fd), isShared: false, notDirect: null, weakLock };
  } catch (error) {
    closeFile(fd);
    throw error;
  }
}

function isErrno(error: unknown, errno: number): boolean {
  return error instanceof SystemError && error.errno === errno;
}

/** Whether a name leads to a block device; false when the file is missing. */
export function isBlockDevice(path: string): boolean {
  try {
    return pathStatus(path).kind === "block";
  } catch (error) {
    if (isErrno(error, Errno.ENOENT)) return false;
    throw error;
  }
}

/** Takes the lock. "stale": the name leads to another file now. Closes the file before it throws. */
function lockOf(
  path: string,
  { fd, status }: OpenedFile,
  besideTapdisk?: boolean,
): TakenLock | "stale" {
  try {
    const lock = takeLock(fd, path, status, { besideTapdisk });
    return isSameFile(status, pathStatus(path)) ? lock : "stale";
  } catch (error) {
    closeFile(fd);
    if (isErrno(error, Errno.ENOENT)) {
      throw new SystemError(Errno.ENOENT, `Cannot open ${path} for writing`);
    }
    throw error;
  }
}

/**
 * The type of the file that a name leads to. The error for a missing file says that it cannot be
 * opened.
 */
function kindOf(path: string): FileKind {
  try {
    return pathStatus(path).kind;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    throw new SystemError(error.errno, `Cannot open ${path}`);
  }
}

/** The file with the lock that this process, or the one before it, had; null without one. */
function takenFromBefore(
  path: string,
  { direct, same }: { direct: boolean; same?: FileIdentity },
): OpenedFile | null {
  const taken = takeLocked(path, { access: O_RDWR, direct });
  if (taken === null) return null;
  const { fd, status, isDirect } = taken;
  if (same !== undefined && !isSameFile(status, same)) {
    closeFile(fd);
    return null;
  }
  const notDirect = direct && !isDirect ? NO_DIRECT : null;
  return { fd, status, isShared: false, notDirect, weakLock: null };
}

/** The file that was opened and locked on a thread; null without one. */
function lockedAhead(
  path: string,
  { direct, same }: { direct: boolean; same?: FileIdentity },
): OpenedFile | null {
  const ahead = takeAhead(path, direct);
  if (ahead === null) return null;
  const { fd, status, weak } = ahead;
  try {
    if (same !== undefined && !isSameFile(status, same)) throw replaced(path);
    const weakLock = weak ?? takeLock(fd, path, status, { isHeld: true }).weak;
    return { fd, status, isShared: false, notDirect: null, weakLock };
  } catch (error) {
    closeFile(fd);
    throw error;
  }
}

function replaced(path: string): SystemError {
  const why = "it was replaced by another file while it was being opened";
  return new SystemError(Errno.ESTALE, `Cannot open ${path}: ${why}; try again`);
}

function openExisting(
  path: string,
  { flags, direct, same }: { flags: number; direct: boolean; same?: FileIdentity },
): OpenedFile {
  refuseSpecialFile(path, kindOf(path), flags !== O_RDONLY);
  let notDirect: string | null = null;
  let fd: number;
  // O_NONBLOCK: the name may have become a FIFO, whose open would wait.
  const quiet = flags | O_NONBLOCK | O_NOCTTY;
  try {
    fd = openFile(path, direct ? quiet | O_DIRECT : quiet);
  } catch (error) {
    if (!direct || !isErrno(error, Errno.EINVAL)) throw error;
    notDirect = NO_DIRECT;
    fd = openFile(path, quiet);
  }
  try {
    const status = fileStatus(fd);
    refuseSpecialFile(path, status.kind, flags !== O_RDONLY);
    if (same !== undefined && !isSameFile(status, same)) throw replaced(path);
    makeBlocking(fd);
    return { fd, status, isShared: false, notDirect, weakLock: null };
  } catch (error) {
    closeFile(fd);
    throw error;
  }
}
