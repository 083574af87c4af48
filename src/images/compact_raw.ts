import { Errno, SystemError } from "../../ffi/errno.ts";
import type { ProgressListener } from "../files/progress.ts";
import type { Storage, StorageFile } from "../files/storage.ts";

/** Bytes that are read at once. */
const PART_BYTES = 1 << 20;
/** What is either data or a hole. */
const UNIT_BYTES = 4096;

/**
 * Makes holes in a raw file where it holds zeros. It reads the same at every moment.
 *
 * @returns Length of the file, which does not change.
 * @throws {SystemError} EOPNOTSUPP for a block device, and where the file system has no holes.
 */
export function compactRaw(
  storage: Storage,
  path: string,
  onProgress?: ProgressListener,
): { beforeBytes: number; afterBytes: number } {
  const file = storage.open(path, "write");
  try {
    if (file.isBlockDevice) {
      throw new SystemError(Errno.EOPNOTSUPP, `Cannot compact ${path} (it is a block device)`);
    }
    file.refuseReaders();
    const sizeBytes = file.sizeBytes();
    const part = new Uint8Array(PART_BYTES);
    for (let at = 0; at < sizeBytes;) {
      onProgress?.(at, sizeBytes);
      const run = file.allocatedRun(at, sizeBytes - at);
      if (run < 0) at -= run;
      else {
        // Whole parts, so that a unit is not looked at in pieces.
        const lengthBytes = Math.min(PART_BYTES - at % PART_BYTES, sizeBytes - at);
        file.readAt(part.subarray(0, lengthBytes), at);
        punchZeros(file, part.subarray(0, lengthBytes), at);
        at += lengthBytes;
      }
    }
    onProgress?.(sizeBytes, sizeBytes);
    file.sync();
    return { beforeBytes: sizeBytes, afterBytes: sizeBytes };
  } finally {
    file.close();
  }
}

/** Makes holes of the units of some bytes of a file that are zeros. */
function punchZeros(file: StorageFile, bytes: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
  let start = -1;
  const punch = (end: number): void => {
    if (start >= 0 && !file.punchHole(offsetBytes + start, end - start)) {
      const why = "its file system has no holes";
      throw new SystemError(Errno.EOPNOTSUPP, `Cannot compact ${file.path} (${why})`);
    }
    start = -1;
  };
  // Units are counted from the start of the file.
  const first = (UNIT_BYTES - offsetBytes % UNIT_BYTES) % UNIT_BYTES;
  for (let at = first; at + UNIT_BYTES <= bytes.length; at += UNIT_BYTES) {
    if (!isZero(bytes.subarray(at, at + UNIT_BYTES))) punch(at);
    else if (start < 0) start = at;
  }
  punch(bytes.length - (bytes.length - first) % UNIT_BYTES);
}

function isZero({ buffer, byteOffset }: Uint8Array<ArrayBuffer>): boolean {
  const words = new Int32Array(buffer, byteOffset, UNIT_BYTES / 4);
  for (let i = 0; i < words.length; i++) if (words[i] !== 0) return false;
  return true;
}
