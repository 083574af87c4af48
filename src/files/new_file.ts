import { type FileIdentity, removeOwn, type Storage, type StorageFile } from "./storage.ts";

/** The file of a new image. */
export interface NewFile {
  readonly path: string;
  /**
   * The file that the caller has made under this name. Without it, the file is created or emptied.
   */
  readonly same?: FileIdentity;
}

/**
 * Opens a file, creating it or, once the lock is taken, emptying it. `write` fills the file, which
 * is then synced. After a failure the file is removed.
 *
 * @throws {SystemError} EBUSY when another process may write to an existing file, which is
 * unchanged then.
 */
export function writeNewImage(
  storage: Storage,
  { path, same }: NewFile,
  write: (file: StorageFile) => void,
): void {
  const file = storage.open(path, "create", { same });
  try {
    write(file);
    file.sync();
  } catch (error) {
    if (!file.isBlockDevice) removeOwn(storage, path, file.identity);
    file.close();
    throw error;
  }
  file.close();
}

/**
 * Makes what was written to a file durable, such as a parent of a new image: a tapdisk that was killed
 * has not synced it, and from now on flushes sync the child only.
 */
export function syncFile(storage: Storage, path: string): void {
  const file = storage.open(path, "read");
  try {
    file.sync();
  } finally {
    file.close();
  }
}
