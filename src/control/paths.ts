/**
 * `src/control`: the control socket of tapdisk and everything on both of its sides: the messages
 * (`protocol/`), what tapdisk does for them (`daemon/`), what tap-ctl asks (`client/`), and the
 * numbers that name devices (`minors/`). It must not print, and must not move a disk's data.
 *
 * This file has the places of the files and sockets that tapdisks and tap-ctl share.
 *
 * @module
 */
import { Errno, SystemError, systemError } from "../../ffi/errno.ts";
import { namesInFolder, workingFolder } from "../../ffi/paths.ts";
import { untrustedPart } from "../files/trusted_path.ts";
import type { NbdSockets } from "../frontend/nbd/server.ts";
import type { GuestDevice } from "../frontend/xenblkif/guest.ts";

/** The folder for the state of all tapdisks, unless `BLKTAP_CONTROL_DIR` names another one. */
export const BLKTAP2_CONTROL_DIR = "/run/blktap-control";

/** The folder of the control sockets, the NBD sockets and the minors; absolute. */
export function controlFolder(): string {
  const chosen = Deno.env.get("BLKTAP_CONTROL_DIR") ?? "";
  if (chosen === "") return BLKTAP2_CONTROL_DIR;
  const folder = chosen.startsWith("/") ? chosen : `${workingFolder()}/${chosen}`;
  return folder.length > 1 ? folder.replace(/\/+$/, "") : folder;
}

/** The folder with a file for each minor. */
export function minorsFolder(): string {
  return `${controlFolder()}/tapdisk`;
}

/**
 * The folder with a file for each tapdisk that takes disks of several callers: its name is the number of
 * the process, and its text says which callers.
 */
export function sharedFolder(): string {
  return `${controlFolder()}/shared`;
}

/** The control socket of a tapdisk. */
export function controlSocketPath(pid: number): string {
  return `${controlFolder()}/ctl${pid}`;
}

/** The file of a minor. A tapdisk that has the minor holds the flock(2) of the file. */
export function minorPath(minor: number): string {
  return `${minorsFolder()}/tapdisk-${minor}`;
}

/** Where the record of a minor is while it is written to the file of the minor. */
export function minorRecordPath(minor: number): string {
  return `${minorsFolder()}/record-${minor}`;
}

/** The NBD socket for a minor's disk. */
export function nbdSocketPath(pid: number, minor: number): string {
  return `${controlFolder()}/nbd${pid}.${minor}`;
}

/** The sockets of the NBD server of a minor's disk. */
export function nbdSockets(pid: number, minor: number): NbdSockets {
  const folder = controlFolder();
  return {
    newstyle: nbdSocketPath(pid, minor),
    oldstyle: `${folder}/nbd-old${pid}.${minor}`,
    handoverNewstyle: `${folder}/nbdserver-new${pid}.${minor}`,
    handoverOldstyle: `${folder}/nbdserver${pid}.${minor}`,
  };
}

/** Where the requests of a guest's ring are noted, for another tapdisk to go on with it. */
export function ringJournalPath({ domain, device }: GuestDevice): string {
  return `${controlFolder()}/ring-${domain}-${device}`;
}

/** Where a tapdisk is handed connections to NBD servers, for images named `nbd:NAME`. */
export function nbdClientSocketPath(pid: number): string {
  return `${controlFolder()}/nbdclient${pid}`;
}

/** The largest number of a process or a minor (pid_t). */
const LARGEST_NUMBER = 0x7fff_ffff;

/**
 * The number in a file's name after a prefix: `ctl12` after `ctl` is 12. Undefined when there is no
 * number, or one that no process can have.
 */
export function numberAfter(name: string, prefix: string): number | undefined {
  const digits = name.startsWith(prefix) ? name.slice(prefix.length) : "";
  const number = /^\d+$/.test(digits) ? Number(digits) : Infinity;
  return number <= LARGEST_NUMBER ? number : undefined;
}

/** The names in a folder; none when the folder does not exist. Throws `SystemError`. */
export function namesIn(folder: string): string[] {
  try {
    return namesInFolder(folder);
  } catch (error) {
    if (error instanceof SystemError && error.errno === Errno.ENOENT) return [];
    throw error;
  }
}

/**
 * Refuses a control folder in which another user could put sockets of his own, which would receive the
 * keys that are sent to them. A folder that does not exist is accepted.
 *
 * @throws {SystemError} EPERM when somebody other than root and the user of this process owns the
 * folder or can write to it, or to a folder above it; see `untrustedPart`.
 */
export function requireOwnFolder(folder: string = controlFolder()): void {
  const part = untrustedPart(folder);
  if (part === null) return;
  const hint = "remove it, take the right to write away, or name another in BLKTAP_CONTROL_DIR";
  const where = part.startsWith(`${folder}, `) ? part : `${folder} below ${part}`;
  const what = `Cannot use the control folder ${where}`;
  throw new SystemError(Errno.EPERM, what, { file: folder, hint });
}

/**
 * Makes the state folders with access for their owner only, unless they exist. Throws `SystemError`:
 * EPERM for folders that others own or can write to.
 */
export function prepareFolders(): void {
  requireOwnFolder();
  const folder = minorsFolder();
  requireOwnFolder(folder);
  try {
    Deno.mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    const hint = "run as root, or name a folder of your own in BLKTAP_CONTROL_DIR";
    throw systemError(error, `Cannot create the folder ${folder} (${hint})`);
  }
}
