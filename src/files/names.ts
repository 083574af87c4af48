/**
 * Durable changes of names. A file system may keep a rename, a new file or a removal in memory
 * until the folder is synced, long after the call returned. All code that changes names uses
 * {@linkcode changeNames}: a change is durable before its success is reported.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile, O_DIRECTORY, O_RDONLY, openFile, syncFile } from "../../ffi/files.ts";

/** Makes the names in a folder durable. */
export interface FolderSync {
  syncFolder(folder: string): void;
}

/** The folder of a name; the working folder for a name without a slash. */
function folderOfName(path: string): string {
  const slash = path.lastIndexOf("/");
  return slash < 0 ? "." : path.slice(0, Math.max(1, slash));
}

/**
 * Changes names, then syncs their folders in this order.
 *
 * @returns The result of `change`.
 * @throws {SystemError} for errors of `change`, before any sync; for errors of a sync, after the
 * change. A power cut may undo the change then.
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

/** Syncs the folders of names in this order, so that the names are durable. */
export function syncNames(sync: FolderSync, paths: readonly string[]): void {
  for (const folder of new Set(paths.map(folderOfName))) sync.syncFolder(folder);
}

/** The folders of the operating system. */
export const osFolders: FolderSync = {
  /** A folder that may not be read, or whose file system cannot sync folders, is skipped. */
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
