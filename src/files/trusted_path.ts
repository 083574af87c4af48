import { Errno, SystemError } from "../../ffi/errno.ts";
import { linkTarget, pathExists, pathStatus } from "../../ffi/paths.ts";
import { effectiveUser } from "../../ffi/process.ts";

/** As many links as the kernel follows in one path. */
const MOST_LINKS = 40;
const STICKY = 0o1000;
const GROUP_WRITE = 0o020;
const OTHERS_WRITE = 0o002;

/** Why others can change what a name leads to; null when they cannot. */
function flawOf(path: string, isLast: boolean): string | null {
  const { uid, kind, mode } = pathStatus(path, { link: true });
  if (uid !== 0 && uid !== effectiveUser()) return `user ${uid} owns`;
  // A link has no rights of its own. It is the only kind of file without a name.
  if (kind === "other") return null;
  // In a folder above, such as /tmp, the sticky bit keeps others from replacing what we have there.
  const isOpen = isLast
    ? (mode & (GROUP_WRITE | OTHERS_WRITE)) !== 0
    : (mode & OTHERS_WRITE) !== 0 && (mode & STICKY) === 0;
  return isOpen ? "other users can write to" : null;
}

function namesOf(path: string): string[] {
  return path.split("/").filter((name) => name !== "" && name !== ".");
}

function parentOf(path: string): string {
  return path.slice(0, Math.max(path.lastIndexOf("/"), 0));
}

/**
 * What makes a folder unfit for the state of this program, or a file unfit to say what it does. Whoever
 * can write to the folder, or to one above it, could put sockets and files of his own there, and receive
 * the keys that are sent to them. So the file, each folder and each link on the way must belong to root
 * or to the user of this process, and others must not be able to write there. A name that does not exist
 * yet is fit.
 *
 * @param target Absolute.
 * @returns Such as `/srv/x, which user 12345 owns`; null for a folder that is fit.
 */
export function untrustedPart(target: string): string | null {
  const left = namesOf(target);
  let path = "";
  let links = 0;
  for (;;) {
    const here = path === "" ? "/" : path;
    if (!pathExists(here, { link: true })) return null;
    const flaw = flawOf(here, left.length === 0);
    if (flaw !== null) return `${here}, which ${flaw}`;
    // Symbolic links are the files without a kind of their own.
    if (pathStatus(here, { link: true }).kind === "other") {
      if (++links > MOST_LINKS) return `${here}, which is one of too many links`;
      const link = linkTarget(here);
      left.unshift(...namesOf(link));
      path = link.startsWith("/") ? "" : parentOf(path);
    }
    const name = left.shift();
    if (name === undefined) return null;
    path = name === ".." ? parentOf(path) : `${path}/${name}`;
  }
}

/**
 * Refuses a file of settings that others can change: it says which files root serves, or which parents
 * are followed. A file that does not exist is accepted.
 *
 * @throws {SystemError} EPERM.
 */
export function requireTrustedFile(path: string): void {
  if (!pathExists(path)) return;
  const part = untrustedPart(path);
  if (part === null) return;
  const where = part.startsWith(`${path}, `) ? part : `${path} below ${part}`;
  const hint = "take the right to write away";
  throw new SystemError(Errno.EPERM, `Cannot use ${where}`, { file: path, hint });
}
