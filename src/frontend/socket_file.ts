/** Removes the socket at a path. Nothing happens when there is none, or something else. */
export function removeSocket(path: string): void {
  try {
    if (Deno.lstatSync(path).isSocket) Deno.removeSync(path);
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
