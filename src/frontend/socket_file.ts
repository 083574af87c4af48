/**
 * Removes the socket at a path, or a link there, such as the one that a tapdisk leaves whose disks were
 * taken over. Nothing happens when there is none, or something else.
 */
export function removeSocket(path: string): void {
  try {
    const { isSocket, isSymlink } = Deno.lstatSync(path);
    if (isSocket || isSymlink) Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/**
 * Removes the socket of a listener that ends. What cannot be removed, as on a filesystem that
 * has become read-only, stays: it must not keep a disk from being closed.
 */
export function leaveSocket(path: string): void {
  try {
    removeSocket(path);
  } catch {
    // No program can connect to it, and the next listener replaces it.
  }
}
