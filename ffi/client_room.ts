/**
 * Whether this process has room for clients of Ceph clusters. librados ends the whole process when it
 * gets no descriptor or no thread while it connects; a socket that it cannot have later, it tries again.
 *
 * @module
 */
import { Errno } from "./errno.ts";
import { descriptorsLeft } from "./process.ts";

/** What a client may need to connect. */
const CLIENT_DESCRIPTORS = 64;
const CLIENT_THREADS = 32;

/** A number in a file of a control group; Infinity for `max`, and without the file. */
function limitIn(path: string): number {
  try {
    const value = parseInt(Deno.readTextFileSync(path));
    return Number.isNaN(value) ? Infinity : value;
  } catch {
    return Infinity;
  }
}

/**
 * How many more threads the control groups of this process allow, and those above them, as far as they
 * say.
 *
 * @param root Where `/proc` and `/sys` are.
 */
export function threadsLeft(root: string): number {
  let groups: string;
  try {
    groups = Deno.readTextFileSync(`${root}/proc/self/cgroup`);
  } catch {
    return Infinity;
  }
  let left = Infinity;
  for (const line of groups.split("\n")) {
    // HIERARCHY:CONTROLLERS:PATH; the second version has no controllers there.
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (controllers !== "" && controllers !== "pids") continue;
    const top = `${root}/sys/fs/cgroup${controllers === "" ? "" : "/pids"}`;
    for (let at = path.replace(/\/+$/, ""); at !== ""; at = at.slice(0, at.lastIndexOf("/"))) {
      const most = limitIn(`${top}${at}/pids.max`);
      if (most !== Infinity) left = Math.min(left, most - limitIn(`${top}${at}/pids.current`));
    }
  }
  return left;
}

/** Why there is no room for so many clients more, and the error; null when there is. */
export function clientRoomFault(clients: number): { errno: number; why: string } | null {
  const what = "a client of a cluster needs more";
  if (descriptorsLeft() < CLIENT_DESCRIPTORS * clients) {
    return { errno: Errno.EMFILE, why: `${what} descriptors; see LimitNOFILE=` };
  }
  if (threadsLeft("") < CLIENT_THREADS * clients) {
    return { errno: Errno.EAGAIN, why: `${what} threads; see TasksMax=` };
  }
  return null;
}
