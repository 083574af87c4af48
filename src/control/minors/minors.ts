/**
 * `src/control/minors`: minors, the small numbers that name devices, and what is kept of them in
 * files. Each minor has a file. A process that allocates or frees a minor holds the lock of the
 * folder. A tapdisk that has a minor holds the lock of its file; the lock ends with the process. The
 * folder must not talk to a tapdisk.
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import {
  closeFile,
  fileStatus,
  lockExclusive,
  O_CREAT,
  O_EXCL,
  O_RDONLY,
  O_WRONLY,
  openFile,
  tryLockExclusive,
} from "../../../ffi/files.ts";
import { takeLocked } from "../../files/kept_locks.ts";
import { readMinorRecord, recoveryHint, removeMinorLeftovers } from "./minor_record.ts";
import {
  minorPath,
  minorsFolder,
  namesIn,
  numberAfter,
  prepareFolders,
  requireOwnFolder,
} from "../paths.ts";

/** One more than the largest minor. */
export const MAX_ID = 16384;

function withFolderLocked<Result>(work: () => Result): Result {
  requireOwnFolder(minorsFolder());
  const folder = openFile(minorsFolder(), O_RDONLY);
  try {
    lockExclusive(folder);
    return work();
  } finally {
    closeFile(folder);
  }
}

/** The minors that are allocated, in ascending order. Throws `SystemError`. */
export function listMinors(): number[] {
  requireOwnFolder(minorsFolder());
  return namesIn(minorsFolder())
    .map((name) => numberAfter(name, "tapdisk-"))
    .filter((minor) => minor !== undefined)
    .sort((a, b) => a - b);
}

/** Allocates the lowest free minor. Throws `SystemError` (EUSERS when all are taken). */
export function allocateMinor(): number {
  prepareFolders();
  return withFolderLocked(() => {
    const taken = new Set(listMinors());
    let minor = 0;
    while (taken.has(minor)) minor++;
    if (minor >= MAX_ID) {
      throw new SystemError(Errno.EUSERS, `Cannot allocate a minor: all ${MAX_ID} are taken`);
    }
    // A version that does not know of these may have freed the minor.
    removeMinorLeftovers(minor);
    closeFile(openFile(minorPath(minor), O_CREAT | O_EXCL | O_WRONLY, 0o600));
    return minor;
  });
}

/**
 * Frees a minor. Throws `SystemError`: ENOENT when it is not allocated, EAGAIN when a tapdisk has it,
 * EBUSY when a tapdisk that died left a block device or a ring there.
 */
export function freeMinor(minor: number): void {
  withFolderLocked(() => {
    const path = minorPath(minor);
    const file = openFile(path, O_RDONLY);
    try {
      if (!tryLockExclusive(file)) {
        const hint = "a tapdisk has it; detach it first";
        throw new SystemError(Errno.EAGAIN, `Cannot free minor ${minor} (${hint})`);
      }
      const orphan = readMinorRecord(minor);
      if (orphan !== null) {
        const died = `its tapdisk died and left ${orphan.node}`;
        const hint = `${died}; ${recoveryHint(minor, orphan.device)}`;
        throw new SystemError(Errno.EBUSY, `Cannot free minor ${minor} (${hint})`);
      }
      removeMinorLeftovers(minor);
      Deno.removeSync(path);
    } finally {
      closeFile(file);
    }
  });
}

function isStillAt(path: string, fd: number): boolean {
  try {
    const now = Deno.statSync(path);
    return now.ino === fileStatus(fd).inode;
  } catch {
    return false;
  }
}

/**
 * Locks a minor for this process. Returns the descriptor that holds the lock; closing it releases the
 * minor. Throws `SystemError`: ENOENT when it is not allocated, EBUSY when another tapdisk has it.
 */
export function holdMinor(minor: number): number {
  const path = minorPath(minor);
  const taken = takeLocked(path, { access: O_RDONLY, direct: false });
  if (taken !== null) return taken.fd;
  const file = openFile(path, O_RDONLY);
  try {
    if (tryLockExclusive(file) && isStillAt(path, file)) return file;
    throw new SystemError(Errno.EBUSY, `Cannot take minor ${minor} (another tapdisk has ${path})`);
  } catch (error) {
    closeFile(file);
    throw error;
  }
}
