import { linkTarget, pathStatus } from "../../ffi/paths.ts";
import { isAlive } from "../../ffi/process.ts";
import { ownerOfSocket } from "./client/stale_sockets.ts";
import { controlFolder } from "./paths.ts";

/** A name of a socket in the control folder, and the process whose number is in the name. */
export interface SocketName {
  readonly name: string;
  readonly pid: number;
}

/** A name and its file; of a link that to which it leads. Null for a name that is gone. */
function fileOf(
  socket: SocketName,
  mayFollow = true,
): { file: string; socket: SocketName } | null {
  const path = `${controlFolder()}/${socket.name}`;
  try {
    const { kind, device, inode } = pathStatus(path, { link: true });
    if (kind !== "other") return { file: `${device}:${inode}`, socket };
    // A link was left by a tapdisk whose disks another one took over, perhaps after the names were read.
    const name = linkTarget(path);
    const pid = ownerOfSocket(name);
    return pid === undefined || !mayFollow ? null : fileOf({ name, pid }, false);
  } catch {
    return null;
  }
}

/** When a process started, in ticks since the boot (proc(5), field 22 of stat); late for one that ended. */
function startOf(pid: number): number {
  if (!isAlive(pid)) return Infinity;
  try {
    const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]);
  } catch {
    return Infinity;
  }
}

/**
 * One name of each socket, and none that is a link. While a tapdisk hands its disks over, its sockets have a second
 * name with the number of the next process, which may never serve. The name of the older process is
 * right: it leads to the next one afterwards.
 */
export function singleNames(names: readonly SocketName[]): SocketName[] {
  const bySocket = new Map<string, SocketName>();
  for (const name of names) {
    const found = fileOf(name);
    if (found === null) continue;
    const { file, socket } = found;
    const known = bySocket.get(file);
    if (known?.name === socket.name) continue;
    if (known === undefined || startOf(socket.pid) < startOf(known.pid)) bySocket.set(file, socket);
  }
  return [...bySocket.values()];
}
