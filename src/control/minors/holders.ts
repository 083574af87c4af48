import { closeFile, fileStatus, O_RDONLY, openFile } from "../../../ffi/files.ts";
import { isAlive } from "../../../ffi/process.ts";
import { minorPath } from "../paths.ts";

const LOCKS_FILE = "/proc/locks";

/**
 * A process that this one cannot see, such as one of another container. The table also names the process
 * that took a lock when it has ended, and another has the open file.
 */
export const UNKNOWN_HOLDER = 0;

/** A file's device and inode in the format of /proc/locks: `fe:00:2171826`. */
function lockKey(path: string): string | null {
  let fd: number;
  try {
    fd = openFile(path, O_RDONLY);
  } catch {
    return null;
  }
  try {
    const { device, inode } = fileStatus(fd);
    // The kernel's new_encode_dev: minor bits 0-7 and 20-31, major bits 8-19.
    const major = (device >>> 8) & 0xfff;
    const minor = (device & 0xff) | ((device >>> 12) & 0xfff00);
    const hex = (value: number): string => value.toString(16).padStart(2, "0");
    return `${hex(major)}:${hex(minor)}:${inode}`;
  } finally {
    closeFile(fd);
  }
}

/** The holders of flock(2) locks, by file; null when /proc/locks cannot be read. */
function lockHolders(): Map<string, number> | null {
  let table: string;
  try {
    table = Deno.readTextFileSync(LOCKS_FILE);
  } catch {
    return null;
  }
  const holders = new Map<string, number>();
  for (const [, pid, key] of table.matchAll(/^\d+: FLOCK +\S+ +\S+ +(-?\d+) (\S+) /gm)) {
    holders.set(key, Math.max(UNKNOWN_HOLDER, Number(pid)));
  }
  return holders;
}

/**
 * Which process holds each of these minors. It reads the table of locks: it asks no tapdisk, and it
 * locks nothing, so that no other process fails to lock a minor meanwhile.
 *
 * @returns The processes by minor, {@linkcode UNKNOWN_HOLDER} for one that this process cannot see;
 * null when /proc/locks cannot be read.
 */
export function minorHolders(minors: readonly number[]): Map<number, number> | null {
  const locks = lockHolders();
  if (locks === null) return null;
  const holders = new Map<number, number>();
  for (const minor of minors) {
    const key = lockKey(minorPath(minor));
    const pid = key === null ? undefined : locks.get(key);
    if (pid !== undefined) holders.set(minor, isAlive(pid) ? pid : UNKNOWN_HOLDER);
  }
  return holders;
}
