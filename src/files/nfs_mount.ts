/**
 * How the NFS that a file is on is mounted, as far as that matters for locks and for telling files apart.
 *
 * @module
 */

/** Options of a mount of NFS. */
export interface NfsMount {
  /** Its locks are kept by this host, and the server hears nothing of them (`nolock`, `local_lock`). */
  readonly isLockedHere: boolean;
  /**
   * Opening a file does not ask the server for the file's state (`nocto` before version 4): what the kernel
   * tells of it then may be as old as the time limits of its cache allow.
   */
  readonly isOpenedUnasked: boolean;
}

/** The numbers of a device, as from stat(2): major, then minor. */
export function deviceNumbers(device: number): readonly [number, number] {
  // The layout of st_dev: the low 8 bits of the minor, 12 bits of the major, the rest of the minor.
  return [(device >>> 8) & 0xfff, (device & 0xff) | ((device >>> 12) & 0xf_ff00)];
}

/**
 * The mount of NFS that has a device number; null for another filesystem, and where the kernel does not tell.
 *
 * @param mounts The text of /proc/self/mountinfo:
 * `36 35 0:53 / /mnt rw shared:1 - nfs server:/sr rw,vers=3,nolock,local_lock=all`.
 */
export function nfsMountOf(device: number, mounts: () => string = mountsText): NfsMount | null {
  const [major, minor] = deviceNumbers(device);
  // Filesystems that are on no block device have 0.
  if (major !== 0) return null;
  for (const line of mounts().split("\n")) {
    const [ofMount, ofFilesystem = ""] = line.split(" - ");
    const [type, _source, options = ""] = ofFilesystem.split(" ");
    if (ofMount.split(" ")[2] !== `0:${minor}` || !/^nfs4?$/.test(type)) continue;
    const has = (option: RegExp): boolean => options.split(",").some((one) => option.test(one));
    return {
      isLockedHere: has(/^local_lock=(?:all|flock)$/) || has(/^nolock$/),
      isOpenedUnasked: has(/^nocto$/) && !has(/^vers=4/),
    };
  }
  return null;
}

function mountsText(): string {
  try {
    return Deno.readTextFileSync("/proc/self/mountinfo");
  } catch {
    // /proc is not mounted, or the library's user did not grant the permission to read it.
    return "";
  }
}
