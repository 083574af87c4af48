import { Errno, SystemError } from "../../ffi/errno.ts";
import { osStorage } from "../files/storage.ts";
import { fileSizes } from "./file_sizes.ts";
import { knownImage } from "./names.ts";
import type { WorkOptions } from "./work.ts";

/** What was won. */
export interface CompactedImage {
  /** Length of what the image takes of its file or device, before that. */
  readonly beforeBytes: number;
  /** The same, afterwards. */
  readonly afterBytes: number;
  /** The room that the file takes, before that; null for a device. */
  readonly roomBeforeBytes: number | null;
  /** The same, afterwards. */
  readonly roomAfterBytes: number | null;
}

/**
 * Gives room back that an image does not need: what holds only zeros is freed, and what is left moves to
 * the front. The disk reads the same at every moment, so this may be killed and repeated.
 *
 * @throws {SystemError} EOPNOTSUPP for types without this; EBUSY when a tapdisk uses the image.
 */
export function compactImage(name: string, { onProgress }: WorkOptions = {}): CompactedImage {
  const { kind, path } = knownImage(name, "compact");
  if (kind.compact === undefined) {
    const why = "nothing can be freed in images of its type; convert it";
    throw new SystemError(Errno.EOPNOTSUPP, `Cannot compact ${name} (${why})`);
  }
  const roomBeforeBytes = fileSizes(path).roomBytes;
  const { beforeBytes, afterBytes } = kind.compact(osStorage, path, onProgress);
  return { beforeBytes, afterBytes, roomBeforeBytes, roomAfterBytes: fileSizes(path).roomBytes };
}
