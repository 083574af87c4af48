import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { isAlive } from "../../../ffi/process.ts";
import { unixConnectAtOnce } from "../../../ffi/sockets.ts";
import { pathExists, pathStatus } from "../../../ffi/paths.ts";
import { controlFolder, namesIn, numberAfter } from "../paths.ts";

/** What the names of sockets of a process begin with, and those of sockets of its disks. */
const OF_A_PROCESS = ["ctl", "nbdclient"];
const OF_A_DISK = ["nbd", "nbd-old", "nbdserver", "nbdserver-new"];

/** The process that a socket in the control folder belongs to: `ctl12` and `nbd12.0` to 12. */
export function ownerOfSocket(name: string): number | undefined {
  const ofDisk = /^(.*)\.\d+$/.exec(name)?.[1];
  const [stem, prefixes] = ofDisk === undefined ? [name, OF_A_PROCESS] : [ofDisk, OF_A_DISK];
  for (const prefix of prefixes) {
    const pid = numberAfter(stem, prefix);
    if (pid !== undefined) return pid;
  }
  return undefined;
}

/** Whether no process listens at a socket. A full backlog counts as listening. */
function isDead(path: string): boolean {
  try {
    // A link to a socket of a process that took over. Connecting would reach that one.
    if (pathStatus(path, { link: true }).kind === "other") return !pathExists(path);
    closeFile(unixConnectAtOnce(path));
    return false;
  } catch (error) {
    return error instanceof SystemError && error.errno === Errno.ECONNREFUSED;
  }
}

/**
 * Whether a name is that of a socket of a tapdisk that was killed. The process must have ended, and no process
 * must listen: a process of another container is not visible here, but its socket still listens.
 */
function isOfTheDead(name: string): boolean {
  const pid = ownerOfSocket(name);
  return pid !== undefined && !isAlive(pid) && isDead(`${controlFolder()}/${name}`);
}

/** The names of the sockets of tapdisks that were killed. */
export function deadSockets(): string[] {
  return namesIn(controlFolder()).filter(isOfTheDead).sort();
}

/** Removes the sockets of tapdisks that were killed. */
export function removeStaleSockets(): void {
  const folder = controlFolder();
  for (const name of namesIn(folder)) {
    if (!isOfTheDead(name)) continue;
    try {
      Deno.removeSync(`${folder}/${name}`);
    } catch {
      // Another new tapdisk has removed it.
    }
  }
}
