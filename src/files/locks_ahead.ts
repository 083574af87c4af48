/**
 * Locks that are taken by another thread, before the loop opens the file. On NFS the kernel asks the server
 * for a lock, and for that of version 3 rpc.statd on this host, too; while one of them does not answer, a
 * lock that need not wait for its holder takes minutes all the same. Other disks go on meanwhile.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  closeFile,
  type FileIdentity,
  type FileStatus,
  fileStatus,
  makeBlocking,
  O_DIRECT,
  O_NOCTTY,
  O_NONBLOCK,
  O_RDWR,
  openAside,
} from "../../ffi/files.ts";
import { SharedRoom } from "../../ffi/limited.ts";
import { isLockedAside, tryLockAside } from "../../ffi/locks_aside.ts";
import { duplicate } from "../../ffi/descriptors.ts";
import { pathStatus } from "../../ffi/paths.ts";
import { isLockKept } from "./kept_locks.ts";
import { nfsMountOf } from "./nfs_mount.ts";

/** A lock that fails sooner than that fails as soon when the loop asks for it, which tells why. */
const SOON_MS = 1_000;

/** The threads that servers which do not answer may keep, of the 32 of the runtime. */
const room = new SharedRoom({ most: 4, mostOfEach: 2, kept: 1 });

/** A file that has been opened for writing, and its lock. */
interface LockedAhead {
  readonly fd: number;
  readonly isDirect: boolean;
  /** Why there is no lock, as the end of a sentence about the file; null with one. */
  readonly weak: string | null;
}

/** By device and inode. */
const ready = new Map<string, LockedAhead>();

const NO_LOCK =
  "without a lock: asking for it takes long, and fails (is rpc.statd running?); nothing keeps other " +
  "programs from writing to it";

function keyOf({ device, inode }: FileIdentity): string {
  return `${device}:${inode}`;
}

/** Whether asking for a lock of a file asks a server. */
function asksServer({ kind, device }: FileStatus): boolean {
  const mount = kind === "file" ? nfsMountOf(device) : null;
  return mount !== null && !mount.isLockedHere;
}

/** Calls that another thread makes, and a clock. */
export interface ThreadCalls {
  tryLockAside(fd: number): Promise<boolean>;
  isLockedAside(fd: number): Promise<boolean>;
  nowMs(): number;
}

const threadCalls: ThreadCalls = { tryLockAside, isLockedAside, nowMs: () => performance.now() };

/** Does work in which an open of the file for writing gets the open file and its lock. Then they are given up. */
export type WithLock = (work: () => void) => void;

/**
 * Opens a file for writing and takes its lock on a thread. What goes wrong soon, the open in the loop tells.
 *
 * @param options.asks Whether that may take time; by default, whether the file is on NFS.
 * @param options.calls The calls that another thread makes.
 * @returns What the caller opens the file with, once. Null at once when nothing takes time. The promise fails
 * with EBUSY for a lock that another process has.
 */
export function lockAhead(
  path: string,
  { direct, asks = asksServer, calls = threadCalls }: {
    direct: boolean;
    asks?: (status: FileStatus) => boolean;
    calls?: ThreadCalls;
  },
): Promise<WithLock> | null {
  let status: FileStatus;
  try {
    status = pathStatus(path);
  } catch {
    return null;
  }
  if (!asks(status) || isLockKept(status)) return null;
  return room.run(`${status.device}`, async () => {
    const locked = await openLocked(path, { status, direct, calls });
    return locked === null ? (work) => work() : (work) => offer(keyOf(status), locked, work);
  });
}

/** Only the work gets the open file: another disk of this process with this file must find it locked. */
function offer(key: string, locked: LockedAhead, work: () => void): void {
  ready.set(key, locked);
  try {
    work();
  } finally {
    if (ready.get(key) === locked) {
      ready.delete(key);
      closeFile(locked.fd);
    }
  }
}

async function openLocked(
  path: string,
  { status, direct, calls }: { status: FileStatus; direct: boolean; calls: ThreadCalls },
): Promise<LockedAhead | null> {
  const flags = O_RDWR | O_NONBLOCK | O_NOCTTY;
  const fd = await openAside(path, direct ? flags | O_DIRECT : flags);
  if (fd < 0) return null;
  try {
    const found = fileStatus(fd);
    if (keyOf(found) === keyOf(status) && found.kind === "file") {
      makeBlocking(fd);
      const weak = await lockOpen(fd, path, calls);
      if (weak !== undefined) return { fd, isDirect: direct, weak };
    }
  } catch (error) {
    closeFile(fd);
    throw error;
  }
  closeFile(fd);
  return null;
}

/** Why there is no lock; null with one; undefined: the loop finds out, soon. */
async function lockOpen(
  fd: number,
  path: string,
  calls: ThreadCalls,
): Promise<string | null | undefined> {
  // The thread does not tell the error. Either another has the lock, or there are none.
  for (let isFirst = true;; isFirst = false) {
    const sinceMs = calls.nowMs();
    if (await calls.tryLockAside(fd)) return null;
    // The first may have taken long for want of a thread, and who has a lock is not always found.
    if (calls.nowMs() - sinceMs < SOON_MS) return undefined;
    if (!isFirst) return NO_LOCK;
    if (await calls.isLockedAside(fd)) {
      const what = `Cannot open ${path} for writing: another process has it open for writing; `;
      const hint = "pause or close a disk that uses it (see tap-ctl list), or wait";
      throw new SystemError(Errno.EBUSY, what + hint);
    }
  }
}

/** An open file whose lock was taken before, or could not be taken. */
export interface OpenedAhead {
  readonly fd: number;
  readonly status: FileStatus;
  readonly weak: string | null;
}

/** Another descriptor of the open file that is ready for a path; null without one. */
export function takeAhead(path: string, direct: boolean): OpenedAhead | null {
  if (ready.size === 0) return null;
  let key: string;
  try {
    key = keyOf(pathStatus(path));
  } catch {
    return null;
  }
  const found = ready.get(key);
  if (found === undefined) return null;
  if (found.isDirect !== direct) {
    // Its lock would keep the other open file out.
    ready.delete(key);
    closeFile(found.fd);
    return null;
  }
  const fd = duplicate(found.fd);
  return { fd, status: fileStatus(fd), weak: found.weak };
}
