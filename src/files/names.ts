/**
 * Changes of names that last. A file system may keep a rename, a new file or a removal in memory until
 * the folder is synced, long after the call came back. All that changes names goes through
 * {@linkcode changeNames}: a change is on stable storage before its success is reported.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile, O_DIRECTORY, O_RDONLY, openFile, syncFile } from "../../ffi/files.ts";

/** What brings the names of a folder to stable storage. */
export interface FolderSync {
  syncFolder(folder: string): void;
}

/** The folder that a name is in; the working folder for a name without one. */
function folderOfName(path: string): string {
  const slash = path.lastIndexOf("/");
  return slash < 0 ? "." : path.slice(0, Math.max(1, slash));
}

/**
 * Changes names, and syncs their folders in this order.
 *
 * @returns What `change` returns.
 * @throws {SystemError} What `change` throws; then nothing was synced. What the sync throws; then the
 * names are changed, and a power cut may undo that.
 */
export function changeNames<Result>(
  sync: FolderSync,
  paths: readonly string[],
  change: () => Result,
): Result {
  const result = change();
  syncNames(sync, paths);
  return result;
}

/** Brings names to stable storage, by their folders in this order. */
export function syncNames(sync: FolderSync, paths: readonly string[]): void {
  for (const folder of new Set(paths.map(folderOfName))) sync.syncFolder(folder);
}

/** The folders of the operating system. */
export const osFolders: FolderSync = {
  /** A folder that may not be read, or whose file system cannot sync folders, is left alone. */
  syncFolder(folder: string): void {
    let fd = -1;
    try {
      fd = openFile(folder, O_RDONLY | O_DIRECTORY);
      syncFile(fd);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      const cannot = fd < 0 ? Errno.EACCES : Errno.EINVAL;
      if (error.errno !== cannot) throw new SystemError(error.errno, `Cannot sync ${folder}`);
    } finally {
      if (fd >= 0) closeFile(fd);
    }
  },
};
