/**
 * Whether a name still leads to a file that is open, when the server of the file does not know the open
 * file any more (ESTALE, or EBADF of NFS version 4). To take another file for it would write a disk's data
 * into an image that is not the disk's, or lose what was written since a copy was made. So all of this must
 * be the same or later:
 *
 * - the device and the inode number: the same filesystem, which the same server exports;
 * - the handle: another file that got the inode number of a removed one has a different handle;
 * - the size, which is not less, and the time of the last change, which is not earlier, than when the file
 *   was opened, or later where the kernel still tells: a file that was put back to an earlier state has the
 *   same handle. No program can set that time.
 *
 * The lock may have been lost, and another host may have had it since. No server gives a lock to another
 * host before its lease has passed, or its grace time after a start; until then the file is as it was. After
 * that it must not have been changed at all.
 *
 * @module
 */
import { errnoName, SystemError } from "../../ffi/errno.ts";
import { fileHandle, type LastKnown, lastKnown } from "../../ffi/file_handle.ts";
import {
  closeFile,
  type FileStatus,
  O_NOCTTY,
  O_NONBLOCK,
  O_RDONLY,
  openAside,
} from "../../ffi/files.ts";

/** What was noted of an open file. */
export interface FileNote {
  readonly handle: string;
  readonly known: LastKnown;
}

/** Notes what tells an open file from others; null for a block device, and where there are no handles. */
export function noteFile(fd: number, { kind }: FileStatus): FileNote | null {
  return kind === "file" ? unlessRefused(() => noteOf(fd)) : null;
}

function noteOf(fd: number): FileNote {
  return { handle: fileHandle(fd), known: lastKnown(fd) };
}

/** What a call returns; null when it throws a `SystemError`. */
function unlessRefused<T>(call: () => T): T | null {
  try {
    return call();
  } catch (error) {
    if (error instanceof SystemError) return null;
    throw error;
  }
}

/** An open file, and what was noted of it when it was opened. */
export interface NotedFile {
  readonly fd: number;
  readonly note: FileNote | null;
  /** Whether it may have been changed since the kernel last heard of it. */
  readonly mayHaveChanged: boolean;
}

/**
 * Opens the file that a name leads to now, by another thread, as the server may not answer.
 *
 * @returns The descriptor, which the caller closes; -1 when the file cannot be opened.
 */
export function openByName(path: string): Promise<number> {
  // O_NONBLOCK: the name may have become a FIFO, whose open would wait.
  return openAside(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
}

/**
 * Why the file of a descriptor is not provably the noted one, as the end of a sentence about it; null when
 * it is. Closes the descriptor.
 */
export function whyNotSame(
  fdByName: number,
  { fd, note, mayHaveChanged }: NotedFile,
): string | null {
  if (fdByName < 0) return "cannot be opened";
  try {
    if (note === null) return "has no handle on its filesystem that would tell it from others";
    const { handle, known } = noteOf(fdByName);
    if (!known.isRegular || known.place !== note.known.place) return "is another file now";
    if (handle !== note.handle) return "has another handle now";
    const before = unlessRefused(() => lastKnown(fd)) ?? note.known;
    return whyEarlier(before, known) ?? (mayHaveChanged ? null : whyChanged(before, known));
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return `tells nothing of itself (${errnoName(error.errno)})`;
  } finally {
    closeFile(fdByName);
  }
}

function whyEarlier(before: LastKnown, now: LastKnown): string | null {
  if (now.sizeBytes < before.sizeBytes) {
    return `has ${now.sizeBytes} bytes, and had ${before.sizeBytes}`;
  }
  const [seconds, nanoseconds] = now.changed;
  const [beforeSeconds, beforeNanoseconds] = before.changed;
  const isEarlier = seconds < beforeSeconds ||
    (seconds === beforeSeconds && nanoseconds < beforeNanoseconds);
  return isEarlier ? "is what it was at an earlier time" : null;
}

function whyChanged(before: LastKnown, now: LastKnown): string | null {
  const isUnchanged = before.changed.every((part, index) => part === now.changed[index]);
  return isUnchanged ? null : "was changed, perhaps by another host that has had its lock";
}
