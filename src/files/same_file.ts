/**
 * Whether a name still leads to a file that is open, when the server of the file does not know the open
 * file any more (ESTALE, or EBADF of NFS version 4). To take another file for it would write a disk's data
 * into an image that is not the disk's, or lose what was written since a copy was made. So all of this must
 * be the same or later:
 *
 * - the device and the inode number: the same filesystem, which the same server exports;
 * - the handle: another file that got the inode number of a removed one has a different handle;
 * - the size, which is not less, and the time of the last change, which is not earlier, than the kernel knew
 *   of the open file; nor is that time earlier than when the file was opened. A file that was put back to an
 *   earlier state has the same handle. No program can set that time.
 *
 * The lock may have been lost, and another host may have had it since. No server gives a lock to another
 * host before its lease has passed, or its grace time after a start; until then the file is as it was. After
 * that it must not have been changed at all.
 *
 * What the kernel knows of the open file is asked before the name is looked up, and not again until an
 * operation succeeds: a lookup may tell the kernel the present state for the open file, too, and a file that
 * is compared with itself is always the same.
 *
 * What is known of the file that the name leads to is the server's word of that moment, as opening a file asks
 * the server, whatever the kernel's cache of attributes has (nfs(5), close-to-open). With `nocto` it does not,
 * before version 4, and nothing is proven.
 *
 * @module
 */
import { AssertionError } from "../../ffi/assert.ts";
import { Errno, errnoName, SystemError } from "../../ffi/errno.ts";
import { fileHandle, type LastKnown, lastKnown } from "../../ffi/file_handle.ts";
import {
  closeFile,
  type FileStatus,
  O_NOCTTY,
  O_NONBLOCK,
  O_RDONLY,
  openAside,
} from "../../ffi/files.ts";
import { nfsMountOf } from "./nfs_mount.ts";

/** What was noted of an open file. */
export interface FileNote {
  readonly handle: string;
  readonly known: LastKnown;
  /** Whether its mount lets it be opened without a word of its server. */
  readonly isOpenedUnasked: boolean;
}

/** Notes what tells an open file from others; null for a block device, and where there are no handles. */
export function noteFile(fd: number, { kind, device }: FileStatus): FileNote | null {
  if (kind !== "file") return null;
  const isOpenedUnasked = nfsMountOf(device)?.isOpenedUnasked === true;
  return unlessRefused(() => ({ ...tellOf(fd), isOpenedUnasked }));
}

function tellOf(fd: number): Omit<FileNote, "isOpenedUnasked"> {
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

/** The numbers of an open file and its device; null where the kernel does not tell. */
export function placeOf(fd: number): string | null {
  return unlessRefused(() => lastKnown(fd))?.place ?? null;
}

/**
 * What the kernel knows of an open file; null when it does not tell.
 *
 * @param place What `placeOf` said when the file was opened.
 * @throws {AssertionError} The descriptor is closed, or that of another file, by a fault of this program.
 * EBADF is not the server's word then, and what is tried again could be written into that other file.
 */
export function knownOf(fd: number, path: string, place: string | null): LastKnown | null {
  try {
    const known = lastKnown(fd);
    if (place === null || known.place === place) return known;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    if (error.errno !== Errno.EBADF) return null;
  }
  throw new AssertionError(`Descriptor ${fd} of ${path} was closed, or is another file's`);
}

/** What was noted of an open file when it was opened, and is known of it since. */
export interface NotedFile {
  readonly note: FileNote | null;
  /** What the kernel knew before the name was looked up; null when it did not tell. */
  readonly before: LastKnown | null;
  /** Whether it may have been changed since the kernel last heard of it. */
  readonly mayHaveChanged: boolean;
}

/** What `whyNotSame` says of a name that leads to no file that can be opened now. */
export const CANNOT_OPEN = "cannot be opened";

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
 * Why the file of a descriptor, which its name led to, is not provably the noted one, as the end of a sentence
 * about it; null when it is. Closes the descriptor.
 */
export function whyNotSame(
  fdByName: number,
  { note, before, mayHaveChanged }: NotedFile,
): string | null {
  if (fdByName < 0) return CANNOT_OPEN;
  try {
    if (note === null) return "has no handle on its filesystem that would tell it from others";
    if (note.isOpenedUnasked) {
      return "is on a mount with nocto, which opens files without asking the server";
    }
    const { handle, known } = tellOf(fdByName);
    if (!known.isRegular || known.place !== note.known.place) return "is another file now";
    if (handle !== note.handle) return "has another handle now";
    const last = before ?? note.known;
    if (isEarlier(known, note.known)) return EARLIER;
    return whyEarlier(last, known) ?? (mayHaveChanged ? null : whyChanged(last, known));
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return `tells nothing of itself (${errnoName(error.errno)})`;
  } finally {
    closeFile(fdByName);
  }
}

const EARLIER = "is what it was at an earlier time";

function isEarlier(
  { changed: [seconds, nanoseconds] }: LastKnown,
  { changed }: LastKnown,
): boolean {
  return seconds < changed[0] || (seconds === changed[0] && nanoseconds < changed[1]);
}

function whyEarlier(before: LastKnown, now: LastKnown): string | null {
  if (now.sizeBytes < before.sizeBytes) {
    return `has ${now.sizeBytes} bytes, and had ${before.sizeBytes}`;
  }
  return isEarlier(now, before) ? EARLIER : null;
}

function whyChanged(before: LastKnown, now: LastKnown): string | null {
  const isUnchanged = before.changed.every((part, index) => part === now.changed[index]);
  return isUnchanged ? null : "was changed, perhaps by another host that has had its lock";
}
