import { Errno, SystemError, systemError } from "../../ffi/errno.ts";
import {
  pathExists,
  pathStatus,
  realPath,
  removePath,
  renamePath,
  renamePathToNew,
} from "../../ffi/paths.ts";
import { closeFile, O_RDONLY, openFile, readAt } from "../../ffi/files.ts";

/** How files begin that may be replaced: pictures as they are written here. */
const BEGINNINGS = ["<svg ", "<!doctype html>", "\x89PNG\r\n\x1a\n"];

function beginsAsPicture(path: string): boolean {
  const file = openFile(path, O_RDONLY);
  try {
    const head = new Uint8Array(16);
    const text = String.fromCharCode(...head.subarray(0, readAt(file, head, 0)));
    return text === "" || BEGINNINGS.some((beginning) => text.startsWith(beginning));
  } finally {
    closeFile(file);
  }
}

/** Refuses a path that is not free and has no picture, so that no image is lost to a wrong name. */
function refuseOthers(path: string): void {
  if (pathStatus(path).kind !== "file") {
    const why = "it is not a regular file; without a file, pictures go to standard output";
    throw new SystemError(Errno.EINVAL, `Cannot write a picture to ${path} (${why})`);
  }
  if (beginsAsPicture(path)) return;
  const why = "the file exists and is no picture; choose another name or remove it";
  throw new SystemError(Errno.EEXIST, `Cannot write a picture to ${path} (${why})`);
}

/**
 * Writes a picture to a file, whole or not at all. A picture that is there is replaced, and nothing else.
 *
 * @throws {SystemError} EEXIST for a file that is no picture; errors of the file system.
 */
export function writePictureFile(path: string, bytes: Uint8Array): void {
  const isThere = pathExists(path);
  if (isThere) refuseOthers(path);
  const target = isThere ? realPath(path) : path;
  const part = `${target}.${crypto.getRandomValues(new Uint8Array(8)).toHex()}.part`;
  let isMade = false;
  try {
    const file = Deno.openSync(part, { write: true, createNew: true });
    isMade = true;
    try {
      for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
      file.syncSync();
    } finally {
      file.close();
    }
    if (isThere) renamePath(part, target);
    else renamePathToNew(part, target);
  } catch (error) {
    if (isMade && pathExists(part)) removePath(part);
    throw systemError(error, `Cannot write ${path}`);
  }
}
