import { closeFile, fileStatus, O_RDONLY, openFile } from "../../../ffi/files.ts";
import { minorPath } from "../paths.ts";

const LOCKS_FILE = "/proc/locks";

/** A process that cannot be seen from here, such as one of another container. */
export const UNKNOWN_HOLDER = 0;

/** A file's device and inode as the table of locks has them: `fe:00:2171826`. */
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

/** The holders of flock(2) locks, by file; null where the kernel shows no table of locks. */
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
 * Which process holds each of these minors, without asking any: a tapdisk that has a minor holds the
 * lock of its file. Nothing is locked on the way, so that nobody who wants a minor is disturbed.
 *
 * @returns The processes by minor, {@linkcode UNKNOWN_HOLDER} for one that cannot be seen; null where
 * the kernel shows no table of locks.
 */
export function minorHolders(minors: readonly number[]): Map<number, number> | null {
  const locks = lockHolders();
  if (locks === null) return null;
  const holders = new Map<number, number>();
  for (const minor of minors) {
    const key = lockKey(minorPath(minor));
    const pid = key === null ? undefined : locks.get(key);
    if (pid !== undefined) holders.set(minor, pid);
  }
  return holders;
}
