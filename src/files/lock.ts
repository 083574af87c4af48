/**
 * The lock of those that write to an image: flock(2) on the file, exclusive. A tapdisk holds it
 * for as long as it has an image open for writing, vhd-util while it changes one. Readers take none:
 * coalesce writes into a parent that a tapdisk reads, and what the disk reads stays the same. Changes
 * that drop or move what is read ask {@linkcode refuseReaders} too.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { type FileIdentity, tryLockExclusive } from "../../ffi/files.ts";
import { pathStatus } from "../../ffi/paths.ts";

/**
 * Takes the lock of an open file without waiting. It goes with the descriptor.
 *
 * @param options.besideTapdisk A lock that a tapdisk of this host holds is no reason to refuse.
 * @returns False when a tapdisk holds the lock.
 * @throws {SystemError} EBUSY, naming the holder, when somebody else has it.
 */
export function takeLock(
  fd: number,
  path: string,
  file: FileIdentity,
  { besideTapdisk = false }: { besideTapdisk?: boolean } = {},
): boolean {
  let locked: boolean;
  try {
    locked = tryLockExclusive(fd);
  } catch (error) {
    // A filesystem without locks: there is nothing to hold, and nothing to refuse.
    const none = error instanceof SystemError &&
      (error.errno === Errno.ENOLCK || error.errno === Errno.EOPNOTSUPP);
    if (none) return true;
    throw error;
  }
  if (locked) return true;
  if (besideTapdisk && tapdiskWith(file, fd) !== null) return false;
  throw new SystemError(
    Errno.EBUSY,
    `Cannot open ${path} for writing: ${describeHolder(file)} has it open for writing; ` +
      "pause or close a disk that uses it (see tap-ctl list), or wait",
  );
}

function describeHolder(file: FileIdentity): string {
  const pid = lockHolder(
    readText("/proc/locks"),
    file,
    (process, locked) => hasOpen(process, locked),
  );
  if (pid === null) return "another process, perhaps on another host,";
  if (pid === Deno.pid) return "this process";
  const name = readText(`/proc/${pid}/comm`).trim();
  return name === "" ? `process ${pid}` : `${name} (process ${pid})`;
}

/**
 * Refuses a file that a tapdisk on this host has open, if only to read: as the parent of an image that
 * it serves, or for a disk that is read-only. The tapdisk keeps the file's BAT in memory, and would go
 * on to read where it leads.
 *
 * @param fd The caller's own descriptor, which does not count.
 * @throws {SystemError} EBUSY, naming the tapdisk.
 */
export function refuseReaders(fd: number, path: string, file: FileIdentity): void {
  const pid = tapdiskWith(file, fd);
  if (pid === null) return;
  throw new SystemError(
    Errno.EBUSY,
    `Cannot change ${path}: tapdisk (process ${pid}) reads it; ` +
      "pause or close the disks that use it (see tap-ctl list)",
  );
}

/** A tapdisk that has a file open; null when there is none, or none that can be seen. */
function tapdiskWith(file: FileIdentity, ownFd: number): number | null {
  for (const pid of processes()) {
    if (readText(`/proc/${pid}/comm`).trim() !== "tapdisk") continue;
    if (hasOpen(pid, file, pid === Deno.pid ? ownFd : null)) return pid;
  }
  return null;
}

/**
 * Finds the process that holds the exclusive lock of a whole file.
 *
 * @param locks What /proc/locks says: `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`.
 * @param hasOpen Whether a process has the file open; null where that cannot be seen.
 * @returns The process, or null when it is not known.
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
    // Some filesystems give the files another device number than their locks have.
    if (open === null && found[2] === deviceText(file.device)) likely ??= pid;
  }
  return likely;
}

/** A device number as /proc/locks has it: major and minor in hexadecimal, `08:01`. */
function deviceText(device: number): string {
  // As the kernel packs them into st_dev: the minor's low 8 bits, the major's 12, the minor's rest.
  const major = (device >>> 8) & 0xfff;
  const minor = (device & 0xff) | ((device >>> 12) & 0xf_ff00);
  const hex = (value: number): string => value.toString(16).padStart(2, "0");
  return `${hex(major)}:${hex(minor)}`;
}

/** Whether a process has a file open, by another descriptor than `but`; null where that is not seen. */
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

function processes(): number[] {
  try {
    return [...Deno.readDirSync("/proc")].map(({ name }) => Number(name)).filter(Number.isInteger);
  } catch {
    // Nothing is seen of the others: not mounted, or a library without the permission.
    return [];
  }
}

function leadsTo(path: string, { device, inode }: FileIdentity): boolean {
  try {
    const status = pathStatus(path);
    return status.device === device && status.inode === inode;
  } catch {
    // It was closed meanwhile.
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
