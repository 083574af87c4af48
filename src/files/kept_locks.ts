/**
 * Locks that outlast the closing of their files, for a tapdisk whose disks another tapdisk takes over.
 * A lock belongs to the open file, and lives as long as one descriptor of it. A tapdisk that is to be
 * replaced keeps a second descriptor of each file that it has locked, and hands it over. Whoever opens
 * such a file again, in this process or in the next, gets that open file. So at no moment is an image
 * without its lock.
 *
 * @module
 */
import { descriptorFlags, duplicate } from "../../ffi/descriptors.ts";
import { SystemError } from "../../ffi/errno.ts";
import {
  closeFile,
  type FileStatus,
  fileStatus,
  O_DIRECT,
  O_RDWR,
  O_WRONLY,
} from "../../ffi/files.ts";
import { namesInFolder, pathStatus } from "../../ffi/paths.ts";

/** Descriptors of locked files, by device and inode. */
const kept = new Map<string, number>();

const FOLDER = "/proc/self/fdinfo";
/** A line of fdinfo (fs/locks.c): `lock:\t1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`. */
const IS_LOCKED = /^lock:\s+\d+: FLOCK +\S+ +WRITE /m;

function keyOf({ device, inode }: { device: number; inode: number }): string {
  return `${device}:${inode}`;
}

/** The descriptors that hold an exclusive flock(2). Throws `SystemError` when /proc is not there. */
function lockedDescriptors(): number[] {
  return namesInFolder(FOLDER).map(Number).filter((fd) => {
    try {
      return IS_LOCKED.test(Deno.readTextFileSync(`${FOLDER}/${fd}`));
    } catch {
      // The descriptor of the listing itself is closed by now.
      return false;
    }
  });
}

/**
 * Keeps the locks of all files of this process, whatever is closed from now on, until `dropLocks`.
 *
 * @returns The kept descriptors. Only `dropLocks` and `takeLocked` may close them.
 * @throws {SystemError} EMFILE; or /proc is not there. No lock is kept then.
 */
export function keepLocks(): number[] {
  try {
    for (const fd of lockedDescriptors()) adoptLock(duplicate(fd));
  } catch (error) {
    dropLocks();
    throw error;
  }
  return [...kept.values()];
}

/** Keeps the lock of a descriptor that another process has kept; owns the descriptor from then on. */
export function adoptLock(fd: number): void {
  const key = keyOf(fileStatus(fd));
  const known = kept.get(key);
  kept.set(key, fd);
  if (known !== undefined) leaveFile(known);
}

/** Closes what was kept and not taken: those locks end with the files that are open otherwise. */
export function dropLocks(): void {
  for (const fd of kept.values()) leaveFile(fd);
  kept.clear();
}

/**
 * Closes a descriptor. An NFS server that has no room for what was written tells so then; the disk hears
 * of it by its own descriptor, and here nothing waits for the data.
 */
function leaveFile(fd: number): void {
  try {
    closeFile(fd);
  } catch {
    // It is closed all the same (close(2)).
  }
}

/** Whether the lock of a file is kept: whoever opens it gets that open file. */
export function isLockKept(file: { device: number; inode: number }): boolean {
  return kept.has(keyOf(file));
}

/** An open file, with its lock, that was kept. */
export interface TakenFile {
  readonly fd: number;
  readonly status: FileStatus;
  /** Whether it is open with O_DIRECT. */
  readonly isDirect: boolean;
}

/**
 * Another descriptor of the open file that was kept for a path; null without one. It stays kept, so
 * that the file can be opened again when the next process cannot.
 *
 * @param options.access O_RDWR or O_RDONLY: how the file would be opened otherwise.
 * @param options.direct Whether it would be opened with O_DIRECT, where the filesystem can.
 */
export function takeLocked(
  path: string,
  { access, direct }: { access: number; direct: boolean },
): TakenFile | null {
  if (kept.size === 0) return null;
  try {
    const fd = kept.get(keyOf(pathStatus(path)));
    if (fd === undefined) return null;
    const flags = descriptorFlags(fd);
    const isDirect = (flags & O_DIRECT) !== 0;
    if ((flags & (O_RDWR | O_WRONLY)) !== access || (isDirect && !direct)) return null;
    const copy = duplicate(fd);
    return { fd: copy, status: fileStatus(copy), isDirect };
  } catch (error) {
    // A path that leads nowhere: opening it tells why.
    if (error instanceof SystemError) return null;
    throw error;
  }
}
