/**
 * The lock for writing to an image: an exclusive flock(2) on the file. A tapdisk holds it while it
 * has an image open for writing, vhd-util while it changes one. Readers take no lock: coalesce
 * writes into a parent that a tapdisk reads, and the disk's content does not change. Operations
 * that discard or move blocks must call {@linkcode refuseReaders} too.
 *
 * QEMU's programs know nothing of flock(2): they lock single bytes, which say what a program does
 * with a file, and what other programs must not do. The lock here takes and checks these bytes as well:
 * QEMU does not write to a file that is open for writing here, and the other way round. Programs that
 * only read are not kept out.
 *
 * @module
 */
import { Errno, errnoName, SystemError } from "../../ffi/errno.ts";
import {
  areByteLocksAdvice,
  type FileIdentity,
  isByteLocked,
  isOpenElsewhere,
  tryLockByteShared,
  tryLockExclusive,
} from "../../ffi/files.ts";
import { pathStatus } from "../../ffi/paths.ts";
import { isAlive } from "../../ffi/process.ts";
import { deviceNumbers, nfsMountOf } from "./nfs_mount.ts";

/** How the lock of a file was taken. */
export interface TakenLock {
  /** A tapdisk holds it, beside which the file is opened. */
  readonly isShared: boolean;
  /**
   * Whom it does not keep out, and why, as the end of a sentence about the file: the filesystem has no
   * locks, its server gives none, or only this host knows of it; else null.
   */
  readonly weak: string | null;
}

/** What flock(2) says where there are no locks; ENOSYS is of Lustre. */
const NO_LOCKS: ReadonlySet<number> = new Set([Errno.ENOLCK, Errno.EOPNOTSUPP, Errno.ENOSYS]);

/** What follows from a lock that could not be taken, where there are no locks; null elsewhere. */
export function withoutLock(errno: number): string | null {
  if (!NO_LOCKS.has(errno)) return null;
  const name = errnoName(errno);
  return `without a lock: the filesystem has no locks (${name}); nothing keeps other programs from writing to it`;
}

const LOCKED_HERE =
  "with a lock of this host only: its mount has local locks (nolock, local_lock); " +
  "nothing keeps other hosts from writing to it";

/**
 * Takes the lock of an open file without waiting. Closing the descriptor releases it.
 *
 * @param options.besideTapdisk Accept a lock that a tapdisk of this host holds.
 * @param options.isHeld The open file has the lock already.
 * @throws {SystemError} EBUSY with the holder's name, when another process holds the lock.
 */
export function takeLock(
  fd: number,
  path: string,
  file: FileIdentity,
  { besideTapdisk = false, isHeld = false }: { besideTapdisk?: boolean; isHeld?: boolean } = {},
): TakenLock {
  let locked: boolean;
  try {
    locked = isHeld || tryLockExclusive(fd);
  } catch (error) {
    // Where there are no locks, the file is opened without one.
    const weak = error instanceof SystemError ? withoutLock(error.errno) : null;
    if (weak === null) throw error;
    return { isShared: false, weak };
  }
  if (locked) {
    refuseQemu(fd, path, file);
    const isLockedHere = nfsMountOf(file.device)?.isLockedHere === true;
    return { isShared: false, weak: isLockedHere ? LOCKED_HERE : null };
  }
  if (besideTapdisk && tapdiskWith(file, fd) !== null) return { isShared: true, weak: null };
  throw new SystemError(
    Errno.EBUSY,
    `Cannot open ${path} for writing: ${describeHolder(file)} has it open for writing; ` +
      "pause or close a disk that uses it (see tap-ctl list), or wait",
  );
}

/**
 * Bytes that QEMU's programs lock (block/file-posix.c): those of a program that writes or changes the
 * size, and those of a program that allows no other to do so.
 */
const QEMU_DOES = [101, 103] as const;
const QEMU_FORBIDS = [201, 203] as const;

/** Keeps QEMU's programs from writing to a file. Throws `SystemError` EBUSY when one does. */
function refuseQemu(fd: number, path: string, file: FileIdentity): void {
  if (!areByteLocksAdvice(fd)) return;
  // First the own wish, then the look at others, as in QEMU: of two that come at once, one sees the other.
  for (const byte of QEMU_FORBIDS) tryLockByteShared(fd, byte);
  if (!QEMU_DOES.some((byte) => isByteLocked(fd, byte))) return;
  const isQemu = (pid: number): boolean =>
    readText(`/proc/${pid}/comm`).startsWith("qemu") && hasOpen(pid, file) === true;
  const pid = processes().find(isQemu);
  const holder = pid === undefined
    ? "another process, by its lock one of QEMU,"
    : `${readText(`/proc/${pid}/comm`).trim()} (process ${pid})`;
  throw new SystemError(
    Errno.EBUSY,
    `Cannot open ${path} for writing: ${holder} has it open for writing; end it, or wait`,
  );
}

