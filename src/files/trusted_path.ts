import { linkTarget, pathExists, pathStatus } from "../../ffi/paths.ts";

/** As many links as the kernel follows in one path. */
const MOST_LINKS = 40;
const STICKY = 0o1000;
const GROUP_WRITE = 0o020;
const OTHERS_WRITE = 0o002;

/** Why others can change what a name leads to; null when they cannot. */
function flawOf(path: string, isLast: boolean): string | null {
  const { uid, kind, mode } = pathStatus(path, { link: true });
  if (uid !== 0 && uid !== Deno.uid()) return `user ${uid} owns`;
  if (kind !== "directory") return null;
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
 * What makes a folder unfit for the state of this program. Whoever can write to the folder, or to one
 * above it, could put sockets and files of his own there, and receive the keys that are sent to them.
 * So each folder and each link on the way must belong to root or to the user of this process, and
 * others must not be able to write there. A name that does not exist yet is fit.
 *
 * @param folder Absolute.
 * @returns Such as `/srv/x, which user 12345 owns`; null for a folder that is fit.
 */
export function untrustedPart(folder: string): string | null {
  const left = namesOf(folder);
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
      const target = linkTarget(here);
      left.unshift(...namesOf(target));
      path = target.startsWith("/") ? "" : parentOf(path);
    }
    const name = left.shift();
    if (name === undefined) return null;
    path = name === ".." ? parentOf(path) : `${path}/${name}`;
  }
}
