import { Errno, SystemError } from "../../ffi/errno.ts";
import { writeNewImage } from "../files/new_file.ts";
import type { Storage } from "../files/storage.ts";
import { compactRaw } from "./compact_raw.ts";
import type { ImageKind, ResizeOptions } from "./kind.ts";

/** Raw images. */
export const rawKind: ImageKind = {
  type: "aio",
  create(storage, file, { sizeBytes }): void {
    writeNewImage(storage, file, (opened) => {
      if (opened.isBlockDevice) requireRoom(opened.path, opened.sizeBytes(), sizeBytes);
      else opened.truncate(sizeBytes);
    });
  },
  resize: resizeRaw,
  compact: compactRaw,
};

/** Cuts a raw image, or makes it longer. */
function resizeRaw(storage: Storage, path: string, { sizeBytes }: ResizeOptions): void {
  const file = storage.open(path, "write");
  try {
    if (file.isBlockDevice) {
      throw new SystemError(Errno.EINVAL, `Cannot resize ${path}: it is a block device`);
    }
    file.refuseReaders();
    file.truncate(sizeBytes);
    file.sync();
  } finally {
    file.close();
  }
}

function requireRoom(path: string, there: number, needed: number): void {
  if (there >= needed) return;
  const why = `it has ${there} bytes, and the disk ${needed}`;
  throw new SystemError(Errno.ENOSPC, `Cannot write to ${path} (${why})`);
}
