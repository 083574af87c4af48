import { Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { isAlive } from "../../../ffi/process.ts";
import { unixConnectAtOnce } from "../../../ffi/sockets.ts";
import { controlFolder, namesIn, numberAfter } from "../../control/paths.ts";
import { leaveSocket, removeSocket } from "../../frontend/socket_file.ts";

/** Begins the names of the sockets between front doors and HTTP servers; the process follows. */
const INNER_NAME = "web-";

/** Listens on a UNIX socket to which only its owner, and root, may connect. Throws `SystemError`. */
export function listenForOwner(path: string): Deno.Listener {
  const mask = Deno.umask(0o177);
  try {
    return Deno.listen({ transport: "unix", path });
  } catch (error) {
    throw systemError(error, `Cannot listen on ${path}`);
  } finally {
    Deno.umask(mask);
  }
}

/**
 * Removes the socket of a page that has ended, so that its path can be used again.
 *
 * @throws {SystemError} EADDRINUSE when a program listens there.
 */
export function prepareSocket(path: string): void {
  try {
    closeFile(unixConnectAtOnce(path));
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    if (error.errno === Errno.ECONNREFUSED) return removeSocket(path);
    if (error.errno === Errno.ENOENT) return;
  }
  throw new SystemError(Errno.EADDRINUSE, `Cannot listen on ${path}`);
}

/** The path of this process's own socket in the control folder. Removes those of processes that died. */
export function innerSocket(): string {
  const folder = controlFolder();
  for (const name of namesIn(folder)) {
    const pid = numberAfter(name, INNER_NAME);
    if (pid !== undefined && (pid === Deno.pid || !isAlive(pid))) leaveSocket(`${folder}/${name}`);
  }
  return `${folder}/${INNER_NAME}${Deno.pid}`;
}