function describeHolder(file: FileIdentity): string {
  const taker = lockHolder(
    readText("/proc/locks"),
    file,
    (process, locked) => hasOpen(process, locked),
  );
  // The lock of a tapdisk that was replaced is still noted for the one that took it.
  const pid = taker !== null && isAlive(taker) ? taker : tapdiskWith(file, -1);
  if (pid === null) return "another process, perhaps on another host,";
  if (pid === Deno.pid) return "this process";
  const name = readText(`/proc/${pid}/comm`).trim();
  return name === "" ? `process ${pid}` : `${name} (process ${pid})`;
}

/**
 * Refuses a file that a tapdisk on this host has open, even only for reading: as the parent of an
 * image that it serves, or for a read-only disk. The tapdisk has the file's BAT in memory, and
 * would read from the old places.
 *
 * @param fd The caller's own descriptor, which does not count.
 * @throws {SystemError} EBUSY with the tapdisk's process id.
 */
export function refuseReaders(fd: number, path: string, file: FileIdentity): void {
  const pid = tapdiskWith(file, fd);
  if (pid === null) return refuseHiddenReaders(fd, path);
  throw new SystemError(
    Errno.EBUSY,
    `Cannot change ${path}: tapdisk (process ${pid}) reads it; ` +
      "pause or close the disks that use it (see tap-ctl list)",
  );
}

/**
 * Only root sees what a tapdisk has open that serves an encrypted disk. Beside such a tapdisk, a file
 * that any other process has open is refused.
 */
function refuseHiddenReaders(fd: number, path: string): void {
  const isOneHidden = processes().some((pid) =>
    pid !== Deno.pid && readText(`/proc/${pid}/comm`).trim() === "tapdisk" && isHidden(pid)
  );
  if (!isOneHidden || isOpenElsewhere(fd) !== true) return;
  throw new SystemError(
    Errno.EBUSY,
    `Cannot change ${path}: another process has it open, perhaps a tapdisk whose files only root ` +
      "can see; pause or close the disks that use it (see tap-ctl list)",
  );
}

/** Whether this process may not see which files a process has open. */
function isHidden(pid: number): boolean {
  try {
    Deno.readDirSync(`/proc/${pid}/fd`)[Symbol.iterator]().next();
    return false;
  } catch (error) {
    return !(error instanceof Deno.errors.NotFound);
  }
}

/**
 * The process id of a tapdisk that has a file open; null without one, or without permission to see
 * it.
 */
function tapdiskWith(file: FileIdentity, ownFd: number): number | null {
  for (const pid of processes()) {
    if (readText(`/proc/${pid}/comm`).trim() !== "tapdisk") continue;
    if (hasOpen(pid, file, pid === Deno.pid ? ownFd : null)) return pid;
  }
  return null;
}

/**
 * Finds the process that holds the exclusive lock of a file.
 *
 * @param locks The text of /proc/locks: `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`.
 * @param hasOpen Whether a process has the file open; null without permission to see it.
 * @returns The process id; null when it is unknown.
 */
export function lockHolder(
  locks: string,
  file: FileIdentity,
  hasOpen: (pid: number, file: FileIdentity) => boolean | null,
): number | null {
  let likely: number | null = null;
  for (const line of locks.split("\n")) {
    const found = /^\d+: (?:FLOCK|POSIX|OFDLCK) +\S+ +WRITE +(\d+) +(\S+):(\d+) /.exec(line);
    if (found === null || Number(found[3]) !== file.inode) continue;
    const pid = Number(found[1]);
    if (pid === 0) continue;
    const open = hasOpen(pid, file);
    if (open === true) return pid;
    // Some filesystems report another device number for files than for their locks.
    if (open === null && found[2] === deviceText(file.device)) likely ??= pid;
  }
  return likely;
}

/** A device number in the form of /proc/locks: major and minor in hexadecimal, `08:01`. */
function deviceText(device: number): string {
  return deviceNumbers(device).map((value) => value.toString(16).padStart(2, "0")).join(":");
}

/**
 * Whether a process has a file open by a descriptor other than `but`; null without permission to
 * see it.
 */
function hasOpen(pid: number, file: FileIdentity, but: number | null = null): boolean | null {
  const folder = `/proc/${pid}/fd`;
  try {
    for (const { name } of Deno.readDirSync(folder)) {
      if (name !== String(but) && leadsTo(`${folder}/${name}`, file)) return true;
    }
    return false;
  } catch {
    return null;
  }
}

/** Whether this process has a file open; false where the system does not tell. */
export function isOpenHere(file: FileIdentity): boolean {
  return hasOpen(Deno.pid, file) === true;
}

function processes(): number[] {
  try {
    return [...Deno.readDirSync("/proc")].map(({ name }) => Number(name)).filter(Number.isInteger);
  } catch {
    // /proc is not mounted, or the library's user did not grant the permission to read it.
    return [];
  }
}

function leadsTo(path: string, { device, inode }: FileIdentity): boolean {
  try {
    const status = pathStatus(path);
    return status.device === device && status.inode === inode;
  } catch {
    // The descriptor was closed in the meantime.
    return false;
  }
}

function readText(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}
